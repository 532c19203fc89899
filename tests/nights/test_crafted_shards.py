"""Shards that no writer writes: each is set aside or scored, and none stops the others."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.binding.predictions import Tolerance
from job.compare.verify import verify
from job.errors import SchemaError
from job.shards import inputs
from job.spec import ScoringSpec
from tests.support.crafted_parquet import (
    BYTES,
    FIXED,
    FLOAT,
    INT32,
    INT64,
    OPTIONAL,
    REQUIRED,
    Chunk,
    element,
    floats,
    list_column,
    lists_of_ones,
    one_text,
    page,
    parquet,
    repeated_value,
    run,
)
from tests.support.nights import Night, dense, features, matrix, saved

ROOT = Path(__file__).parents[2]
ROWS = 3
FEATURES = ("f0", "f1", "f2", "f3")
GOOD = features(50)
FLAGS = (
    "--keys=id",
    "--features=f0,f1,f2,f3",
    "--batch_size=64",
    "--on_bad_shard=reject",
    "--max_rejected=1",
)


def shard(
    *more: tuple[dict[int, object], Chunk | None], rows: int = ROWS, group_rows: int = ROWS, bad: bool = False
) -> bytes:
    """Rows that the model takes, the second of them with a NaN if ``bad``, and more columns."""
    schema = [element("id", REQUIRED, INT64), *(element(name, REQUIRED, FLOAT) for name in FEATURES)]
    chunks = [Chunk(["id"], INT64, ROWS, page(ROWS, np.arange(ROWS).tobytes()))]
    for name in FEATURES:
        values = page(ROWS, floats(0.5, float("nan") if bad else 1.5, 2.5))
        chunks.append(Chunk([name], FLOAT, ROWS, values))
    schema += [one for one, _ in more]
    chunks += [chunk for _, chunk in more if chunk is not None]
    return parquet(schema, chunks, rows=rows, group_rows=group_rows)


EMPTY_STRUCT = (element("odd", OPTIONAL, children=0), None)
# Required, and null: Arrow reads such a column as it does one of nulls.
BARE_NULL = (
    {**element("odd", REQUIRED, INT32), 10: {11: {}}},
    Chunk(["odd"], INT32, ROWS, page(ROWS, bytes(12))),
)
ODD = {"an empty struct": EMPTY_STRUCT, "a null that is required": BARE_NULL}


def put(night: Night, name: str, content: bytes) -> Path:
    night.input.mkdir(exist_ok=True)
    path = night.input / f"{name}.parquet"
    path.write_bytes(content)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(dense(), tmp_path / "m.keras")


def rejected(night: Night, name: str) -> pq.ParquetFile:
    return pq.ParquetFile(night.output / "_rejected" / f"{name}.rejected")


def is_right(night: Night) -> bool:
    return verify(str(night.output), sample_rows=0, seed=0, tolerance=Tolerance()).is_right


@pytest.mark.parametrize("odd", ODD)
def test_a_column_that_cannot_be_written_is_left_out_of_rejected_rows_and_named(
    night: Night, model: Path, odd: str
) -> None:
    """Of a shard with a bad row, and of one that is refused as a whole; the others are scored."""
    put(night, "a", shard(ODD[odd], bad=True))
    short = shard(ODD[odd]).replace(b"\x02f3", b"\x02g3")
    put(night, "b", short)
    night.shard("c", GOOD)
    report = night.score(model, *FLAGS)
    assert (report.rows_scored, report.rows_rejected, report.shards_rejected) == (52, 4, 1)
    assert report.rejects_left_out == ("odd",)
    file = rejected(night, "a")
    assert file.schema_arrow.names == ["id", *FEATURES, "_shard", "_row", "_reason", "_error"]
    assert (file.read()["id"].to_pylist(), file.read()["_row"].to_pylist()) == ([1], [1])
    assert json.loads(file.metadata.metadata[b"scoring_job.left_out"]) == ["odd"]
    file = rejected(night, "b")
    assert (file.read()["id"].to_pylist(), "odd" in file.schema_arrow.names) == ([0, 1, 2], False)
    wanted = dense().predict(matrix(GOOD), verbose=0)[:, 0]
    found = pq.read_table(night.output / "c.parquet")["prediction"].to_numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert is_right(night)


@pytest.mark.parametrize("odd", ODD)
def test_a_key_that_cannot_be_written_is_refused_before_the_first_prediction(
    night: Night, model: Path, odd: str
) -> None:
    put(night, "a", shard(ODD[odd]))
    with pytest.raises(SchemaError, match=r"key odd: .*, which Arrow can read and not write; take it out of"):
        night.score(model, "--keys=id,odd", *FLAGS[1:3])
    assert not list(night.output.rglob("*"))


@pytest.mark.parametrize(
    ("rows", "group_rows", "is_good"),
    [(3, 3, True), (0, 3, True), (-3, -3, False), (3, -3, False), (5, 3, False)],
)
def test_rows_of_a_footer_that_do_not_add_up_make_a_bad_shard(
    night: Night, rows: int, group_rows: int, is_good: bool
) -> None:
    put(night, "a", shard(rows=rows, group_rows=group_rows))
    spec = ScoringSpec(inputs=(str(night.input),), model="m.keras", output="/nowhere/out")
    (footer,) = inputs.read_footers(inputs.list_shards(spec))
    if is_good:
        assert (footer.rows, footer.error) == (3, "")
    else:
        assert f"its footer says {rows} rows, and its row groups hold {group_rows}" in footer.error
        assert "write it again" in footer.error


def test_a_small_file_that_claims_rows_without_end_costs_no_time(night: Night, model: Path) -> None:
    claimed = 10**9
    put(night, "a", shard(rows=claimed, group_rows=claimed))
    night.shard("b", GOOD)
    begin = time.monotonic()
    report = night.score(model, *FLAGS)
    assert time.monotonic() - begin < 60
    assert (report.rows_read, report.rows_scored, report.rows_rejected) == (claimed + 50, 50, claimed)
    (entry,) = night.manifest()["rejected_shards"]
    assert (entry["rows"], entry["file"]) == (claimed, False)
    assert not (night.output / "_rejected").exists()
    assert is_right(night)


HUGE = 2**31 - 1
MIB = 1 << 20
LIST = ("odd", "list", "element")
ONE = floats(1.0)
TEXTS = struct.pack("<I", MIB) + b"x" * MIB + struct.pack("<I", 0) * 200
EACH = 18
# Whoever reads these as they stand takes 14 GB for the first one alone, and 2 GB for the text.
BOMBS: dict[str, tuple[list[dict[int, Any]], Chunk]] = {
    "a list of 10^9": lists_of_ones("odd", ROWS, 10**9),
    "a list of 10^8": lists_of_ones("odd", ROWS, 10**8),
    "a list that the footer hides": lists_of_ones("odd", ROWS, 10**9, told=ROWS),
    "a list of 10^6": lists_of_ones("odd", ROWS, 10**6),
    "a list of 10^9 in a page of version 2": (
        list_column("odd", FLOAT),
        repeated_value(LIST, FLOAT, [10**9, 1, 1], ONE, version=2),
    ),
    "a list of 10^8 in a page that is filled up": (
        list_column("odd", FLOAT),
        repeated_value(LIST, FLOAT, [10**8, 1, 1], ONE, padding=400_000),
    ),
    "a list of 10^8 in a struct": (
        list_column("odd", FLOAT, within="b"),
        repeated_value(("odd", "b", "list", "element"), FLOAT, [10**8, 1, 1], ONE),
    ),
    "a list of one text of 1 MiB": (
        list_column("odd", BYTES),
        repeated_value(LIST, BYTES, [3000, 1, 1], TEXTS, entries=201),
    ),
    "a list of one value of 1 MiB": (
        list_column("odd", FIXED, fixed_bytes=MIB),
        repeated_value(LIST, FIXED, [4000, 1, 1], b"x" * MIB),
    ),
    "a page of 2 GB": (
        [element("odd", REQUIRED, FLOAT)],
        Chunk(["odd"], FLOAT, ROWS, page(ROWS, floats(1, 2, 3), claims=HUGE), codec=6),
    ),
    "a dictionary of 2 GB": (
        [element("odd", REQUIRED, FLOAT)],
        Chunk(
            ["odd"],
            FLOAT,
            ROWS,
            page(HUGE // 4, floats(1), kind=2, claims=HUGE) + page(ROWS, b"\1" + run(0, ROWS), encoding=8),
            has_dictionary=True,
        ),
    ),
}
NIGHT = """
import json, resource, sys
from job.launch import score as launch; from job.cli import options
spec, beam = options.parse(sys.argv[1:])
report = launch.score(spec, beam, announce=lambda line: None).report
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([report.rows_scored, report.rows_rejected, report.shards_rejected, peak_kib]))
"""


@pytest.mark.slow
def test_a_night_of_many_bombs_keeps_within_the_memory_of_any_night(night: Night, model: Path) -> None:
    """198 shards that stand for gigabytes, and one of 4 MB; each is told with its reason."""
    for i in range(EACH):
        for name, (schema, chunk) in BOMBS.items():
            more = [(one, None) for one in schema[:-1]] + [(schema[-1], chunk)]
            # Some do not fit the model, and the others have a row that it does not take.
            content = shard(*more, bad=bool(i % 2))
            put(night, f"{name}-{i}", content if i % 2 else content.replace(b"\x02f3", b"\x02g3"))
    schema, chunk = one_text("odd", 500, 4 << 20)
    ids = Chunk(["id"], INT64, 500, page(500, np.arange(500).tobytes()))
    put(
        night,
        "text",
        parquet([element("id", REQUIRED, INT64), *schema], [ids, chunk], rows=500, group_rows=500),
    )
    tables = [features(50, seed=i, first_id=100 * i) for i in range(3)]
    for i, table in enumerate(tables):
        night.shard(f"good-{i}", table)
    command = [sys.executable, "-c", NIGHT, *night.args(model, *FLAGS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    scored, rejected, shards, peak_kib = json.loads(done.stdout.splitlines()[-1])
    assert scored + rejected == 3 * 50 + len(BOMBS) * EACH * ROWS + 500
    told = {Path(one["shard"]).stem: one["error"] for one in night.manifest()["rejected_shards"]}
    assert len(told) == shards >= (len(BOMBS) - 1) * EACH
    for name in (name for name in BOMBS if name != "a list of 10^6"):
        for i in range(EACH):
            reason = told[f"{name}-{i}"]
            if not i % 2:
                assert "f3" in reason
            elif "list" in name:
                assert "column odd." in reason
                assert "one row has" in reason
                assert "32 MiB a row" in reason
            else:
                assert "cannot be read" in reason
    for i, table in enumerate(tables):
        found = pq.read_table(night.output / f"good-{i}.parquet")["prediction"].to_numpy()
        np.testing.assert_allclose(found, dense().predict(matrix(table), verbose=0)[:, 0], rtol=1e-6)
    assert peak_kib < 2 << 20, f"{peak_kib >> 10} MiB"
