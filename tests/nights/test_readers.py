"""Every reader of docs/reading.md finds a night's predictions by its lines and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.nights import Night, dense, features, matrix, saved
from tests.support.servers import readers
from tests.support.servers.stores import ROOT

DOCS = ROOT / "docs" / "reading.md"
ROWS = 300
BAD = (5, 9)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What is asked of a reader's own kind of table, whichever it is.
CHILD = """
import json, sys
block = sys.stdin.read()
names = {}
exec(block, names)
found = {}
for name in ("night", "rejected"):
    table = names[name]
    ways = ("to_pandas", "toPandas", "df", "copy")
    to_pandas = next(getattr(table, way) for way in ways if hasattr(table, way))
    frame = to_pandas().sort_values("id")
    found[name] = {column: [str(value) for value in frame[column]] for column in frame.columns}
print("\\n" + json.dumps(found))
"""


def blocks() -> dict[str, str]:
    """The lines for each reader, by its title."""
    found = re.findall(
        r"^## (\w+)\n(?:[^#]*?)```python\n(.*?)```", DOCS.read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(found)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Two shards in Hive folders, with keys of nanoseconds among the rejected rows' columns."""
    night = Night(tmp_path_factory.mktemp("readers"))
    for hour in ("07", "10"):
        table = features(ROWS, seed=int(hour), first_id=1000 * int(hour))
        values = [None if i in BAD else value for i, value in enumerate(table["f1"].to_pylist())]
        table = table.set_column(2, "f1", pa.array(values, pa.float32()))
        at = pa.array(np.arange(ROWS) * 1_000_000_001, pa.timestamp("ns"))
        night.shard(f"hour={hour}/a", table.append_column("at", at))
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=id", "--features=f0,f1,f2,f3")
    return night


def wanted(night: Night) -> Mapping[int, float]:
    """Ids and predictions, as plain pyarrow and the model itself have them."""
    model, found = dense(), dict[int, float]()
    for path in sorted(night.input.rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        good = table.take([i for i in range(ROWS) if i not in BAD])
        predicted = model.predict(matrix(good), verbose=0)[:, 0]
        found |= dict(zip(good["id"].to_pylist(), predicted.tolist(), strict=True))
    return found


@pytest.mark.parametrize("reader", ["pandas", "Polars", "DuckDB", "Daft", "Spark"])
def test_a_reader_finds_the_predictions_and_nothing_else(night: Night, reader: str) -> None:
    if reader == "Spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    lines = blocks()[reader].replace("data/december", str(night.output))
    assert str(night.output) in lines
    done = subprocess.run(
        [readers.built(), "-c", CHILD], input=lines, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rows = wanted(night)
    assert [int(one) for one in found["night"]["id"]] == sorted(rows)
    got = [float(one) for one in found["night"]["prediction"]]
    np.testing.assert_allclose(got, [rows[one] for one in sorted(rows)], rtol=1e-5)
    assert {int(one) for one in found["night"]["hour"]} == {7, 10}
    assert [int(one) for one in found["rejected"]["id"]] == [7005, 7009, 10005, 10009]
    assert set(found["rejected"]["_reason"]) == {"null"}


def test_the_docs_tell_of_every_reader() -> None:
    assert list(blocks()) == ["pandas", "Polars", "DuckDB", "Daft", "Spark"]
