"""The pipeline: a graph of constant size, shuffles without rows, one report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import execution
from apache_beam.testing.util import assert_that

from job.commit import staging
from job.engines import choice
from job.errors import DataError, StateUnknownError
from job.pipeline import Publish, ScorePlan
from job.scoring.split import score_split
from job.scoring.worker import PlanSlice, ReadPlan, ScoreSplits
from job.spec import Receipt, Shard, Split
from tests.support.nights import Night, Planned, dense, features, saved

GROUP_BY_KEY = "beam:transform:group_by_key:v1"


def run(planned: Planned, *args: str) -> Any:
    pipeline = beam.Pipeline(options=choice.beam_options(args))
    pipeline | ScorePlan(planned.path, planned.task)
    return pipeline.run().wait_until_finish()


def graph(planned: Planned) -> Any:
    pipeline = beam.Pipeline(options=choice.beam_options([]))
    pipeline | ScorePlan(planned.path, planned.task)
    return pipeline.to_runner_api()


def two_shards(night: Night, rows: int) -> Planned:
    """Eight splits of ``rows / 4`` rows each."""
    for i in range(2):
        night.shard(f"part-{i}", features(rows, seed=i, first_id=i * rows), group_rows=rows // 4)
    path = saved(dense(4), night.folder / "m.keras")
    planned = night.planned(path, "--keys=id", f"--split_rows={rows // 4}", "--batch_size=1000")
    assert len(planned.splits) == 8
    return planned


def test_the_steps_are_those_that_the_page_draws(night: Night) -> None:
    proto = graph(two_shards(night, 100))
    transforms = proto.components.transforms
    (score,) = (t for t in transforms.values() if t.unique_name == "ScorePlan")
    steps = [transforms[name].unique_name.removeprefix("ScorePlan/") for name in score.subtransforms]
    assert steps == [
        "Name the plan",
        "Read the plan",
        "Spread the splits",
        "Score the splits",
        "Count the splits",
        "Gather",
        "Gather all receipts",
        "Publish",
    ]
    assert Counter(t.spec.urn for t in transforms.values())[GROUP_BY_KEY] == 2


def test_the_graph_does_not_grow_with_the_shards(night: Night) -> None:
    planned = two_shards(night, 100)
    one = len(graph(planned).SerializeToString())
    shards = [Shard(f"/in/part-{i:04d}.parquet", 1000, "1") for i in range(1000)]
    splits = [Split(f"part-{i:04d}", shard, (0,), 0, 50) for i, shard in enumerate(shards)]
    many = replace(planned.task.run, shards=1000, splits=1000, rows=50_000)
    path = staging.write_plan(many.output, many.run_id, splits)
    assert Path(path).stat().st_size > 50_000
    grown = Planned(replace(planned.task, run=many), tuple(splits), planned.loaded, path)
    # Three numbers of a few more digits, and what is compressed differs by some 50 bytes from time to time. A
    # thousand splits would be thousands, however well compressed.
    assert abs(len(graph(grown).SerializeToString()) - one) < 500


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["multi_threading", "in_memory"])
def test_what_crosses_a_shuffle_does_not_depend_on_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    crossed: list[int] = []
    for kind in (execution.GroupingBuffer, execution.ListBuffer):
        append = kind.append

        def watched(self: Any, element: bytes, append: Any = append) -> None:
            crossed.append(len(element))
            append(self, element)

        monkeypatch.setattr(kind, "append", watched)
    bytes_crossed = {}
    for rows in (100, 100_000):
        crossed.clear()
        planned = two_shards(Night(tmp_path / str(rows)), rows)
        run(planned, f"--direct_running_mode={mode}")
        assert crossed, "nothing was watched"
        bytes_crossed[rows] = sum(crossed)
    # 200,000 rows more, of 20 bytes each at the least; the receipts of eight splits hold numbers of a few
    # more digits, and histograms of a few more bins: some hundreds of bytes, of however many rows.
    assert abs(bytes_crossed[100_000] - bytes_crossed[100]) < 8 * 600
    assert bytes_crossed[100_000] < 50_000


def test_all_splits_come_through_two_threads_and_one_load(night: Night) -> None:
    planned = two_shards(night, 1000)
    run(planned, "--direct_num_workers=2")
    report = json.loads((night.output / "_report.json").read_text())
    assert (report["splits"], report["rows_scored"], report["traces"]) == (8, 2000, 1)
    assert [load["load"] for load in report["loads"]] == [planned.loaded.load]
    assert night.scored().column("id").to_pylist() == list(range(2000))


@pytest.mark.slow
def test_the_result_is_one_report_that_others_can_go_on_with(night: Night) -> None:
    planned = two_shards(night, 100)

    def check(reports: list[str]) -> None:
        (report,) = reports
        assert json.loads(report)["rows_scored"] == 200

    with beam.Pipeline(options=choice.beam_options([])) as pipeline:
        assert_that(pipeline | ScorePlan(planned.path, planned.task), check)


def receipts_of(planned: Planned) -> list[Receipt]:
    return [score_split(split, planned.task, planned.loaded) for split in planned.splits]


def test_publish_refuses_workers_that_built_different_weights(night: Night) -> None:
    planned = two_shards(night, 100)
    receipts = [replace(r, weights_digest="a" * 64) for r in receipts_of(planned)]
    receipts[5] = replace(receipts[5], weights_digest="b" * 64)
    with pytest.raises(DataError, match=r"weights a{12} in one worker and b{12} in another; give --weights"):
        Publish(planned.task.run)(0, receipts)
    left = staging.failure(planned.task.run.output, planned.task.run.run_id)
    assert isinstance(left, DataError)
    assert night.files() == []
    assert not (night.output / "_SUCCESS").exists()


def test_publish_refuses_when_a_split_is_missing(night: Night) -> None:
    planned = two_shards(night, 100)
    with pytest.raises(StateUnknownError, match="7 of 8 splits have a receipt"):
        Publish(planned.task.run)(0, receipts_of(planned)[1:])
    assert night.files() == []


def test_a_plan_that_is_gone_is_not_a_night_without_rows(night: Night) -> None:
    planned = two_shards(night, 100)
    Path(planned.path).unlink()
    with pytest.raises(StateUnknownError, match=r"plan\.jsonl: the run's plan is gone"):
        list(ReadPlan(planned.task.run)(PlanSlice(planned.path, 0, 1)))
    step = ScoreSplits(planned.task)
    step.setup()
    with pytest.raises(StateUnknownError, match="the run's plan is gone"):
        list(step.process(planned.splits[0]))
    with pytest.raises(Exception, match="the run's plan is gone"):
        run(planned)


def test_an_engine_may_repeat_every_step_after_the_night_is_published(night: Night) -> None:
    planned = two_shards(night, 100)
    receipts = receipts_of(planned)
    first = json.loads(Publish(planned.task.run)(0, receipts))
    files = {path: path.stat() for path in night.files()}
    assert list(ReadPlan(planned.task.run)(PlanSlice(planned.path, 0, 1))) == []
    step = ScoreSplits(planned.task)
    step.setup()
    assert [receipt for split in planned.splits for receipt in step.process(split)] == []
    again = json.loads(Publish(planned.task.run)(0, receipts))
    assert first == again
    assert {path: path.stat() for path in night.files()} == files
    assert night.scored().num_rows == 200
    assert not (night.output / "_staging").exists()
