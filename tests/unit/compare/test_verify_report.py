"""What ``verify`` tells a person beside its verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.nights import Night, dense, features, kept, put_back, run_cli, saved


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a night of two shards in splits, with words among the keys."""
    night = Night(tmp_path_factory.mktemp("told") / "night")
    for i in range(2):
        words = pa.array([f"w{j % 7}" for j in range(300)]).dictionary_encode()
        table = features(300, seed=i, first_id=1000 * i).append_column("word", words)
        night.shard(f"part-{i}", table, group_rows=100)
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=id,word", "--split_rows=200")
    return kept(night)


@pytest.fixture
def published(aside: Path) -> Night:
    return put_back(aside)


def with_prediction(table: pa.Table, row: int, more: float) -> pa.Table:
    values = table["prediction"].to_pylist()
    values[row] += more
    index = table.schema.get_field_index("prediction")
    return table.set_column(index, "prediction", pa.array(values, pa.float32()))


@pytest.mark.slow
def test_the_differing_row_of_a_changed_file_is_shown(
    published: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    """Changed with plain pyarrow by somebody who knows of no manifest, and of no key-value metadata."""
    path = published.output / "part-0-00000-00001.parquet"
    table = with_prediction(pq.ParquetFile(path).read(), 17, 1e-3).replace_schema_metadata(None)
    pq.write_table(table, path)
    code, out, err = run_cli(capfd, "verify", str(published.output), "--sample_rows=all")
    assert code == 5
    told, shown, verdict = out.splitlines()
    assert told.startswith("part-0-00000-00001.parquet: it was changed: ")
    assert re.match(r"part-0-00000-00001\.parquet: row 17 \(row 17 of \S+\): prediction is ", shown)
    assert verdict.endswith("600 of them scored again: 1 findings, 1 rows differ")
    assert "1 findings, 1 of 600 rows differ" in err


def test_a_changed_file_of_other_rows_or_columns_is_told_once(
    published: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = published.files()
    pq.write_table(pq.ParquetFile(first).read().slice(1), first)
    pq.write_table(pq.ParquetFile(second).read().drop_columns(["prediction"]), second)
    code, out, _ = run_cli(capfd, "verify", str(published.output), "--sample_rows=all")
    assert code == 5
    lines = out.splitlines()[:-1]
    assert [line.partition(":")[0] for line in lines] == [first.name, second.name]
    assert all("it was changed" in line for line in lines)


@pytest.mark.slow
def test_damage_anywhere_in_a_file_is_told_and_nothing_else_happens(
    published: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    path = published.files()[0]
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 20)):
        content = bytearray(whole)
        content[at] ^= 0x55
        path.write_bytes(bytes(content))
        code, out, err = run_cli(capfd, "verify", str(published.output), "--sample_rows=all")
        assert (code, err.count("\n")) == (5, 1), (at, err)
        assert out.startswith(f"{path.name}: it was changed: "), at


Spoil = Callable[[dict[str, Any]], object]
MALFORMED: dict[str, tuple[Spoil, str]] = {
    "no shard": (lambda m: m["files"][1].pop("shard"), r"files\[1\]\.shard is absent, not text"),
    "rows of text": (lambda m: m["files"][0].update(rows="3"), r'files\[0\]\.rows is "3", not a count'),
    "rows below 0": (lambda m: m.update(rows_read=-1), r"rows_read is -1, not a count"),
    "no groups": (lambda m: m["files"][0].update(row_groups=[]), r"files\[0\]\.row_groups is \[\], not the"),
    "no model": (lambda m: m.pop("model"), r"model is absent, not an object"),
    "no digest": (lambda m: m["model"].pop("sha256"), r"model\.sha256 is absent, not text"),
    "feeds of text": (lambda m: m["scoring"].update(feeds="x"), r'scoring\.feeds is "x", not a list'),
    "keys of numbers": (lambda m: m["scoring"].update(keys=[1]), r"scoring\.keys\[0\] is 1, not text"),
    "no casts": (lambda m: m["scoring"].pop("casts"), r"scoring\.casts is absent, not an object"),
    "no counts": (lambda m: m.pop("rows_scored"), r"rows_scored is absent, not a count"),
    "no list": (lambda m: m.pop("rejected_shards"), r"rejected_shards is absent, not a list"),
    "no bytes": (lambda m: m["files"][0].pop("bytes"), r"it is no manifest of this job"),
    "no files": (lambda m: m.pop("files"), r"it is no manifest of this job"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_manifest_is_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, manifest: str, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = MALFORMED[case]
    content = json.loads(manifest)
    spoil(content)
    folder = tmp_path_factory.mktemp("night")
    (folder / "_manifest.json").write_text(json.dumps(content))
    (folder / "_SUCCESS").touch()
    code, out, err = run_cli(capfd, "verify", str(folder), "--sample_rows=5")
    assert (code, out, err.count("\n")) == (6, "", 1), err
    assert re.search(rf"error: {folder}/_manifest\.json: {message}", err), err


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    night = Night(tmp_path_factory.mktemp("whole"))
    for i in range(2):
        night.shard(f"part-{i}", features(30, seed=i))
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=id")
    return (night.output / "_manifest.json").read_text()


def test_shards_that_were_rejected_are_told_and_are_no_fault(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        night.shard(f"b{i}", features(50, seed=i, first_id=50 * i))
    (night.input / "a.parquet").write_bytes(b"PAR1")
    night.shard("c", features(20).drop_columns(["f2"]), group_rows=10)
    model = saved(dense(), night.folder / "m.keras")
    night.score(model, "--keys=id", "--on_bad_shard=reject", "--max_rejected=0.5", "--split_rows=10")
    code, out, _ = run_cli(capfd, "verify", str(night.output), "--sample_rows=0")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "rejected" in line]
    start = f"2 shards were rejected in part or whole, first {night.input}/a.parquet: no readable Parquet"
    assert line.startswith(start)
    code, out, _ = run_cli(capfd, "verify", str(night.output), "--sample_rows=0", "--json")
    assert (code, json.loads(out)["notes"], json.loads(out)["is_right"]) == (0, [line], True)
