"""The Python worker that Flink's TaskManagers start, started by Beam's own worker pool."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.flink import settings
from tests.support import engine_checks
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until
from tests.support.worker_pool import PYTHON, external, free_port, job_service, listens

ROOT = Path(__file__).parents[2]
WITHIN_S = 150.0


@dataclass(frozen=True)
class Service:
    """Beam's job service, and a pool that starts the workers of a Flink cluster."""

    flags: tuple[str, ...]
    pool: subprocess.Popen[bytes]
    logs: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, forks: None) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    worker = worker_in(folder)
    pool_port = free_port()
    command = ["apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}"]
    command += [f"--container_executable={worker}"]
    with job_service(folder) as (job_port, _), started(command, folder) as pool:
        until(lambda: listens(pool_port), within_s=60)
        yield Service(tuple(external(job_port, pool_port)), pool, folder / "logs")
    until(lambda: not any(alive(int(path.name[7:])) for path in (folder / "run").iterdir()), within_s=20)


def worker_in(folder: Path) -> Path:
    """The script that a Flink cluster in this folder would have."""
    for part in ("run", "logs", "tmp"):
        (folder / part).mkdir()
    worker = folder / "worker"
    worker.write_text(settings.worker_script(folder))
    worker.chmod(0o755)
    return worker


@contextlib.contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / f"{command[0]}.log").open("wb") as log:
        one = subprocess.Popen([PYTHON, "-m", *command], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        yield one
    finally:
        # As a machine dies: its workers are told nothing.
        one.kill()
        one.wait()


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "job.boot" in process.cmdline()
    return False


@pytest.mark.slow
def test_its_night_is_that_of_the_embedded_engine(night: Night, service: Service) -> None:
    for day in range(3):
        night.shard(f"ds=2013-12-0{day + 1}/part", features(3000, seed=day), group_rows=500)
    model = saved(dense(), night.folder / "m.keras")
    args = [f"--input={night.input}", f"--model={model}", "--keys=id", "--split_rows=500", "--batch_size=500"]
    told = engine_checks.as_embedded(args, night.folder, service.flags, WITHIN_S)
    assert (told["rows_scored"], told["splits"]) == (9000, 18)
    # Nothing of ours was left uninstalled, and nothing else went wrong.
    assert [path.read_text() for path in service.logs.iterdir()] == [""]


@pytest.mark.slow
def test_one_that_is_killed_leaves_a_night_that_the_same_command_completes(
    night: Night, service: Service
) -> None:
    def kill(job: subprocess.Popen[bytes]) -> None:
        (worker,) = (one for one in psutil.Process(service.pool.pid).children() if alive(one.pid))
        worker.send_signal(signal.SIGKILL)

    told = engine_checks.killed(night, service.flags, kill, splits=16, survives=False, within_s=WITHIN_S)
    assert 0 < told["splits_reused"] < 16
