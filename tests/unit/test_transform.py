"""``ScoreParquet`` in a pipeline of somebody else's, against the night of the command."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.runners.runner import PipelineRunner

from job import ScoreParquet, find_error, make_spec, score, transform
from job.commit import output
from job.engines.engine import Fit
from job.errors import DataError, ModelError, NoInputError, OutputConflictError, SchemaError, UsageError
from job.shards import inputs
from tests.support.nights import Night, dense, features, saved

STEPS = "ScoreParquet/Score a night"
GROUP_BY_KEY = "beam:transform:group_by_key:v1"


@pytest.fixture
def model(night: Night) -> Path:
    """The model of two shards of 400 rows, which are eight splits by ``flags``."""
    for i in range(2):
        night.shard(f"part-{i}", features(400, seed=i, first_id=i * 400), group_rows=100)
    return saved(dense(), night.folder / "m.keras")


def flags(night: Night, model: Path, **more: Any) -> dict[str, Any]:
    paths = {"input": night.input, "model": model, "output": night.output}
    return {**paths, "keys": ["id"], "split_rows": 100, "batch_size": 100, **more}


FLAGS = ("--keys=id", "--split_rows=100", "--batch_size=100")


def reports(folder: Path, *flags_of_beam: str, **given: Any) -> list[dict[str, Any]]:
    """Run a pipeline with a step after the night, and return what that step was given."""
    told = folder / "told"
    told.mkdir(exist_ok=True)

    def tell(report: dict[str, Any]) -> None:
        (told / f"{len(list(told.iterdir()))}.json").write_text(json.dumps(report))

    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *flags_of_beam])) as pipeline:
        pipeline | ScoreParquet(**given) | beam.Map(tell)
    found = [json.loads(path.read_text()) for path in sorted(told.iterdir())]
    for path in told.iterdir():
        path.unlink()
    return found


def fails(folder: Path, **given: Any) -> Exception:
    with pytest.raises(Exception, match=r".") as failed:
        reports(folder, **given)
    error = find_error(failed.value)
    assert error is not None, failed.value
    return error


def graph(night: Night, model: Path, **more: Any) -> Any:
    pipeline = beam.Pipeline("FnApiRunner")
    pipeline | ScoreParquet(**flags(night, model, **more))
    return pipeline.to_runner_api()


def test_the_steps_are_those_that_the_page_draws(night: Night) -> None:
    # Neither the shards nor the model are there yet.
    transforms = graph(night, night.folder / "m.keras").components.transforms
    (score,) = (one for one in transforms.values() if one.unique_name == STEPS)
    steps = [transforms[name].unique_name.removeprefix(f"{STEPS}/") for name in score.subtransforms]
    drawn = [line[:24].strip() for line in (transform.__doc__ or "").splitlines() if "→" in line]
    assert steps == drawn
    assert Counter(one.spec.urn for one in transforms.values())[GROUP_BY_KEY] == 2
    assert not night.output.exists()


def hints(pipeline: beam.Pipeline, night: Night, own: dict[str, str], **more: Any) -> dict[str, bytes]:
    """Return the resource hints that all steps of ``ScoreParquet`` have; a step after it has none of them."""
    step = ScoreParquet(**flags(night, night.folder / "m.keras", **more)).with_resource_hints(**own)
    pipeline | step | "Tell" >> beam.Map(print)
    components = pipeline.to_runner_api().components
    leaves = [one for one in components.transforms.values() if one.environment_id and not one.subtransforms]
    steps = [one for one in leaves if one.unique_name.startswith("ScoreParquet/")]
    assert len(steps) == len(leaves) - 1 > 8
    (environment,) = {one.environment_id for one in steps}
    return dict(components.environments[environment].resource_hints)


def test_workers_with_a_gpu_are_asked_for_and_what_a_person_asks_for_is_kept(night: Night) -> None:
    accelerator, ram = (
        kind.urn
        for kind in (common_urns.resource_hints.ACCELERATOR, common_urns.resource_hints.MIN_RAM_BYTES)
    )
    t4, l4 = b"type:nvidia-tesla-t4;count:1;install-nvidia-driver", b"type:nvidia-l4;count:1"

    def asked(*beam_args: str, own: str = "", device: str = "gpu") -> dict[str, bytes]:
        given = {"accelerator": own} if own else {}
        options = PipelineOptions(["--runner=FnApiRunner", *beam_args])
        return hints(beam.Pipeline(options=options), night, given, device=device)

    assert asked() == {accelerator: t4, ram: b"12000000000"}
    assert asked(device="auto") == {}
    assert asked(own=l4.decode()) == {accelerator: l4, ram: b"12000000000"}
    # Of a list of two, each is kept.
    in_options = f"--resource_hint=accelerator={l4.decode()}", "--resource_hints=min_ram=30GB"
    assert asked(*in_options) == {accelerator: l4, ram: b"30000000000"}


@pytest.mark.slow
def test_the_night_is_the_commands_and_a_step_may_follow(night: Night, model: Path) -> None:
    (report,) = reports(night.folder, "--direct_num_workers=2", **flags(night, model))
    assert report == json.loads((night.output / "_report.json").read_text())
    assert (report["rows_scored"], report["splits"], len(report["loads"])) == (800, 8, 1)
    assert not (night.output / "_staging").exists()
    night.check_as_embedded(model, *FLAGS)
    # One run by either way, so each finds the other's night.
    assert score(make_spec(**flags(night, model))).already_published
    files = {path: path.stat() for path in night.output.rglob("*")}
    (again,) = reports(night.folder, **flags(night, model))
    assert again == report
    assert {path: path.stat() for path in night.output.rglob("*")} == files


@pytest.mark.slow
def test_a_pipeline_that_fails_holds_nothing_and_another_goes_on(night: Night, model: Path) -> None:
    table = pq.read_table(night.input / "part-1.parquet")
    night.shard("part-1", table.drop_columns("f3"), group_rows=100)
    error = fails(night.folder, **flags(night, model))
    assert isinstance(error, SchemaError)
    assert "f3" in str(error)
    assert not (night.output / "_staging" / "lease").exists()
    values = table.column("f3").to_pylist()
    values[5] = None
    night.shard("part-1", table.set_column(4, "f3", [values]), group_rows=100)
    error = fails(night.folder, **flags(night, model, max_rejected=0.001))
    assert isinstance(error, DataError)
    assert "1 of 800" in str(error)
    assert night.files() == []
    (report,) = reports(night.folder, **flags(night, model, max_rejected=0.5))
    # How much may be rejected shapes no row: it is the same run.
    assert (report["rows_scored"], report["rows_rejected"]) == (799, 1)
    assert report["splits_reused"] >= 4


def test_paths_are_those_of_where_the_pipeline_was_built(
    night: Night, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(night.folder)
    given: dict[str, Any] = {"input": "in", "model": "m*.keras", "output": "out/{ds}", "ds": "2026-11-25"}
    pipeline = beam.Pipeline("FnApiRunner")
    pipeline | ScoreParquet(**given, keys=["id"])
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    pipeline.run().wait_until_finish()
    assert len(list((night.output / "2026-11-25").glob("*.parquet"))) == 2
    assert list(elsewhere.iterdir()) == []


def test_no_file_is_asked_for_before_the_pipeline_runs(night: Night) -> None:
    missing = flags(night, night.folder / "no.keras", input=night.folder / "no*")
    graph(night, night.folder / "no.keras", input=night.folder / "no*")
    assert isinstance(fails(night.folder, **missing), ModelError | NoInputError)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keys": ["id", "id"]}, "--keys: id is listed more than once; list it once"),
        ({"output": None}, "--output must be given; see scoring-job score --help"),
        ({"no_wait": True}, "--no_wait: who runs the pipeline says whether to wait for it; leave it out"),
        (
            {"model_sharing": "machine"},
            "--model_sharing=machine: nobody would end the model that your workers share; leave it out",
        ),
        ({"runner": "FlinkRunner"}, "--runner=FlinkRunner: a flag of the engine; give it as score(spec, "),
    ],
)
def test_what_is_wrong_is_told_where_it_is_built(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        ScoreParquet(**{"input": "in", "model": "m.keras", "output": "out", **given})
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("runner", "told"),
    [
        ("DaskRunner", "DaskRunner runs a step anew for each other step that wants its outcome; call score"),
        ("DataflowRunner", "in: on this machine's disk, which Dataflow's workers cannot see"),
    ],
)
def test_engines_that_cannot_do_it_are_refused(runner: str, told: str) -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    # Only now: a real one would look for its cluster, or for its bucket.
    pipeline.runner = type(runner, (PipelineRunner,), {})()
    with pytest.raises(UsageError, match=told):
        pipeline | ScoreParquet(input="in", model="m.keras", output="out")


def planned(night: Night, model: Path, **more: Any) -> transform.PlannedNight:
    spec = inputs.anchored(make_spec(**flags(night, model, **more)))
    return transform.prepare(spec, Fit(threads=1, here=True))


def test_the_lease_is_held_in_two_steps_and_who_publishes_second_is_refused(
    night: Night, model: Path
) -> None:
    one, other = planned(night, model), planned(night, model, batch_size=50)
    assert one.task is not None
    assert other.task is not None
    assert one.task.run.run_id != other.task.run.run_id
    assert not (night.output / "_staging" / "lease").exists()
    step = transform.ScoreSplitsOfNight(overlaps=True)
    receipts = {}
    for prepared in (one, other):
        step = transform.ScoreSplitsOfNight(overlaps=True)
        splits = [split for n in range(3) for split in transform.read_plan(n, prepared, 3)]
        assert len(splits) == 8
        receipts[id(prepared)] = [receipt for split in splits for receipt in step.process(split, prepared)]
    report = transform.publish(other, receipts[id(other)])
    assert report["batch_rows"] == [50]
    # An engine may repeat the step, and may have lost what it was given.
    assert transform.publish(other, []) == report
    with pytest.raises(OutputConflictError, match=f"it holds run {report['run_id'][:12]}, this is run "):
        transform.publish(one, receipts[id(one)])
    assert night.scored().num_rows == 800


def test_publishing_waits_for_another_that_publishes(night: Night, model: Path) -> None:
    one = planned(night, model)
    step = transform.ScoreSplitsOfNight(overlaps=True)
    receipts = [r for split in transform.read_plan(0, one, 1) for r in step.process(split, one)]
    is_held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with output.lease(str(night.output)):
            is_held.set()
            go_on.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(60)
    threading.Timer(1.5, go_on.set).start()
    assert transform.publish(one, receipts)["rows_scored"] == 800
    assert go_on.is_set()
    holder.join()


@pytest.mark.slow
def test_worker_processes_score_it_too(night: Night, model: Path) -> None:
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    (report,) = reports(night.folder, *workers, **flags(night, model))
    assert report["rows_scored"] == 800
    assert str(os.getpid()) not in {worker.rpartition(" ")[2] for worker in report["workers"]}
    night.check_as_embedded(model, *FLAGS)
