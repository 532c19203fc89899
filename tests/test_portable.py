"""The job through Beam's portable job service and a worker pool, each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.nights import Night, dense, features, saved
from tests.pools import free_port, listens, worker_pool
from tests.store_nights import until

ROOT = Path(__file__).parents[1]


@dataclass
class Service:
    """A job service and a worker pool; ``flags`` lead a job to them."""

    job_port: int
    pool_port: int
    job_service: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]

    @property
    def flags(self) -> list[str]:
        return [
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{self.job_port}"),
            *("--environment_type=EXTERNAL", f"--environment_config=localhost:{self.pool_port}"),
        ]


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    ports = free_port(), free_port()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["-m", "apache_beam.runners.portability.local_job_service_main", f"--port={ports[0]}"]
    with worker_pool(folder, ports[1]) as pool, (folder / "service.log").open("wb") as log:
        job_service = subprocess.Popen(
            [sys.executable, *command, "--staging_dir=s"], cwd=folder, env=env, stdout=log, stderr=log
        )
        try:
            until(lambda: listens(ports[0]), within_s=60)
            yield Service(*ports, job_service, pool)
        finally:
            job_service.kill()
            job_service.wait()


def run(args: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "job", "score", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.slow
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
    beside = Night(night.folder / "embedded")
    beside.folder.mkdir()
    beside.input.symlink_to(night.input)
    beside.score(path, *flags)
    assert len(night.files()) == 18
    for ours, theirs in zip(night.files(), beside.files(), strict=True):
        assert pq.ParquetFile(ours).read().equals(pq.ParquetFile(theirs).read())


@pytest.mark.slow
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
