"""What Kubernetes's API server says of a manifest, by its own decoding, defaults and validation.

Beyond a schema they know times of cron, names of zones, and containers that are not there.
``python -m tests.support.servers.kubernetes`` builds it ahead of the tests; a minute where it is the first
time.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.servers.stores import ROOT, compiled

SOURCE = ROOT / "tests" / "support" / "servers" / "kubecheck"
BINARY = ROOT / "build" / "kubecheck"


def built() -> Path:
    """The program; skips the test without Go."""
    return compiled(SOURCE, BINARY)


def problems(manifest: Path) -> tuple[list[str], list[str]]:
    """The kinds that a file holds, and what is wrong with them."""
    done = subprocess.run([built(), manifest], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    told = [line.removeprefix(f"{manifest.name}: ") for line in done.stdout.splitlines()]
    wrong = [line for line in told if ": " in line]
    assert bool(wrong) == bool(done.returncode)
    return [line for line in told if ": " not in line], wrong


if __name__ == "__main__":
    print(built())
