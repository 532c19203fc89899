"""A real Dask cluster for a test: a scheduler and workers, each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 60


@dataclass
class Cluster:
    """Its processes may be killed by the test; the rest is ended after it."""

    folder: Path
    env: dict[str, str]
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """``tcp://HOST:PORT`` of the scheduler."""
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def add_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker of one thread; it registers within seconds."""
        number = len(self.workers)
        log = (self.folder / f"worker{number}.log").open("wb")
        command = ["-m", "distributed.cli.dask_worker", self.address, "--nthreads=1", "--no-dashboard"]
        command += ["--host=127.0.0.1", "--no-nanny", f"--local-directory={self.folder / f'worker{number}'}"]
        with log:
            worker = _start(command, self.env, log.fileno())
        self.workers.append(worker)
        return worker

    def wait_for(self, workers: int) -> None:
        """Return when so many workers have registered."""
        from dask import distributed

        with distributed.Client(self.address, timeout=START_S, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=START_S)


def _start(command: list[str], env: dict[str, str], log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=log)


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2, path: Path | None = None) -> Iterator[Cluster]:
    """A scheduler and its workers, which find modules in ``path`` too; ``folder`` gets what they log."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (ROOT, path))))}
    told = folder / "scheduler.json"
    command = ["-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard"]
    with (folder / "scheduler.log").open("wb") as log:
        scheduler = _start([*command, f"--scheduler-file={told}"], env, log.fileno())
    cluster = Cluster(folder, env, scheduler)
    try:
        give_up_s = time.monotonic() + START_S
        while not told.exists():
            assert scheduler.poll() is None, (folder / "scheduler.log").read_text()
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
        for _ in range(workers):
            cluster.add_worker()
        if workers:
            cluster.wait_for(workers)
        yield cluster
    finally:
        for process in (*cluster.workers, cluster.scheduler):
            process.kill()
            process.wait()
