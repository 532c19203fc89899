"""One model for all worker processes of a machine.

::

    worker ┐   which batch, where in its memory    ┌ the model's process, ``hosting.Host``:
    worker ┼──────────────────────────────────────▶┤ loads once, predicts for all of them,
    worker ┘◀──── the same of the predictions ─────┘ each in a thread of its own

Messages are small; rows go through memory that both have mapped, see ``job.model.sharing.memory``. The model
has a process of its own, a child of the one that asked first: the launcher where the workers are on its
machine, else a worker. It ends with that one. Workers import no TensorFlow.

Whoever finds the process gone starts another and asks again, at most ``MOST_DEATHS`` times for one batch. A
process that may have no children (a worker of Dask) holds the model itself.

Beam's ``MultiProcessShared`` does such things by a TCP port and a key that stands in its source: whoever can
log in to the machine could run code in its process. Here it is a Unix socket in this user's own folder, and a
key that is made for each process and lies beside it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import util
from typing import Any, Final

import numpy as np

from job.errors import JobError, ModelError, one_line
from job.model.kind import Step
from job.model.sharing import host as sharing_host
from job.model.sharing.host import Facts, Failure, Host
from job.model.sharing.memory import Memory
from job.model.signature import InputSpec, OutputSpec, Signature, Tensor
from job.spec import Reads
from job.storage import disk, private_folder
from job.terminal import library_output

MOST_DEATHS: Final = 2
# What a killed process leaves behind: an empty file that was locked, a socket, and its name and key.
_KEPT_S: Final = 7 * 86400.0
_DOOR: Final = "door.json"
_NO_SHARING: Final = "no model can be shared there"
_IDLE_S: Final = 120.0
# Keys that are alike up to it are of one launch.
OF_ONE_LAUNCH: Final = "-"


class SharedStep:
    """The model of this machine's own process, as a step of this one.

    ``key`` is one launch's, so that launches of the same model have nothing to do with each other. ``name``
    is what the model is called in errors.
    """

    recompiles = False

    def __init__(self, load: Callable[[], Step], key: str, name: str) -> None:
        self._load, self._key, self._name = load, key, name
        self._inputs: tuple[InputSpec, ...] | None = None
        self._lock = threading.Lock()
        self._memory = threading.local()
        self._traces = 0
        self._host, self.facts = self._begin()
        self.recompiles = self.facts.recompiles

    def signature(self) -> Signature:
        """Return inputs and outputs; no inputs where the model has no input shape yet."""
        return self.facts.signature

    def build(self, inputs: Sequence[InputSpec]) -> None:
        """Ready the model for these inputs, where another process has not done so."""
        self._inputs = tuple(inputs)
        self.facts = self._ask("build", self._inputs)

    def outputs(self) -> tuple[OutputSpec, ...]:
        """Return the outputs; after ``build``."""
        return self.facts.outputs

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch; ``(rows, *shape)`` in and out."""
        return self._predict(tensors, plain=False)

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch by ``Model.predict``."""
        return self._predict(tensors, plain=True)

    def traces(self) -> int:
        """Return how often the predict step had been traced when this process last asked."""
        return self._traces

    def reads(self) -> Reads:
        """Return what a builder read to make the model, where that was done first."""
        return self.facts.reads

    def weights_digest(self) -> str:
        """Return the SHA-256 of weights that no artifact pins, or nothing."""
        return self.facts.weights_digest

    def _predict(self, tensors: Sequence[Tensor], *, plain: bool) -> list[np.ndarray]:
        memory: Memory | None = getattr(self._memory, "own", None)
        if memory is None:
            memory = self._memory.own = Memory.made()
        pieces, end = memory.write(tensors)
        outputs, self._traces = self._ask("predict", memory.address, pieces, end, plain)
        # Copied, for the next batch is written over them while these are still on their way to a file.
        return [np.array(output) for output in memory.read(outputs)]

    def _ask(self, method: str, *args: object) -> Any:
        deaths = 0
        while True:
            host = self._host
            try:
                return _answer(getattr(host, method)(*args))
            except (EOFError, ConnectionError) as e:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise JobError(
                        f"the process that holds {self._name} for this machine died {deaths} times with the "
                        f"same batch; the kernel kills one when memory is short; give a smaller "
                        f"--batch_size, then run again to resume"
                    ) from e
                self._begin_again(host)

    def _begin(self) -> tuple[Any, Facts]:
        deaths = 0
        while True:
            try:
                host = _host(self._load, self._key)
                return host, _answer(host.facts())
            except (EOFError, ConnectionError) as e:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise JobError(
                        f"the process that is to hold {self._name} for this machine ends at once: "
                        f"{one_line(e)}; use --model_sharing=process"
                    ) from e

    def _begin_again(self, gone: Any) -> None:
        with self._lock:
            if self._host is not gone:
                return
            host, facts = self._begin()
            if self._inputs is not None:
                facts = _answer(host.build(self._inputs))
            before = self.facts.weights_digest
            if facts.weights_digest != before:
                raise ModelError(
                    f"{self._name}: its builder made weights {facts.weights_digest[:12]} when it was started "
                    f"again, {before[:12]} before; give --weights, or seed its initializers"
                )
            self._host, self.facts = host, facts


def _answer(answer: Any) -> Any:
    if isinstance(answer, Failure):
        raise answer.raised()
    return answer


@dataclass(frozen=True)
class _Began:
    """What this process shares under a key; ``spawns`` says that the model may have a process of its own."""

    host: Any
    spawns: bool


_began: dict[str, _Began] = {}


def release(key: str, idle_s: float = 0.0) -> None:
    """Let a model go that was shared under a key, if nobody asks it or has for so long."""
    one = _began.get(key)
    if one is None:
        return
    # Its process ends in the middle of an answer, or is gone already.
    with contextlib.suppress(EOFError, ConnectionError):
        if not one.host.forget_if_idle(idle_s):
            return
        one.host.end()
    del _began[key]
    multiprocessing.active_children()
    shutil.rmtree(_folder(key), ignore_errors=True)


def _host(load: Callable[[], Step], key: str) -> Any:
    # A worker may outlive many launches, and models would add up.
    launch = key.partition(OF_ONE_LAUNCH)[0]
    for other in [other for other in _began if other.partition(OF_ONE_LAUNCH)[0] != launch]:
        release(other, _IDLE_S)
    # Daemonic processes may have no children.
    spawns = not multiprocessing.current_process().daemon
    if key in _began and not spawns and isinstance(_began[key].host, Host):
        return _began[key].host
    folder = _folder(key)
    with private_folder.turn(os.path.join(key, "door")):
        host = _found(folder)
        if host is None:
            host = _started(load, folder) if spawns else _here(load, folder)
    _began[key] = _Began(host, spawns)
    return host


def _found(folder: str) -> Any:
    """Return the host that another process has begun, ``None`` where there is none or it is gone."""
    content = disk.read_bytes(os.path.join(folder, _DOOR))
    if content is None:
        return None
    door = json.loads(content)
    # A dead process's socket refuses at once. The next one has another name: the proxies of a thread that ask
    # at the same address share their connection, also a broken one.
    with contextlib.suppress(ConnectionError, FileNotFoundError, EOFError):
        manager = sharing_host.door(
            sharing_host.address_in(folder, door["socket"]), bytes.fromhex(door["key"])
        )
        manager.connect()
        return manager.host()
    return None


def _started(load: Callable[[], Step], folder: str) -> Any:
    """Start a process that holds the model, and return its host; it ends with this one."""
    name, key = secrets.token_hex(8), secrets.token_bytes(32)
    context = multiprocessing.get_context("spawn")
    ready, tell = context.Pipe(duplex=False)
    process = context.Process(target=sharing_host.serve_alone, args=(load, folder, name, key, tell))
    # The new process imports Beam before it can be told to be silent; it keeps what is aside now as its own.
    with library_output.imports():
        process.start()
        tell.close()
        with ready:
            try:
                ready.recv()
            except EOFError as e:
                process.join()
                raise ConnectionError(f"its exit code is {process.exitcode}") from e
    # Before multiprocessing waits for it; not in what this process forks.
    util.Finalize(None, process.kill, exitpriority=10)
    _write(folder, name, key)
    return _found(folder)


def _here(load: Callable[[], Step], folder: str) -> Host:
    """Hold the model in this process, and let others ask for it."""
    name, key, host = secrets.token_hex(8), secrets.token_bytes(32), Host(load)
    server = sharing_host.door(sharing_host.address_in(folder, name), key, host).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _write(folder, name, key)
    return host


def _write(folder: str, name: str, key: bytes) -> None:
    door = json.dumps({"socket": name, "key": key.hex()}).encode()
    path = os.path.join(folder, _DOOR)
    with private_folder.os_errors(_NO_SHARING):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(door)


def _folder(key: str) -> str:
    """Return the folder of a launch's files on this machine."""
    top = private_folder.folder()
    folder = os.path.join(top, key)
    if not os.path.exists(folder):
        with private_folder.os_errors(_NO_SHARING):
            _sweep(top)
            os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _sweep(top: str) -> None:
    for name in set(os.listdir(top)) - {private_folder.MODELS}:
        path = os.path.join(top, name)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > _KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
