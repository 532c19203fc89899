"""The real Airflow, in an environment of its own: ``build/airflow``, of ``deploy/airflow/requirements.lock``.

``python -m tests.servers.airflow`` makes it ahead of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.stores import BUILD_S, ROOT

LOCK = ROOT / "deploy" / "airflow" / "requirements.lock"
HOME = ROOT / "build" / "airflow"
PYTHON = HOME / "bin" / "python"


def built() -> Path:
    """Its Python, with the locked versions; made again where the lock has changed."""
    HOME.parent.mkdir(exist_ok=True)
    stamp, wanted = HOME / ".installed", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    with Path(f"{HOME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(HOME, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", HOME], check=True, timeout=BUILD_S)
            _install()
            stamp.write_text(wanted)
    return PYTHON


def _install() -> None:
    # The lock is complete; pip would ask it for extras, which it names no more.
    wanted = ("--quiet", "--no-deps", "--require-hashes", "--requirement", str(LOCK))
    uv = Path(sys.executable).parent / "uv"
    # It takes seconds instead of a minute and a half, but knows nothing of the index that pip is set up for.
    if uv.exists():
        command = [str(uv), "pip", "install", "--python", str(PYTHON), *wanted]
        if subprocess.run(command, timeout=BUILD_S).returncode == 0:
            return
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *wanted]
    subprocess.run(command, check=True, timeout=BUILD_S)


if __name__ == "__main__":
    print(built())
