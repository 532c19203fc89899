"""Jobs that are killed for real, at chosen steps, without waiting for TensorFlow and Beam each time.

A zygote (``tests.support.zygote``) has imported both, and forks for every job, or for a server that would
import them too. Tests take the one that they share: the fixture ``warm``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """One command line, and when it dies.

    ``watched`` is the folder whose changes are counted. The process group is killed before change number
    ``kill_at`` (from 0), or ``kill_after_s`` after its start; it is stopped before number ``stop_at``.
    Changes from number ``deny_from`` to before ``deny_to`` fail with the error number ``deny``, as on a disk
    that was made read-only. ``log`` gets what it prints, or its errors alone where ``out`` gets the rest;
    beside it, with ``.steps`` behind, the changes are listed as they happen. ``env`` is added to the zygote's
    environment, ``imports`` are imported first. With ``module`` it is ``python -m MODULE`` instead of the
    job's command line. ``path`` holds more modules.
    """

    args: tuple[str, ...]
    log: str
    watched: str = ""
    kill_at: int = -1
    kill_after_s: float = -1.0
    stop_at: int = -1
    deny: int = 0
    deny_from: int = 0
    deny_to: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    out: str = ""
    imports: tuple[str, ...] = ()
    module: str = ""
    path: str = ""


@dataclass(frozen=True)
class Done:
    """How a job ended: ``code`` is negative for a signal. ``steps`` are the changes that it made."""

    code: int
    text: str
    steps: tuple[str, ...]


class Zygote:
    """Runs jobs; each costs what it does, not what its imports cost.

    ``python`` is a program that stands for the interpreter: ``python -m job …`` by it is a fork too, and so
    is whatever that starts by ``sys.executable``.
    """

    def __init__(self, env: Mapping[str, str] | None = None, modules: Sequence[str] = ()) -> None:
        """Start it, in this environment if one is given; ``modules`` are imported too, once for all jobs."""
        self._jobs: dict[int, Job] = {}
        self._last: tuple[int, ...] = ()
        self._folder = tempfile.TemporaryDirectory(prefix="zygote-")
        # The socket has a short address, as it must, and the program lies beside it.
        self.python = Path(self._folder.name, "python")
        self.python.write_text(f"#!{sys.executable} -IS\n{Path(__file__).with_name('python.py').read_text()}")
        self.python.chmod(0o755)
        program = "import sys; from tests.support.zygote import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.python.with_name("zygote")), *modules],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *jobs: Job) -> list[Done]:
        """Start jobs together and wait for all of them."""
        return self.wait(*self.start(*jobs))

    def start(self, *jobs: Job) -> list[int]:
        """Start jobs together; returns the process group of each. ``wait`` must follow, for each."""
        pids = [int(pid) for pid in self._ask({"start": [asdict(job) for job in jobs]})]
        self._jobs.update(zip(pids, jobs, strict=True))
        self._last = tuple(pids)
        return pids

    def wait(self, *pids: int) -> list[Done]:
        """Wait for jobs that were started; those that were started last if none is named."""
        pids = pids or self._last
        codes = self._ask({"wait": pids})
        jobs = [self._jobs.pop(pid) for pid in pids]
        return [Done(code, _text(job.log), _steps(job.log)) for job, code in zip(jobs, codes, strict=True)]

    def import_too(self, *modules: str) -> None:
        """Import more before the next job, once for all that follow."""
        self._ask({"import": modules})

    def process(self, job: Job) -> Forked:
        """Start one that is looked at, or killed, while others run."""
        (pid,) = self.start(job)
        return Forked(self, pid)

    def _ask(self, what: Mapping[str, Any]) -> list[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return list(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it, and what a test that failed has left."""
        for pid in self._jobs:
            kill_group(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()


class Forked:
    """A process of a zygote, as ``subprocess`` would hand it out."""

    def __init__(self, parent: Zygote, pid: int) -> None:
        self.pid = pid
        self._parent = parent
        self._done: Done | None = None

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        if self._done is None and psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE:
            self.wait()
        return None if self._done is None else self._done.code

    def wait(self, timeout_s: float = 250.0) -> int:
        """Its exit code, when it has ended."""
        give_up_s = time.monotonic() + timeout_s
        while self._done is None and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < give_up_s, f"process {self.pid} has not ended"
            time.sleep(0.01)
        return self.done.code

    @property
    def done(self) -> Done:
        """How it ended."""
        if self._done is None:
            (self._done,) = self._parent.wait(self.pid)
        return self._done

    def kill(self) -> None:
        """Kill it, and what it has started."""
        if self._done is None:
            kill_group(self.pid)


@contextlib.contextmanager
def zygote(env: Mapping[str, str] | None = None, modules: Sequence[str] = ()) -> Iterator[Zygote]:
    """A zygote that ends with the body."""
    one = Zygote(env, modules)
    try:
        yield one
    finally:
        one.close()


def _text(log: str) -> str:
    return Path(log).read_text(errors="replace")


def _steps(log: str) -> tuple[str, ...]:
    path = Path(f"{log}.steps")
    return tuple(path.read_text().splitlines()) if path.exists() else ()


def kill_group(pid: int) -> None:
    """Kill a process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kinds(steps: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the steps of each kind: what is done to which part of an output."""
    found: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        event, _, path = step.partition(" ")
        # A small file is written aside first, under a random name.
        parts = re.sub(r"\.[0-9a-f]{12}\.tmp$", " aside", path).split("/")
        where = parts[0] if parts[0].startswith("_") else "files"
        if where == "_staging" and len(parts) > 2:
            where = parts[2]
        found.setdefault(f"{event} {where}", []).append(number)
    return found
