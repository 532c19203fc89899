"""A real Dask cluster for a test: a scheduler and workers, each a process of its own on loopback.

With a zygote these are forked from it; else each imports what it needs by itself, for seconds.
"""

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
from typing import Any, Protocol

from tests.support.jobs import Job, Zygote

ROOT = Path(__file__).parents[2]
START_S = 60
_IMPORTS = (
    "distributed.cli.dask_worker",
    "distributed.cli.dask_scheduler",
    "apache_beam.runners.dask.dask_runner",
)


class Process(Protocol):
    """What of a process is used here."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        ...

    def kill(self) -> None:
        """Kill it."""
        ...

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        ...


@dataclass
class Cluster:
    """Its processes may be killed by the test; the rest is ended after it."""

    folder: Path
    env: dict[str, str]
    path: Path | None
    warm: Zygote | None
    processes: list[Process] = field(default_factory=list)

    @property
    def scheduler(self) -> Process:
        return self.processes[0]

    @property
    def workers(self) -> list[Process]:
        return self.processes[1:]

    @property
    def address(self) -> str:
        """``tcp://HOST:PORT`` of the scheduler."""
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def add_worker(self) -> Process:
        """Start a worker of one thread; it registers within seconds."""
        name = f"worker{len(self.workers)}"
        args = (self.address, "--nthreads=1", "--no-nanny", f"--local-directory={self.folder / name}")
        return self.start("distributed.cli.dask_worker", name, *args)

    def add_nanny(self, workers: int) -> Process:
        """Start workers of one thread as the documentation does: by a process that starts dead ones again."""
        flags = ("--nthreads=1", f"--nworkers={workers}", f"--local-directory={self.folder}/nanny")
        return self.start("distributed.cli.dask_worker", "nanny", self.address, *flags)

    def start(self, module: str, name: str, *args: str) -> Process:
        """Start ``python -m MODULE``, as the others of the cluster; its log has that name."""
        args, log = (*args, "--host=127.0.0.1", "--no-dashboard"), self.folder / f"{name}.log"
        process: Process
        if self.warm is not None:
            process = self.warm.process(Job(args, str(log), module=module, path=str(self.path or "")))
        else:
            with log.open("wb") as out:
                command = [sys.executable, "-m", module, *args]
                process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=out, stderr=out)
        self.processes.append(process)
        return process

    def client(self) -> Any:
        """One of the scheduler's, to be closed."""
        from dask import distributed

        return distributed.Client(self.address, timeout=START_S, set_as_default=False)

    def wait_for(self, workers: int) -> None:
        """Return when so many workers have registered."""
        with self.client() as client:
            client.wait_for_workers(workers, timeout=START_S)


@contextlib.contextmanager
def dask_cluster(
    folder: Path,
    workers: int = 2,
    path: Path | None = None,
    warm: Zygote | None = None,
    *,
    nanny: bool = False,
) -> Iterator[Cluster]:
    """A scheduler and its workers, which find modules in ``path`` too; ``folder`` gets what they log."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (ROOT, path))))}
    told = folder / "scheduler.json"
    if warm is not None:
        warm.import_too(*_IMPORTS)
    cluster = Cluster(folder, env, path, warm)
    try:
        scheduler = cluster.start(
            "distributed.cli.dask_scheduler", "scheduler", "--port=0", f"--scheduler-file={told}"
        )
        give_up_s = time.monotonic() + START_S
        while not told.exists():
            assert scheduler.poll() is None, (folder / "scheduler.log").read_text()
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
        if nanny:
            cluster.add_nanny(workers)
        for _ in range(0 if nanny else workers):
            cluster.add_worker()
        if workers:
            cluster.wait_for(workers)
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            process.kill()
            process.wait()
