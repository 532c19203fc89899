"""Shards that cannot be read or bound: told at once, or set aside with every row counted."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import DataError, SchemaError, ShardChangedError, ShardError, StorageError
from tests.support.nights import Night, dense, features, matrix, run_cli, saved

REJECT = ("--keys=id", "--batch_size=64", "--on_bad_shard=reject", "--max_rejected=0.5")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(dense(), tmp_path / "m.keras")


def of_text(rows: int) -> pa.Table:
    table = features(rows, seed=9, first_id=9000)
    return table.set_column(2, "f1", pa.array([f"{i}" for i in range(rows)]))


def damage_data(path: Path) -> None:
    """Spoil the compressed pages and leave the footer whole."""
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(bytes(content))


def rejected(night: Night, name: str) -> pa.Table:
    return pq.ParquetFile(night.output / "_rejected" / f"{name}.rejected").read()


def expected(*tables: pa.Table) -> Any:
    return dense().predict(matrix(pa.concat_tables(tables)), batch_size=64, verbose=0)[:, 0]


@pytest.mark.parametrize("spoilt", [(1, 4), (0, 4)], ids=["the first is good", "the first is bad"])
def test_all_mismatches_are_told_at_once_and_in_groups(
    night: Night, model: Path, spoilt: tuple[int, int]
) -> None:
    for i in range(6):
        night.shard(f"part-{i}", features(20, seed=i))
    for i in spoilt:
        night.shard(f"part-{i}", of_text(20))
    night.shard("part-3", features(20).drop_columns(["f0", "id"]))
    (night.input / "part-5.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SchemaError) as told:
        night.score(model, "--keys=id")
    text = str(told.value)
    assert text.count("\n") == 0
    for line in (
        rf"'f1' .*string.* in 2 of 6 shards, first {night.input}/part-{spoilt[0]}\.parquet",
        rf"id.* in 1 of 6 shards, first {night.input}/part-3\.parquet",
        rf"'f0'.* in 1 of 6 shards, first {night.input}/part-3\.parquet",
        rf"no readable Parquet file .* in 1 of 6 shards, first {night.input}/part-5\.parquet",
    ):
        assert told.match(line), line


def test_a_first_shard_that_alone_cannot_be_bound_is_told_among_the_others(night: Night, model: Path) -> None:
    """Beside one more column the model's own are not known, though they are those of the other shards."""
    night.shard("part-0", features(20, 5))
    night.shard("part-1", features(20).drop_columns(["f0"]))
    for i in (2, 3):
        night.shard(f"part-{i}", features(20, seed=i))
    with pytest.raises(SchemaError) as told:
        night.score(model, "--keys=id")
    assert told.match(rf"5 columns .* remain .* in 1 of 4 shards, first {night.input}/part-0\.parquet")
    assert told.match(rf"'f0' is absent.* in 1 of 4 shards, first {night.input}/part-1\.parquet")


def test_where_no_shard_can_be_bound_those_without_a_footer_are_told_too(night: Night, model: Path) -> None:
    night.shard("part-0", features(20))
    (night.input / "part-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        SchemaError, match=r"--keys names 'no'.*part-0.*no readable Parquet .*in 1 of 2 shards"
    ):
        night.score(model, "--keys=no")


def test_a_key_of_another_type_is_told_beside_the_shard_that_was_bound(night: Night, model: Path) -> None:
    night.shard("part-0", of_text(20))
    for i in (1, 2, 3):
        night.shard(f"part-{i}", features(20))
    table = features(20)
    night.shard("part-3", table.set_column(0, "id", table["id"].cast(pa.string())))
    with pytest.raises(SchemaError) as told:
        night.score(model, "--keys=id")
    assert told.match(rf"key id: string, but int64 in {night.input}/part-1\.parquet in 1 of 4 shards")


