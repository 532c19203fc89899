"""Which engine runs, with how many workers, and how many threads each of them gets."""

from __future__ import annotations

import os

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from job import engines


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_cores_are_those_that_this_process_may_use() -> None:
    assert engines.cores() == 8


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
    options = engines.beam_options(args)
    direct = options.view_as(DirectOptions)
    assert options.view_as(StandardOptions).runner == runner
    assert (direct.direct_running_mode, direct.direct_num_workers) == (mode, workers)
    assert engines.tensorflow_threads(options) == threads
    assert engines.is_embedded(args) == (runner == "FnApiRunner")


def test_other_flags_reach_beam_untouched() -> None:
    args = ["--runner=FlinkRunner", "--flink_master=host:8081", "--experiments=a", "--experiments=b"]
    options = engines.beam_options(args)
    found = options.get_all_options(drop_default=True)
    assert found == PipelineOptions(args).get_all_options(drop_default=True)
    assert (found["flink_master"], found["experiments"]) == ("host:8081", ["a", "b"])
