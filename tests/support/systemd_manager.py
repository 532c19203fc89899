"""A real systemd, as a service manager of its own beside the machine's. It needs root.

It lives in process, mount and control-group namespaces of its own, and all that it starts ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.store_nights import until

PROGRAM = Path("/lib/systemd/systemd")
GROUPS = Path("/sys/fs/cgroup")
# The first process of a namespace may not be systemd itself, which would take itself for the machine's.
ENTER = """
echo $$ > {group}/cgroup.procs
exec unshare --fork --pid --mount --cgroup --mount-proc --kill-child sh -c '
  mount --make-rprivate / && mount --bind {group} {top}
  mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system
  {program} --user --unit=tests.target --log-target=console & wait'
"""


def need(*programs: str, root: bool = False) -> None:
    """Skip the test where one is missing; where every test counts, fail it."""
    missing = [name for name in programs if shutil.which(name) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    told = f"this needs {', '.join(missing)}, not to be had here"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


@dataclass(frozen=True)
class Manager:
    """Units by their file names, and what becomes of them."""

    folder: Path
    pid: int

    def ctl(self, *args: str) -> str:
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder / "run")}
        # It answers only those whose process it can see.
        within = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "systemctl", "--user"]
        done = subprocess.run([*within, *args], env=env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown(self, unit: str) -> dict[str, str]:
        wanted = "ActiveState,SubState,Result,NRestarts,ExecMainStatus"
        lines = self.ctl("show", f"--property={wanted}", unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def ended(self, unit: str, within_s: float) -> dict[str, str]:
        """What a service has come to, with all its tries."""
        until(lambda: self.shown(unit)["ActiveState"] in ("failed", "inactive"), within_s=within_s)
        return self.shown(unit)


@contextlib.contextmanager
def manager(folder: Path, units: Mapping[str, str]) -> Iterator[Manager]:
    """Run one with these units (and files below ``UNIT.d/``) until the body ends."""
    need("systemctl", "unshare", "nsenter", root=True)
    for name, text in {**units, "tests.target": "[Unit]\nDefaultDependencies=no\n"}.items():
        path = folder / "config" / "systemd" / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "run").mkdir(mode=0o700)
    # Version 1 of control groups has a hierarchy for systemd.
    top = GROUPS / "systemd" if (GROUPS / "systemd").is_dir() else GROUPS
    group = top / f"scoring-job-tests-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as e:
        # Of the machine, and no program that could be installed: some containers have it, others not.
        pytest.skip(f"this needs a control group of its own, which this machine does not give: {e}")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder / "run"), "XDG_CONFIG_HOME": str(folder / "config")}
    command = ["sh", "-c", ENTER.format(group=group, top=top, program=PROGRAM)]
    with (folder / "manager.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until((folder / "run" / "systemd" / "private").exists, within_s=20)
        (first,) = psutil.Process(process.pid).children()
        yield Manager(folder, first.pid)
    finally:
        process.kill()
        process.wait()
        _remove(group)


def _remove(group: Path) -> None:
    until(lambda: not any(path.read_text() for path in group.rglob("cgroup.procs")), within_s=20)
    for path in sorted((one for one in group.rglob("*") if one.is_dir()), reverse=True):
        path.rmdir()
    group.rmdir()