def test_a_shard_that_does_not_fit_is_set_aside_with_all_its_columns(night: Night, model: Path) -> None:
    tables = [features(50, seed=i, first_id=50 * i) for i in range(2)]
    # The bad one is the first: the binding comes from what most shards are.
    night.shard("a", of_text(30), group_rows=10)
    night.shard("b", tables[0])
    night.shard("c", tables[1])
    report = night.score(model, *REJECT, "--split_rows=20")
    assert (report.rows_read, report.rows_scored, report.rows_rejected) == (130, 100, 30)
    assert (report.shards_rejected, report.reject_reasons) == (1, (("bad_shard", 30),))
    assert [file.name for file in night.files()] == ["b.parquet", "c.parquet"]
    np.testing.assert_allclose(night.scored()["prediction"].to_numpy(), expected(*tables), rtol=1e-6)
    found = pa.concat_tables([rejected(night, "a-00000-00001"), rejected(night, "a-00002-00002")])
    assert found.select(of_text(1).column_names).equals(of_text(30))
    assert found["_row"].to_pylist() == list(range(30))
    assert set(found["_reason"].to_pylist()) == {"bad_shard"}
    assert all("'f1'" in error and "string" in error for error in found["_error"].to_pylist())
    shards = night.manifest()["rejected_shards"]
    assert {(s["shard"], s["rows"]) for s in shards} == {
        (f"{night.input}/a.parquet", 20),
        (f"{night.input}/a.parquet", 10),
    }


def test_a_shard_without_a_footer_is_named_in_the_manifest(night: Night, model: Path) -> None:
    tables = [features(50, seed=i, first_id=50 * i) for i in range(2)]
    for i, table in enumerate(tables):
        night.shard(f"b{i}", table)
    (night.input / "a.parquet").write_bytes(b"")
    report = night.score(model, *REJECT)
    assert (report.rows_read, report.rows_scored, report.shards_rejected) == (100, 100, 1)
    assert report.lines()["bad shards"] == "1 rejected in part or whole"
    (shard,) = night.manifest()["rejected_shards"]
    assert (shard["shard"], shard["rows"]) == (f"{night.input}/a.parquet", None)
    assert "no readable Parquet file" in shard["error"]
    assert not (night.output / "_rejected").exists()


def test_a_shard_whose_pages_are_damaged_is_set_aside_by_row_numbers(night: Night, model: Path) -> None:
    table = features(50)
    night.shard("a", table)
    path = night.shard("b", features(40), group_rows=20)
    damage_data(path)
    with pytest.raises(ShardError, match=r"b\.parquet: row groups 0 to 1 cannot be read"):
        night.score(model, "--keys=id")
    report = night.score(model, *REJECT, "--split_rows=20")
    assert (report.rows_scored, report.rows_rejected, report.shards_rejected) == (70, 20, 1)
    found = rejected(night, "b-00000-00000")
    assert found.column_names == ["_shard", "_row", "_reason", "_error"]
    assert found["_row"].to_pylist() == list(range(20))
    # The row group behind the damaged one is scored.
    assert night.scored()["id"].to_pylist() == [*range(50), *range(20, 40)]


def test_too_many_rows_in_bad_shards_stop_the_run_before_it_begins(night: Night, model: Path) -> None:
    night.shard("a", of_text(30))
    night.shard("b", features(70))
    with pytest.raises(
        DataError, match=r"bad shards hold 30\.00% of the rows, more than --max_rejected=0\.29"
    ):
        night.score(model, *REJECT[:3], "--max_rejected=0.29")
    assert not list(night.output.rglob("*.parquet"))
    assert night.score(model, *REJECT[:3], "--max_rejected=0.3").rows_scored == 70


def test_a_shard_without_a_footer_counts_as_one_of_average_size(night: Night, model: Path) -> None:
    for i in range(3):
        night.shard(f"b{i}", features(50, seed=i))
    (night.input / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"bad shards hold 25\.00% of the rows"):
        night.score(model, *REJECT[:3], "--max_rejected=0.24")
    assert night.score(model, *REJECT[:3], "--max_rejected=0.25").rows_scored == 150


def test_where_no_shard_is_good_nothing_is_scored(night: Night, model: Path) -> None:
    for name in "ab":
        night.shard(name, features(1)).write_bytes(b"nothing")
    with pytest.raises(ShardError, match=r"no readable Parquet file .* in 2 of 2 shards"):
        night.score(model, *REJECT)


