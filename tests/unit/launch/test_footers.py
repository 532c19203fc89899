"""Footers that workers read are those that the launcher reads, and its errors are theirs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.cli import options
from job.engines import choice
from job.errors import SchemaError, ShardChangedError
from job.launch import footers
from job.shards import inputs
from job.spec import ScoringSpec, Shard
from tests.support.nights import Night, dense, features, saved

RUN = "a" * 64


def shards_of(night: Night, count: int) -> list[Shard]:
    for i in range(count):
        table = features(3 + i % 5)
        if i % 7 == 0:
            table = table.append_column("word", pa.array(["x"] * table.num_rows).dictionary_encode())
        night.shard(f"ds={i % 2}/part-{i:04d}", table, group_rows=2)
    (night.input / "ds=1/part-0003.parquet").write_bytes(b"nothing")
    times = pa.StructArray.from_arrays([pa.array([1], pa.timestamp("us"))], ["at"])
    int96 = night.input / "ds=0/part-0002.parquet"
    table = features(1).append_column("t", times)
    pq.write_table(table, int96, use_deprecated_int96_timestamps=True, store_schema=False)
    return inputs.list_shards(ScoringSpec((str(night.input),), "m", str(night.output)))


def test_workers_find_what_the_launcher_finds(night: Night) -> None:
    shards = shards_of(night, 250)
    found = footers.read_on_workers(shards, str(night.output), RUN, choice.beam_options([]))
    here = inputs.read_footers(shards)
    assert [(f.group_rows, f.error) for f in found] == [(f.group_rows, f.error) for f in here]
    assert all(one.schema.equals(other.schema) for one, other in zip(found, here, strict=True))
    assert [f.int96 for f in found] == [f.int96 for f in here]
    ((field,),) = (footer.int96 for footer in found if footer.int96)
    assert (field.name, field.type) == ("t", pa.struct([("at", pa.timestamp("us"))]))
    assert len({id(footer.schema) for footer in found}) == 4
    assert sum(bool(footer.error) for footer in found) == 1


def test_a_shard_that_goes_away_is_told(night: Night) -> None:
    shards = shards_of(night, 4)
    Path(shards[-1].path).unlink()
    with pytest.raises(Exception, match="was listed and is gone"):
        footers.read_on_workers(shards, str(night.output), RUN, choice.beam_options([]))


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_run_whose_workers_read_the_footers(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: the launcher reads no footer at all."""
    from job.launch import score

    shards = shards_of(night, 12)
    model = saved(dense(), night.folder / "m.keras")
    named = ["--keys=id", "--features=f0,f1,f2,f3"]
    processes = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    spec, beam_args = options.parse(night.args(model, *named, *processes))
    monkeypatch.setattr(inputs, "ON_WORKERS", 10)

    def here(_: object) -> None:
        pytest.fail("the launcher read footers")

    monkeypatch.setattr(inputs, "read_footers", here)
    night.shard("ds=0/part-0002", features(5).drop_columns("f0"))
    with pytest.raises(SchemaError, match=r"'f0'.* in 1 of 12 shards") as told:
        score.score(spec, beam_args, announce=lambda line: None)
    assert "no readable Parquet file" in str(told.value)
    for name in ("ds=1/part-0003", "ds=0/part-0002"):
        night.shard(name, features(5))
    outcome = score.score(spec, beam_args, announce=lambda line: None)
    assert outcome.report.shards == len(shards)
    Path(night.output / "_SUCCESS").unlink()
    night.shard("ds=0/part-0004", features(9))
    spec, beam_args = options.parse(night.args(model, *named, *processes, "--if_exists=replace"))
    real = inputs.list_shards

    def gone(asked: ScoringSpec) -> list[Shard]:
        found = real(asked)
        Path(found[0].path).unlink()
        return found

    monkeypatch.setattr(inputs, "list_shards", gone)
    with pytest.raises(ShardChangedError, match="was listed and is gone"):
        score.score(spec, beam_args, announce=lambda line: None)
