"""The job through Beam's portable job service and a worker pool, each a process of its own on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until
from tests.support.worker_pool import service

ROOT = Path(__file__).parents[2]


def run(args: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "job", "score", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_worker_pool_makes_the_night_of_the_embedded_engine(night: Night, tmp_path: Path) -> None:
    for day in range(3):
        night.shard(f"ds=2013-12-0{day + 1}/part", features(3000, seed=day), group_rows=500)
    path = saved(dense(), night.folder / "m.keras")
    flags = ["--keys=id", "--split_rows=500", "--batch_size=500"]
    with service(tmp_path) as one:
        done = run([*night.args(path, *flags), *one.flags])
        assert done.returncode == 0, done.stderr
        told = json.loads((night.output / "_report.json").read_text())
        assert (told["rows_scored"], told["splits"]) == (9000, 18)
        # A process other than this one, which loaded it once.
        assert len(told["loads"]) == len(told["workers"]) >= 1
        again = run([*night.args(path, *flags), *one.flags])
        assert (again.returncode, "already published" in again.stdout + again.stderr) == (0, True)
    assert len(night.files()) == 18
    night.check_as_embedded(path, *flags)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_job_service_that_is_killed_ends_the_job_and_the_same_command_resumes(
    night: Night, tmp_path: Path
) -> None:
    night.shard("part", features(60_000), group_rows=100)
    path = saved(dense(), night.folder / "m.keras")
    args = night.args(path, "--keys=id", "--split_rows=100", "--batch_size=100")
    (tmp_path / "first").mkdir()
    with service(tmp_path / "first") as one:
        log = (tmp_path / "log").open("wb")
        with log:
            job = subprocess.Popen(
                [sys.executable, "-m", "job", "score", *args, *one.flags], cwd=ROOT, stdout=log, stderr=log
            )
        until(lambda: len(list(night.output.glob("_staging/*/receipts/*.json"))) >= 5, within_s=100)
        one.job_service.kill()
        start_s = time.monotonic()
        code = job.wait(120)
        assert time.monotonic() - start_s < 60
    said = (tmp_path / "log").read_text()
    assert code in (1, 7), said
    assert not (night.output / "_SUCCESS").exists()
    # Its worker has ended with it.
    held = len(list(night.output.glob("_staging/*/receipts/*.json")))
    done = run(args)
    assert done.returncode == 0, done.stderr
    told = json.loads((night.output / "_report.json").read_text())
    assert told["splits_reused"] >= held > 0
    assert night.scored()["id"].to_pylist() == list(range(60_000))