def test_rows_and_shards_count_together(night: Night, model: Path) -> None:
    night.shard("a", of_text(30))
    values = [None if i < 20 else 1.0 for i in range(70)]
    night.shard("b", features(70).set_column(1, "f0", pa.array(values, pa.float32())))
    with pytest.raises(DataError, match=r"50 of 100 rows were rejected \(30 bad_shard, 20 null\)"):
        night.score(model, *REJECT[:3], "--max_rejected=0.45")


def test_a_shard_that_is_written_anew_is_no_bad_shard(night: Night, model: Path) -> None:
    """It may be whole in a minute: rejecting it would lose good rows."""
    from job.scoring.split import score_split

    night.shard("a", features(50))
    planned = night.planned(model, *REJECT)
    night.shard("a", features(60))
    with pytest.raises(ShardChangedError, match="not the file that was planned"):
        score_split(planned.splits[0], planned.task, planned.loaded)


def test_after_a_kill_a_refused_split_is_not_refused_again(night: Night, model: Path) -> None:
    from job.commit import staging
    from job.scoring.split import score_split

    night.shard("a", of_text(30))
    night.shard("b", features(70))
    planned = night.planned(model, *REJECT)
    run = planned.task.run
    for split in planned.splits:
        receipt = score_split(split, planned.task, planned.loaded)
        staging.write_receipt(run.output, receipt)
        assert staging.read_receipt(run.output, run.run_id, split) == receipt


def test_the_policy_is_part_of_the_run(night: Night, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    night.shard("a", features(50))
    assert run_cli(capfd, "score", *night.args(model, "--keys=id"))[0] == 0
    code, _, err = run_cli(capfd, "score", *night.args(model, "--keys=id", "--on_bad_shard=reject"))
    assert code == 6, err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE], ids=os.strerror)
@pytest.mark.parametrize("opening", [0, 1], ids=["the footer", "the rows"])
def test_an_error_that_passes_rejects_nothing(
    night: Night, model: Path, monkeypatch: pytest.MonkeyPatch, number: int, opening: int
) -> None:
    """The rows are good, and the same command scores them when the disk has recovered."""
    night.shard("a", features(50))
    path = night.shard("b", features(40, first_id=50))
    real, times = pq.ParquetFile, [0]

    def fails(source: Any, *args: Any, **kwargs: Any) -> Any:
        if str(source) == str(path):
            times[0] += 1
            if times[0] == opening + 1:
                raise OSError(number, "Failed to open local file")
        return real(source, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", fails)
        with pytest.raises(
            StorageError, match=rf"b\.parquet: cannot be read: {os.strerror(number)}; run again"
        ):
            night.score(model, *REJECT)
    assert times[0] > opening
    assert not (night.output / "_SUCCESS").exists()
    report = night.score(model, *REJECT)
    assert (report.rows_scored, report.rows_rejected, report.shards_rejected) == (90, 0, 0)


@pytest.mark.parametrize("on_bad_shard", ["fail", "reject"])
def test_a_filling_that_columns_cannot_hold_is_told_before_anything_is_scored(
    night: Night, model: Path, on_bad_shard: str
) -> None:
    """For all columns at once, whether or not there is a null in them."""
    for i in range(3):
        night.shard(f"part-{i}", features(20, seed=i))
    night.shard("part-1", features(20).set_column(2, "f1", pa.array(range(20), pa.int8())))
    flags = (f"--on_bad_shard={on_bad_shard}", "--keys=id", "--max_rejected=1")
    with pytest.raises(SchemaError) as told:
        night.score(model, *flags, "--on_null=fill=none")
    for name, kind, shards in (("f0", "float", 3), ("f1", "float", 2), ("f1", "int8", 1), ("f3", "float", 3)):
        line = (
            rf"--on_null=fill=none: column {name} is {kind}, which cannot hold it: .* in {shards} of 3 shards"
        )
        assert told.match(line), line
    assert list(night.output.rglob("*")) == []
    # A value that one of three shards cannot hold makes that one a bad one.
    if on_bad_shard == "reject":
        assert night.score(model, *flags, "--on_null=fill=300").rows_rejected == 20
    else:
        with pytest.raises(SchemaError, match=r"^--on_null=fill=300: column f1 is int8.*in 1 of 3 shards"):
            night.score(model, *flags, "--on_null=fill=300")
    assert night.score(model, *flags, "--on_null=fill=30", "--if_exists=replace").rows_scored == 60
