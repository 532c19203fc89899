"""Jobs that are killed for real, at chosen steps, without waiting for TensorFlow and Beam each time.

A zygote imports both once and then forks a process group for every job. Imports start no threads and open no
channels, so that a fork of it is a fresh process in all that matters. The hook that counts and kills sits at
the interpreter's seam to the file system (``sys.addaudithook``), and nothing in the job knows of it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_SLOW = (
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    *("tensorflow", "keras", "job.launch", "job.pipeline", "job.verify"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class Job:
    """One command line, and when it dies.

    ``watched`` is the folder whose changes are counted. The process group is killed before change number
    ``kill_at`` (from 0), or ``kill_after_s`` after its start. Changes from number ``deny_from`` to before
    ``deny_to`` fail with the error number ``deny``, as on a disk that was made read-only. ``log`` gets what
    it prints; beside it, with ``.steps`` behind, the changes are listed as they happen. ``env`` is added to
    the zygote's environment.
    """

    args: tuple[str, ...]
    log: str
    watched: str = ""
    kill_at: int = -1
    kill_after_s: float = -1.0
    deny: int = 0
    deny_from: int = 0
    deny_to: int = 0
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """How a job ended: ``code`` is negative for a signal. ``steps`` are the changes that it made."""

    code: int
    text: str
    steps: tuple[str, ...]


class Zygote:
    """Runs jobs; each costs what it does, not what its imports cost."""

    def __init__(self, env: Mapping[str, str] | None = None, modules: Sequence[str] = ()) -> None:
        """Start it, in this environment if one is given; ``modules`` are imported too, once for all jobs."""
        self._jobs: tuple[Job, ...] = ()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.killing import serve; serve()", *modules],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *jobs: Job) -> list[Done]:
        """Start jobs together and wait for all of them."""
        self.start(*jobs)
        return self.wait()

    def start(self, *jobs: Job) -> list[int]:
        """Start jobs together; returns the process group of each. ``wait`` must follow."""
        assert self._process.stdin is not None
        self._jobs = jobs
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._process.stdin.flush()
        return [int(pid) for pid in self._answer()]

    def wait(self) -> list[Done]:
        """Wait for all jobs that were started."""
        codes = self._answer()
        return [
            Done(code, _text(job.log), _steps(job.log)) for job, code in zip(self._jobs, codes, strict=True)
        ]

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        return list(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


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


def serve() -> None:
    """Read lists of jobs from standard input, one a line; answer with their groups, then their exit codes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from job import quiet

    with quiet.imports():
        for module in (*_SLOW, *sys.argv[1:]):
            importlib.import_module(module)
    for line in sys.stdin:
        jobs = [Job(**{**fields, "args": tuple(fields["args"])}) for fields in json.loads(line)]
        pids = [_fork(one) for one in jobs]
        sys.stdout.write(json.dumps(pids) + "\n")
        sys.stdout.flush()
        timers = [
            threading.Timer(one.kill_after_s, _kill_group, [pid])
            for one, pid in zip(jobs, pids, strict=True)
            if one.kill_after_s >= 0
        ]
        for timer in timers:
            timer.start()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for timer in timers:
            timer.cancel()
            timer.join()
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _fork(one: Job) -> int:
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 70
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        log = os.open(one.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if one.watched:
            _watch(one)
        os.environ.update(one.env)
        from job import cli

        code = cli.main(list(one.args))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _watch(one: Job) -> None:
    steps = os.open(f"{one.log}.steps", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    numbers = itertools.count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in _CHANGES:
            path = _within(args[0], args[-1]) if event in ("os.remove", "os.rmdir") else args[0]
        else:
            return
        if not isinstance(path, str) or not path.startswith(one.watched):
            return
        number = next(numbers)
        if number == one.kill_at:
            os.killpg(0, signal.SIGKILL)
            time.sleep(60)
        if one.deny_from <= number < one.deny_to:
            raise OSError(one.deny, os.strerror(one.deny), path)
        os.write(steps, f"{event} {path.removeprefix(one.watched).lstrip('/')}\n".encode())

    sys.addaudithook(hook)


def _within(path: Any, folder: int) -> Any:
    """Return a path that is told relative to an open folder, as ``shutil.rmtree`` does."""
    if folder < 0 or not isinstance(path, str):
        return path
    return f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"


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
