"""Beam's own job service and a real worker pool for a test, on loopback."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.store_nights import until

# Also where ``sys.executable`` leads to a zygote.
PYTHON = sys.executable
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to nobody who asks for any port."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(first // 2, first)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@contextlib.contextmanager
def worker_pool(
    folder: Path, port: int, path: Sequence[Path] = (ROOT,), before: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A pool, whose workers are its children and find modules in ``path``.

    ``before`` may hold another ``python`` to start.
    """
    folders = [*([before] if before else []), Path(sys.executable).parent, os.environ["PATH"]]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PATH": os.pathsep.join(map(str, folders)),
    }
    command = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with (folder / f"pool{port}.log").open("ab") as log:
        pool = subprocess.Popen(
            [PYTHON, *command], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: listens(port), within_s=60)
        yield pool
    finally:
        # With the workers that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pool.pid, 9)
        pool.wait()


@contextlib.contextmanager
def job_service(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Beam's portable job service, by its port and process; ``folder`` gets what it logs and stages."""
    port = free_port()
    command = ["-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--staging_dir=s"], cwd=folder, env=env, stdout=log, stderr=log
        )
    try:
        until(lambda: listens(port), within_s=60)
        yield port, process
    finally:
        process.kill()
        process.wait()


def external(job_port: int, pool_port: int) -> list[str]:
    """Return the flags that lead to a job service, and its jobs to a worker pool."""
    return [
        *("--runner=PortableRunner", f"--job_endpoint=localhost:{job_port}"),
        *("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool_port}"),
    ]


@dataclass
class Service:
    """A job service and a worker pool; ``flags`` lead a job to them."""

    job_port: int
    pool_port: int
    job_service: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]

    @property
    def flags(self) -> list[str]:
        return external(self.job_port, self.pool_port)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    pool_port = free_port()
    with worker_pool(folder, pool_port) as pool, job_service(folder) as (port, process):
        yield Service(port, pool_port, process, pool)
