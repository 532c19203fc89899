"""A real worker pool of Beam's for a test, on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.store_nights import until

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@contextlib.contextmanager
def worker_pool(
    folder: Path, port: int, path: Sequence[Path] = (ROOT,), before: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A pool whose workers find modules in ``path``; ``before`` may hold another ``python`` to start."""
    folders = [*([before] if before else []), Path(sys.executable).parent, os.environ["PATH"]]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PATH": os.pathsep.join(map(str, folders)),
    }
    command = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with (folder / f"pool{port}.log").open("ab") as log:
        pool = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: listens(port), within_s=60)
        yield pool
    finally:
        # With the workers that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pool.pid, 9)
        pool.wait()
