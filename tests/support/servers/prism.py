"""Beam's Prism for tests, built from the Go module of the installed Beam's version.

``python -m tests.support.servers.prism`` builds it ahead of the tests; two minutes where it is the first
time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.servers.stores import BUILD_S, ROOT, go_or_skip
from tests.support.store_nights import until
from tests.support.worker_pool import free_port, listens

VERSION = version("apache-beam")
BINARY = ROOT / "build" / f"prism-{VERSION}"
MODULE = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{VERSION}"


def built() -> Path:
    """The program, built if it is missing; skips the test without Go."""
    if BINARY.exists():
        return BINARY
    go = go_or_skip("Prism")
    BINARY.parent.mkdir(exist_ok=True)
    with Path(f"{BINARY}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not BINARY.exists():
            aside = Path(f"{BINARY}.new")
            # Built as gcsd is, the two share what they have in common.
            command = [go, "install", "-trimpath", MODULE]
            env = {**os.environ, "GOBIN": str(aside)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=BUILD_S)
            if done.returncode:
                pytest.fail(f"Prism does not build:\n{done.stderr}")
            (aside / "prism").replace(BINARY)
            aside.rmdir()
    return BINARY


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """Prism as a job service of its own, by its port; ``folder`` gets what it logs."""
    port = free_port()
    command = [str(built()), f"--job_port={port}", "--serve_http=false", "--log_kind=text"]
    with (folder / "prism.log").open("wb") as log:
        # It ends by itself where this process dies.
        service = subprocess.Popen([*command, "--idle_shutdown_timeout=600s"], stdout=log, stderr=log)
    try:
        until(lambda: listens(port), within_s=30)
        yield port
    finally:
        service.kill()
        service.wait()


if __name__ == "__main__":
    print(built())
