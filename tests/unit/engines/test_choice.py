"""Which engine runs, with how many workers, and how many threads each of them gets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from importlib.metadata import version
from typing import Any, ClassVar, NoReturn

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from job.doctor import engine as doctor_engine
from job.engines import choice, embedded, engine
from job.engines.engine import Check, Engine, Fit, cores
from job.errors import EngineError
from tests.support.nights import Night, dense, features, run_cli, saved

FULL_PATH = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_cores_are_those_that_this_process_may_use() -> None:
    assert cores() == 8


@pytest.mark.parametrize(
    ("args", "runner", "mode", "workers", "threads"),
    [
        # Nothing said: this process, a worker thread per core, each with a thread of TensorFlow's.
        ([], "FnApiRunner", "multi_threading", 8, 1),
        (["--runner=FnApiRunner"], "FnApiRunner", "multi_threading", 8, 1),
        # What a person says is kept, also where it is Beam's own default.
        (["--direct_num_workers=2"], "FnApiRunner", "multi_threading", 2, 4),
        (["--direct_num_workers", "3"], "FnApiRunner", "multi_threading", 3, 2),
        (["--direct_num_workers=1"], "FnApiRunner", "multi_threading", 1, 8),
        (["--direct_num_workers=16"], "FnApiRunner", "multi_threading", 16, 1),
        # To Beam 0 is one per core.
        (["--direct_num_workers=0"], "FnApiRunner", "multi_threading", 0, 1),
        (["--direct_running_mode=multi_processing"], "FnApiRunner", "multi_processing", 8, 1),
        # One thread scores, whatever the number of workers.
        (["--direct_running_mode=in_memory"], "FnApiRunner", "in_memory", 8, 8),
        (["--direct_running_mode", "in_memory", "--direct_num_workers=4"], "FnApiRunner", "in_memory", 4, 8),
        # Elsewhere the workers are not known here.
        (["--runner=SparkRunner"], "SparkRunner", "in_memory", 1, 0),
        # A cluster that the job server starts has a slot for each core.
        (["--runner=FlinkRunner"], "FlinkRunner", "in_memory", 1, 1),
        (["--runner", "PrismRunner"], "PrismRunner", "in_memory", 1, 0),
        (["--runner=DirectRunner"], "DirectRunner", "in_memory", 1, 0),
    ],
)
def test_defaults_give_way_to_what_is_asked(
    args: list[str], runner: str, mode: str, workers: int, threads: int
) -> None:
    options = choice.beam_options(args)
    direct = options.view_as(DirectOptions)
    assert options.view_as(StandardOptions).runner == runner
    assert (direct.direct_running_mode, direct.direct_num_workers) == (mode, workers)
    assert choice.engine(options).threads() == threads
    assert (choice.name(PipelineOptions(args)) == embedded.NAME) == (runner == "FnApiRunner")


@pytest.mark.parametrize(
    ("args", "processes"),
    [
        (["--runner=PortableRunner"], 1),
        (["--runner=FlinkRunner", "--sdk_worker_parallelism=3"], 3),
        # 0 leaves the number to the runner, which takes the cores.
        (["--runner=SparkRunner", "--sdk_worker_parallelism=0"], 0),
        (["--runner=PrismRunner"], 1),
        (["--runner=some.other.Runner"], -1),
    ],
)
def test_how_many_processes_share_a_workers_cores(args: list[str], processes: int) -> None:
    assert choice.engine(choice.beam_options(args)).processes() == processes


def test_one_model_for_all_where_there_are_several_processes() -> None:
    def fit(*args: str) -> Fit:
        return choice.engine(choice.beam_options(args)).fit("key")

    assert (fit().machine, fit().here) == ("", True)
    processes = fit("--direct_running_mode=multi_processing")
    assert (processes.machine, processes.here) == ("key", True)
    elsewhere = fit("--runner=PortableRunner")
    assert (elsewhere.machine, elsewhere.here, elsewhere.threads, elsewhere.processes) == ("key", False, 0, 1)


def test_other_flags_reach_beam_untouched() -> None:
    flink = ["--flink_master=[local]", "--environment_cache_millis=1", "--job_name=night"]
    args = ["--runner=FlinkRunner", *flink, "--experiments=a", "--experiments=b"]
    options = choice.beam_options(args)
    found = options.get_all_options(drop_default=True)
    assert found == PipelineOptions(args).get_all_options(drop_default=True)
    assert (found["flink_master"], found["experiments"]) == ("[local]", ["a", "b"])


@pytest.mark.parametrize("runner", ["fnapirunner", "FnApi", embedded.NAME, FULL_PATH])
def test_the_embedded_runner_by_any_of_its_names(runner: str) -> None:
    options = choice.beam_options([f"--runner={runner}"])
    assert options.view_as(DirectOptions).direct_running_mode == "multi_threading"
    assert not choice.engine(options).reads_footers()


@pytest.mark.parametrize(
    ("args", "here"),
    [
        ([], True),
        (["--direct_running_mode=in_memory"], True),
        (["--direct_running_mode=multi_processing"], False),
        (["--runner=FlinkRunner"], False),
    ],
)
def test_where_workers_read_footers(args: list[str], here: bool) -> None:
    assert choice.engine(choice.beam_options(args)).reads_footers() != here


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_job_server_that_does_not_answer(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_ANSWER_S", 1.0)
    night.shard("a", features(10))
    path = saved(dense(4), night.folder / "m.keras")
    endpoint = f"127.0.0.1:{closed_port()}"
    began_s = time.monotonic()
    with pytest.raises(
        EngineError, match=rf"--job_endpoint={endpoint}: no answer within 1 s; start"
    ) as raised:
        night.score(path, "--keys=id", "--runner=PortableRunner", f"--job_endpoint={endpoint}")
    assert raised.value.exit_code == 7
    assert time.monotonic() - began_s < 30


def test_an_engine_that_cannot_be_started(night: Night) -> None:
    night.shard("a", features(10))
    path = saved(dense(4), night.folder / "m.keras")
    with pytest.raises(EngineError, match=r"--runner=PrismRunner: .*no_such_prism: there is no") as raised:
        night.score(path, "--keys=id", "--runner=PrismRunner", "--prism_location=no_such_prism")
    assert raised.value.exit_code == 7
    build = "go install github.com/apache/beam/sdks/v2/go/cmd/prism@v"
    assert f"{build}{version('apache-beam')}`" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_worker_that_fails_is_no_engine_that_fails() -> None:
    error = RuntimeError("from a worker")
    assert choice.engine(choice.beam_options([])).told(error) is error


class House(Engine):
    """An engine that Beam does not have: its embedded runner, with three threads."""

    title = "House"

    def fill(self, given: Collection[str], /) -> None:
        direct = self.options.view_as(DirectOptions)
        direct.direct_num_workers = 3
        direct.direct_running_mode = "multi_threading"

    def fit(self, key: str = "") -> Fit:
        return Fit(threads=2, slices=3, here=True)

    def checks(self) -> list[Check]:
        return [Check("House", True, "its door is open")]

    def told(self, error: Exception) -> Exception:
        return EngineError(f"the house fell down: {error}")


class HouseRunner(FnApiRunner):
    """What ``--runner=house`` stands for."""

    ran: ClassVar[list[str]] = []

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        self.ran.append(str(options.view_as(StandardOptions).runner))
        return super().run_pipeline(pipeline, options)


def test_an_engine_is_one_class_and_one_entry(
    night: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{__name__}.HouseRunner"
    house = choice.Registration("HouseRunner", f"{__name__}:House", path)
    monkeypatch.setattr(choice, "ENGINES", (*choice.ENGINES, house))
    monkeypatch.setattr(HouseRunner, "ran", [])
    night.shard("a", features(50), group_rows=10)
    model = saved(dense(4), night.folder / "m.keras")
    flags = night.args(model, "--keys=id", "--split_rows=10")
    code, _, err = run_cli(capfd, "score", *flags, "--runner=House")
    assert code == 0, err
    assert HouseRunner.ran == [path]
    assert night.scored().num_rows == 50
    options = choice.beam_options(["--runner=house"])
    assert [check.told for check in doctor_engine.calls(options)["House"]()] == ["its door is open"]
    # What the engine says of its own failures is what a person reads.
    monkeypatch.setattr(HouseRunner, "run_pipeline", no_house)
    code, _, err = run_cli(capfd, "score", *flags, "--runner=House", "--batch_size=7", "--if_exists=replace")
    assert (code, "the house fell down: no house" in err) == (7, True), err
    code, _, err = run_cli(capfd, "score", *flags, "--runner=Houses")
    assert (code, "did you mean HouseRunner?" in err) == (2, True), err


def no_house(*_: Any) -> NoReturn:
    raise RuntimeError("no house")
