"""Which engine runs, with how many workers, and how many threads each of them gets."""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import version

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from job.engines import choice
from job.errors import EngineError
from tests.support.nights import Night, dense, features, saved

FULL_PATH = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_cores_are_those_that_this_process_may_use() -> None:
    assert choice.cores() == 8


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
        (["--runner=FlinkRunner"], "FlinkRunner", "in_memory", 1, 0),
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
    assert choice.tensorflow_threads(options) == threads
    assert (choice.name(PipelineOptions(args)) == choice.EMBEDDED) == (runner == "FnApiRunner")


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
    assert choice._processes(choice.beam_options(args)) == processes


def test_one_model_for_all_where_there_are_several_processes() -> None:
    def fit(*args: str) -> choice.Fit:
        return choice.fit(choice.beam_options(args), "key")

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


@pytest.mark.parametrize("runner", ["fnapirunner", "FnApi", choice.EMBEDDED, FULL_PATH])
def test_the_embedded_runner_by_any_of_its_names(runner: str) -> None:
    options = choice.beam_options([f"--runner={runner}"])
    assert options.view_as(DirectOptions).direct_running_mode == "multi_threading"
    assert choice.scores_here(options)


@pytest.mark.parametrize(
    ("args", "here"),
    [
        ([], True),
        (["--direct_running_mode=in_memory"], True),
        (["--direct_running_mode=multi_processing"], False),
        (["--runner=FlinkRunner"], False),
    ],
)
def test_where_rows_are_scored(args: list[str], here: bool) -> None:
    assert choice.scores_here(choice.beam_options(args)) == here


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_job_server_that_does_not_answer(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_ANSWER_S", 1.0)
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
    assert choice.told("FnApiRunner", error) is error
