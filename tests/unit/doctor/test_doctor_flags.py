"""``job doctor`` refuses what ``job score`` would, and asks for the GPU that a night is to be scored on."""

from __future__ import annotations

import pytest

from tests.support.nights import Night, dense, features, saved
from tests.support.worker_pool import free_port
from tests.unit.doctor.test_doctor import NOBODY, examined, not_ok
from tests.unit.model.test_devices import without_gpu


def args_of(night: Night) -> list[str]:
    night.shard("part", features(100))
    return night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")


def test_what_the_engine_does_not_take(night: Night) -> None:
    checks = examined([*args_of(night), "--no_wait"])
    assert not_ok(checks) == ["flags"]
    assert checks["flags"].told.startswith("--no_wait: the job would end with this command")
    assert checks["flags"].fix
    assert checks["workers"].ok is None


def test_a_night_on_this_disk_for_machines_of_googles(night: Night) -> None:
    checks = examined([*args_of(night), "--runner=DataflowRunner", "--no_wait", "--device=gpu"])
    assert not_ok(checks) == ["flags", "input", "model", "output"]
    needed = "--project, --region, --temp_location"
    assert f"needs {needed} as well" in checks["flags"].told + checks["flags"].fix
    for name, path in (("input", night.input), ("model", night.folder), ("output", night.output)):
        assert checks[name].told.startswith(f"{path}")
        assert ": on this machine's disk" in checks[name].told
    assert "disk" not in checks


@pytest.mark.slow
@without_gpu
def test_a_gpu_is_asked_for_where_the_rows_are_scored(night: Night) -> None:
    # Here it is the embedded engine's process, as for any worker.
    checks = examined([*args_of(night), "--device=gpu"])
    assert not_ok(checks) == ["workers: gpu"]
    assert "--device=gpu: TensorFlow sees no GPU on " in checks["workers: gpu"].told


@pytest.mark.parametrize("flag", ["keys", "features", "challenger_features"])
def test_a_column_that_a_flag_names_is_in_the_first_shard(night: Night, flag: str) -> None:
    args = [*args_of(night), *NOBODY, f"--job_endpoint=localhost:{free_port()}"]
    args = [*args[:3], *args[4:], f"--challenger={night.folder / 'm.keras'}"]
    first = night.input / "part.parquet"
    told = examined([*args, f"--{flag}=f0,F1"])["input"]
    assert (told.ok, told.fix) == (False, "correct it")
    assert told.told == f"--{flag} names 'F1', which is no column of {first} (closest: 'f1')"
    assert examined([*args, f"--{flag}=f0,f1"])["input"].ok
    # It may be a bad one, and the others have the column.
    assert examined([*args, f"--{flag}=f0,F1", "--on_bad_shard=reject"])["input"].ok
