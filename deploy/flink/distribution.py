"""Flink's distribution, fetched once and kept under ``build/flink``."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / "build" / "flink"

# The newest that both sides have: Beam 2.77 runs on 1.19, 1.20, 2.0, 2.1 and 2.2.
VERSION: Final = "2.2.1"
_SHA256: Final = "74dc5546fbd9add8fbcdf1222a237e09491f9b80296241aef8676ec56f8e686e"
_FETCH_S: Final = 900


class DeployError(Exception):
    """What went wrong, in one line, with what to do."""


def fetched(home: Path = HOME) -> Path:
    """Return the folder with ``lib`` and ``bin``; the first call downloads 313 MB.

    Raises:
        DeployError: it cannot be had.
    """
    there = home / f"flink-{VERSION}"
    if there.exists():
        return there
    home.mkdir(parents=True, exist_ok=True)
    with (home / "fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.exists():
            with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as aside:
                _unpack(_download(Path(aside)), Path(aside, "flink")).rename(there)
    return there


def _download(folder: Path) -> Path:
    wanted = folder / "requirement.txt"
    wanted.write_text(f"apache-flink-libraries=={VERSION} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", f"--requirement={wanted}", f"--dest={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_S)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DeployError(f"apache-flink-libraries=={VERSION} cannot be downloaded with pip: {why}")
    return found[0]


def _unpack(wheel: Path, to: Path) -> Path:
    for part in ("lib", "bin"):
        (to / part).mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder, _, file = name.removeprefix("pyflink/").rpartition("/")
            if folder in ("lib", "bin") and file.endswith(".jar"):
                with archive.open(name) as source, (to / folder / file).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    return to
