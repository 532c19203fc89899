"""The backend and the device: asked of the process that scores, and told where they are not to be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.portability import common_urns
from apache_beam.runners.portability.fn_api_runner import translations

from job.engines import choice
from job.errors import ModelError, PreflightError
from job.model import artifact, devices
from job.pipeline import ScorePlan
from job.scoring import worker
from job.spec import ModelReference
from tests.support.nights import Night, dense, features, saved

HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
ON_WORKERS = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")


@pytest.fixture
def small(night: Night) -> Path:
    night.shard("a", features(10))
    return saved(dense(4), night.folder / "m.keras")


@without_gpu
def test_a_gpu_that_is_not_there(small: Path) -> None:
    reference = ModelReference(str(small), None, False, "0" * 64)
    with pytest.raises(PreflightError, match=r"^--device=gpu: TensorFlow sees no GPU on \S+; use") as raised:
        devices.configure(reference, "gpu", 0)
    assert raised.value.exit_code == 4
    devices.configure(reference, "cpu", 1)
    devices.configure(reference, "auto", 0)


@pytest.mark.slow
@without_gpu
def test_a_gpu_is_looked_for_where_the_rows_are_scored(
    small: Path, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PreflightError, match="sees no GPU on"):
        night.score(small, "--keys=id", "--device=gpu")
    assert not (night.output / "_staging").exists() or not list(night.output.glob("_staging/*/plan.jsonl"))
    # A launcher without a GPU may have workers with one: now it is a worker that fails, when all is planned.
    with pytest.raises(PreflightError, match="sees no GPU on"):
        night.score(small, "--keys=id", "--device=gpu", *ON_WORKERS)
    assert list(night.output.glob("_staging/*/plan.jsonl"))


def proto_of(small: Path, night: Night, *flags: str, device: str = "gpu") -> Any:
    planned = night.planned(small, "--keys=id")
    options = choice.beam_options(flags)
    pipeline = beam.Pipeline(options=options)
    transform = ScorePlan(planned.path, planned.task)
    pipeline | transform.with_resource_hints(**choice.engine(options).hints(device))
    return pipeline.to_runner_api()


def hints_of(proto: Any) -> list[dict[str, bytes]]:
    """The hints of each environment that a step of the pipeline runs in."""
    steps = proto.components.transforms.values()
    leaves = [step for step in steps if step.environment_id and not step.subtransforms]
    assert len(leaves) > 5
    used = {step.environment_id for step in leaves}
    names = {
        common_urns.resource_hints.ACCELERATOR.urn: "accelerator",
        common_urns.resource_hints.MIN_RAM_BYTES.urn: "min_ram",
    }
    environments = (proto.components.environments[name] for name in sorted(used))
    return [{names[urn]: value for urn, value in one.resource_hints.items()} for one in environments]


@pytest.mark.slow
def test_all_steps_ask_for_the_same_workers(small: Path, night: Night) -> None:
    gpu = b"type:nvidia-tesla-t4;count:1;install-nvidia-driver"
    assert hints_of(proto_of(small, night)) == [{"accelerator": gpu, "min_ram": b"12000000000"}]
    assert hints_of(proto_of(small, night, device="auto")) == [{}]
    # What a person asks for is kept.
    own = ("--resource_hint=accelerator=type:nvidia-l4;count:1", "--resource_hints=min_ram=30GB")
    expected = {"accelerator": b"type:nvidia-l4;count:1", "min_ram": b"30000000000"}
    assert hints_of(proto_of(small, night, *own)) == [expected]
    assert hints_of(proto_of(small, night, *own, device="auto")) == [expected]


def test_no_shuffle_lies_between_reading_and_predicting(small: Path, night: Night) -> None:
    proto = proto_of(small, night)
    _, stages = translations.create_and_optimize_stages(
        proto,
        phases=[translations.expand_gbk, translations.sink_flattens, translations.greedily_fuse],
        known_runner_urns=frozenset([common_urns.primitives.GROUP_BY_KEY.urn]),
    )
    steps = [[step.unique_name.rpartition("/")[2] for step in stage.transforms] for stage in stages]
    # Three stages around two shuffles, of splits and of receipts; the rows are read, predicted and written
    # within one step of the middle one.
    assert len(steps) == 3
    (fused,) = [names for names in steps if "Score the splits" in names]
    assert (fused[0], fused[-1]) == ("Read", "Write")
    (environment,) = {stage.environment for stage in stages}
    assert proto.components.environments[environment].resource_hints


@pytest.mark.parametrize(
    ("threads", "processes", "expected"),
    [(3, -1, 3), (3, 2, 3), (0, -1, 0), (0, 1, 8), (0, 2, 4), (0, 3, 2), (0, 16, 1), (0, 0, 1)],
)
def test_a_worker_divides_its_cores_by_its_processes(
    threads: int, processes: int, expected: int, small: Path, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(night.planned(small, "--keys=id").task, threads=threads, processes=processes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert worker._threads(task) == expected


def test_each_process_has_a_gpu_of_its_own_while_there_are_enough(tmp_path: Path) -> None:
    program = (
        "import sys; from job.model import devices; print(devices.own_gpu(2), flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program]
        return subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def told(process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        return int(process.stdout.readline())

    started = [start()]
    try:
        assert told(started[0]) == 0
        started.append(start())
        assert told(started[1]) == 1
        started.append(start())
        assert told(started[2]) == started[2].pid % 2
        # One that was killed gives its own back.
        started[0].kill()
        started[0].wait(20)
        started.append(start())
        assert told(started[3]) == 0
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=20)


def test_keras_settings_say_which_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    def found() -> str:
        return artifact.resolve(str(small), None, trusted=False, sha256=None).backend

    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert found() == "tensorflow"
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert found() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert found() == "tensorflow"


def test_another_backend_makes_another_run_and_no_other_process_may_mix_them(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ModelReference(str(small), None, False, "0" * 64)
    assert ours.identity == "0" * 64
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    theirs = artifact.resolve(str(small), None, trusted=False, sha256=None)
    assert theirs.identity == f"{theirs.digest} jax"
    # This process has imported Keras already, on TensorFlow.
    with pytest.raises(ModelError, match="Keras runs on tensorflow here, the run was planned with jax"):
        devices.configure(theirs, "auto", 0)
