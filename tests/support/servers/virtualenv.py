"""Programs in Python environments of their own, made of a lock file, once."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.servers.stores import BUILD_S


def built(home: Path, lock: Path) -> Path:
    """Its Python, with the locked versions; made again where the lock has changed."""
    home.parent.mkdir(exist_ok=True)
    stamp, wanted = home / ".installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    python = home / "bin" / "python"
    with Path(f"{home}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=BUILD_S)
            _install(python, lock)
            stamp.write_text(wanted)
    return python


def _install(python: Path, lock: Path) -> None:
    # The lock is complete; pip would ask it for extras, which it names no more.
    wanted = ("--quiet", "--no-deps", "--require-hashes", "--requirement", str(lock))
    uv = Path(sys.executable).parent / "uv"
    # It takes seconds instead of a minute and a half, but knows nothing of the index that pip is set up for.
    if uv.exists():
        command = [str(uv), "pip", "install", "--python", str(python), *wanted]
        if subprocess.run(command, timeout=BUILD_S).returncode == 0:
            return
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *wanted]
    subprocess.run(command, check=True, timeout=BUILD_S)
