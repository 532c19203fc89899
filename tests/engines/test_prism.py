"""The job on Beam's Prism, built from source: started by Beam itself, and as a service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.nights import Night, check_same_files, dense, features, saved
from tests.support.servers import prism
from tests.support.store_nights import until
from tests.support.worker_pool import external, free_port, worker_pool
from tests.unit.doctor.test_doctor import examined, not_ok

ROOT = Path(__file__).parents[2]
FLAGS = ("--keys=id", "--split_rows=500", "--batch_size=500")


def start(args: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "job", "score", *args], cwd=ROOT, stdout=out, stderr=out
        )


def report(night: Night) -> dict[str, Any]:
    return dict(json.loads((night.output / "_report.json").read_text()))


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_prism_started_by_beam_and_as_a_service_makes_the_night_of_the_embedded_engine(
    night: Night, tmp_path: Path
) -> None:
    for day in range(3):
        night.shard(f"ds=2013-12-0{day + 1}/part", features(3000, seed=day), group_rows=500)
    model = saved(dense(), night.folder / "m.keras")
    own = ["--runner=PrismRunner", f"--prism_location={prism.built()}"]
    job = start([*night.args(model, *FLAGS), *own], tmp_path / "log")
    assert job.wait(100) == 0, (tmp_path / "log").read_text()
    told = report(night)
    assert (told["rows_scored"], told["splits"]) == (9000, 18)
    assert len(told["loads"]) == len(told["workers"]) == 1
    night.check_as_embedded(model, *FLAGS)
    looped = night.beside("looped")
    with prism.served(tmp_path) as port:
        service = ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"]
        looped.score(model, *FLAGS, *service, "--environment_type=LOOPBACK")
        # Its workers are asked as any engine's are.
        checks = examined([*looped.args(model, *FLAGS), *service, "--environment_type=LOOPBACK"])
    assert not_ok(checks) == []
    assert checks["workers: model"].ok
    # In LOOPBACK the worker is this process.
    assert [int(worker.rpartition(":")[2]) for worker in report(looped)["workers"]] == [os.getpid()]
    check_same_files(night.files(), looped.files())


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_worker_that_is_killed_ends_the_job_and_the_same_command_resumes(
    night: Night, tmp_path: Path
) -> None:
    night.shard("part", features(60_000), group_rows=500)
    model = saved(dense(), night.folder / "m.keras")
    pool_port = free_port()
    with prism.served(tmp_path) as port, worker_pool(tmp_path, pool_port) as pool:
        engine = external(port, pool_port)
        job = start([*night.args(model, *FLAGS), *engine], tmp_path / "log")
        until(lambda: len(list(night.output.glob("_staging/*/receipts/*.json"))) >= 5, within_s=100)
        (worker,) = psutil.Process(pool.pid).children()
        worker.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        code = job.wait(60)
        assert time.monotonic() - killed_s < 30
        said = (tmp_path / "log").read_text()
        assert code in (1, 7), said
        assert sum(line.startswith("error: ") for line in said.splitlines()) == 1
        assert not (night.output / "_SUCCESS").exists()
        held = len(list(night.output.glob("_staging/*/receipts/*.json")))
        # The same job, from this process.
        told = night.score(model, *FLAGS, *engine)
    assert told.splits_reused >= held > 0
    night.check_as_embedded(model, *FLAGS)
