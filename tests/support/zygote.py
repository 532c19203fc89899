"""A process that imports TensorFlow and Beam once, and forks for every job of ``tests.support.jobs``.

Imports start no threads of their own and open no channels, so that a fork is a fresh process in all that
matters. The hook that counts and kills sits at the interpreter's seam to the file system
(``sys.addaudithook``), and nothing in the job knows of it.

A fork is asked for by a line on standard input, or by ``tests.support.python`` over a socket: a program that
stands for the interpreter wherever a test, or what it tests, starts one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import itertools
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.jobs import Job, kill_group

_SLOW = (
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    *("tensorflow", "keras", "job.launch.score", "job.pipeline", "job.compare.verify"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
# Between two looks whether a fork has ended, while somebody waits for one.
_LOOK_EVERY_S = 0.01


def serve(address: str, *modules: str) -> None:
    """Answer requests until standard input ends; ``address`` is that of the socket."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from job.terminal import library_output

    with library_output.imports():
        for module in (*_SLOW, *modules):
            importlib.import_module(module)
    _freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        _Server(listener).run()


class _Server:
    """Requests on standard input, one a line and answered in a line, and programs that come by the socket."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._python = str(Path(listener.getsockname()).with_name("python"))
        self._timers: dict[int, threading.Timer] = {}
        # Who waits for all of these, and what is known of them.
        self._awaited: list[int] = []
        self._codes: dict[int, int] = {}
        # The connection of each program whose place a fork takes.
        self._programs: dict[int, socket.socket] = {}

    def run(self) -> None:
        rest = b""
        while True:
            sources: list[int | socket.socket] = [0, self._listener, *self._programs.values()]
            waits = bool(self._awaited or self._programs)
            ready, _, _ = select.select(sources, [], [], _LOOK_EVERY_S if waits else None)
            if self._listener in ready:
                self._start_program(self._listener.accept()[0])
            for pid, program in list(self._programs.items()):
                # It sends nothing more, so it has ended: nobody is there for whom the fork works.
                if program in ready:
                    os.kill(pid, signal.SIGKILL)
            if 0 in ready:
                got = os.read(0, 1 << 16)
                if not got:
                    break
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))
            self._look()
        for pid in self._programs:
            os.kill(pid, signal.SIGKILL)

    def _do(self, request: dict[str, Any]) -> None:
        from job.terminal import library_output

        ((verb, given),) = request.items()
        if verb == "start":
            _answer(self._start(given))
        elif verb == "wait":
            self._awaited = list(given)
        else:
            with library_output.imports():
                named = [importlib.import_module(module).__name__ for module in given]
            _freeze()
            _answer(named)

    def _start(self, given: list[dict[str, Any]]) -> list[int]:
        jobs = [Job(**{**one, "args": tuple(one["args"])}) for one in given]
        pids = [_fork(functools.partial(self._be_job, one)) for one in jobs]
        for one, pid in zip(jobs, pids, strict=True):
            if one.kill_after_s >= 0:
                self._timers[pid] = threading.Timer(one.kill_after_s, kill_group, [pid])
        for pid in pids:
            if pid in self._timers:
                self._timers[pid].start()
        return pids

    def _be_job(self, one: Job) -> int:
        self._forget()
        # So that its workers are forks too.
        sys.executable = self._python
        return _job(one)

    def _start_program(self, program: socket.socket) -> None:
        given, descriptors = _received(program)
        pid = _fork(functools.partial(self._be, given, descriptors), given["group"])
        for descriptor in descriptors:
            os.close(descriptor)
        self._programs[pid] = program
        program.sendall(f"{pid}\n".encode())

    def _be(self, given: dict[str, Any], descriptors: list[int]) -> int:
        """Take a program's place, in the fork."""
        self._forget()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
        os.environ.clear()
        os.environ.update(given["env"])
        os.chdir(given["folder"])
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [given["folder"], *filter(None, paths)]
        sys.executable = given["executable"]
        try:
            code = _program(given["args"])
            threading._shutdown()  # type: ignore[attr-defined]
        finally:
            # As the end of an interpreter does.
            atexit._run_exitfuncs()
        return code

    def _forget(self) -> None:
        """Close, in a fork, what is this process's."""
        self._listener.close()
        for program in self._programs.values():
            program.close()

    def _look(self) -> None:
        """See who has ended, and tell whoever waits."""
        for pid, program in list(self._programs.items()):
            ended = _code(pid)
            if ended is not None:
                del self._programs[pid]
                with contextlib.suppress(OSError):
                    program.sendall(f"{ended}\n".encode())
                program.close()
        for pid in self._awaited:
            if pid not in self._codes and (ended := _code(pid)) is not None:
                self._codes[pid] = ended
                if (timer := self._timers.pop(pid, None)) is not None:
                    timer.cancel()
                    timer.join()
        if self._awaited and all(pid in self._codes for pid in self._awaited):
            _answer([self._codes.pop(pid) for pid in self._awaited])
            self._awaited = []


def _answer(answer: list[Any]) -> None:
    os.write(1, (json.dumps(answer) + "\n").encode())


def _code(pid: int) -> int | None:
    """How a child ended, or None while it has not."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _received(program: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What ``tests.support.python`` sends: its arguments, environment, folder and standard streams."""
    message, descriptors, _, _ = socket.recv_fds(program, 1 << 16, 3)
    while not message.endswith(b"\n"):
        message += program.recv(1 << 16)
    return json.loads(message), descriptors


def _freeze() -> None:
    """Keep garbage collection away from what is there: it would cost each child half a second, and a copy."""
    gc.collect()
    gc.freeze()


def _fork(work: Callable[[], int], group: int = 0) -> int:
    """Do some work in a fork, whose exit code is the result.

    It joins a process group where that is of this session, or leads one of its own.
    """
    pid = os.fork()
    if pid:
        _join(pid, group)
        return pid
    code = 70
    try:
        _join(0, group)
        code = work()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _join(pid: int, group: int) -> None:
    for one in (group, 0):
        # Refused for a group of another session, or when the other of the two processes was faster.
        with contextlib.suppress(OSError):
            os.setpgid(pid, one)
            break


def _job(one: Job) -> int:
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
    if one.module:
        return _program(["-m", one.module, *one.args])
    from job.cli import main

    return main.main(list(one.args))


def _program(args: list[str]) -> int:
    """Run ``python ARGS``, a module or some code, and return its exit code."""
    kind, what, *rest = args
    sys.argv[:] = [kind, *rest]
    try:
        if kind == "-m":
            # It may have been imported here; its run is another module, as ever.
            for name in (what, f"{what}.__main__"):
                if not hasattr(sys.modules.get(name), "__path__"):
                    sys.modules.pop(name, None)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:  # noqa: BLE001 - whatever a program ends with
        traceback.print_exc()
        return 1
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
