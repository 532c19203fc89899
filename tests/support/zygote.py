"""A process that imports TensorFlow and Beam once, and forks for every job of ``tests.support.jobs``.

Imports start no threads of their own and open no channels, so that a fork is a fresh process in all that
matters. The hook that counts and kills sits at the interpreter's seam to the file system
(``sys.addaudithook``), and nothing in the job knows of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

from tests.support.jobs import Job, kill_group

_SLOW = (
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    *("tensorflow", "keras", "job.launch.score", "job.pipeline", "job.compare.verify"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def serve() -> None:
    """Read requests from standard input, one a line: start jobs, or wait for them. Answer each in a line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from job.terminal import library_output

    with library_output.imports():
        for module in (*_SLOW, *sys.argv[1:]):
            importlib.import_module(module)
    _freeze()
    timers: dict[int, threading.Timer] = {}
    answer: list[Any]
    for line in sys.stdin:
        ((verb, given),) = json.loads(line).items()
        if verb == "start":
            answer = _start(given, timers)
        elif verb == "wait":
            answer = [_wait(pid, timers) for pid in given]
        else:
            with library_output.imports():
                answer = [importlib.import_module(module).__name__ for module in given]
            _freeze()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _freeze() -> None:
    """Keep garbage collection away from what is there: it would cost each child half a second, and a copy."""
    gc.collect()
    gc.freeze()


def _start(given: list[dict[str, Any]], timers: dict[int, threading.Timer]) -> list[int]:
    jobs = [Job(**{**one, "args": tuple(one["args"])}) for one in given]
    pids = [_fork(one) for one in jobs]
    for one, pid in zip(jobs, pids, strict=True):
        if one.kill_after_s >= 0:
            timers[pid] = threading.Timer(one.kill_after_s, kill_group, [pid])
    for pid in pids:
        if pid in timers:
            timers[pid].start()
    return pids


def _wait(pid: int, timers: dict[int, threading.Timer]) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    timer = timers.pop(pid, None)
    if timer is not None:
        timer.cancel()
        timer.join()
    return code


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
        os.dup2(log, 2)
        os.dup2(os.open(one.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if one.out else log, 1)
        if one.watched:
            _watch(one)
        os.environ.update(one.env)
        sys.path[:0] = filter(None, [one.path])
        for module in one.imports:
            importlib.import_module(module)
        code = _main(one)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _main(one: Job) -> int:
    if not one.module:
        from job.cli import main

        return main.main(list(one.args))
    sys.argv[1:] = one.args
    try:
        runpy.run_module(one.module, run_name="__main__", alter_sys=True)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        raise
    return 0


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
        if number == one.stop_at:
            os.killpg(0, signal.SIGSTOP)
        if one.deny_from <= number < one.deny_to:
            raise OSError(one.deny, os.strerror(one.deny), path)
        os.write(steps, f"{event} {path.removeprefix(one.watched).lstrip('/')}\n".encode())

    sys.addaudithook(hook)


def _within(path: Any, folder: int) -> Any:
    """Return a path that is told relative to an open folder, as ``shutil.rmtree`` does."""
    if folder < 0 or not isinstance(path, str):
        return path
    return f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
