"""The model in the process that holds it for all worker processes of a machine.

Whoever may ask it may run code in it, for questions are pickles. So its door is a socket in a folder that
only its user may enter, and nothing is unpickled before the other side has shown that it knows the key of
this one process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from typing import Any

from job.errors import JobError, ModelError, by_name
from job.model.kind import Step, load_name
from job.model.sharing.memory import Address, Memory, Piece
from job.model.signature import InputSpec, OutputSpec, Signature
from job.spec import Reads
from job.terminal import library_output


@dataclass(frozen=True)
class Facts:
    """What there is to know of a model in another process; of outputs and weights once it is built."""

    load: str
    load_s: float
    signature: Signature
    recompiles: bool
    outputs: tuple[OutputSpec, ...]
    weights_digest: str
    reads: Reads


@dataclass(frozen=True)
class Failure:
    """An exception as text, for many of TensorFlow's do not survive a process's border."""

    kind: str
    is_ours: bool
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what is told of an exception."""
        return cls(type(error).__name__, isinstance(error, JobError), str(error))

    def raised(self) -> Exception:
        """Return what the asking process is to raise."""
        if self.is_ours:
            return by_name(self.kind)(self.text)
        if self.kind == "MemoryError":
            return MemoryError(self.text)
        # Of the same name, for it is told with the rows that are rejected because of it.
        error: Exception = type(self.kind, (Exception,), {})(self.text)
        return error


class Host:
    """The model in the process that holds it; asked from others, in a thread for each thread that asks.

    ``load`` is called with the first question, and again after it failed. ``alone`` says that this process is
    there for nothing else.
    """

    def __init__(self, load: Callable[[], Step], *, alone: bool = False) -> None:
        library_output.hush(debug=os.environ.get(library_output.TF_LEVEL) == "0")
        self._load, self._alone = load, alone
        self._lock = threading.Lock()
        self._step: Step | None = None
        self._inputs: tuple[InputSpec, ...] | None = None
        self._digest = ""
        self._asking = 0
        self._asked_s = time.monotonic()
        self._load_s = 0.0
        self._name = load_name()
        self._opened = threading.local()

    def facts(self) -> Facts | Failure:
        """Load the model where that has not been done."""
        try:
            with self._asked():
                return self._facts(self._loaded())
        except Exception as e:  # noqa: BLE001 - raised again where it was asked for
            return Failure.of(e)

    def build(self, inputs: tuple[InputSpec, ...]) -> Facts | Failure:
        """Ready the model for these inputs; later calls do nothing."""
        try:
            with self._asked():
                step = self._loaded()
                with self._lock, self._timed():
                    if self._inputs is None:
                        step.build(inputs)
                        self._inputs, self._digest = inputs, step.weights_digest()
                return self._facts(step)
        except Exception as e:  # noqa: BLE001 - raised again where it was asked for
            return Failure.of(e)

    def forget_if_idle(self, idle_s: float) -> bool:
        """Let go of the model if nobody has asked for so long; who asks again finds it loaded again."""
        with self._lock:
            idle = not self._asking and time.monotonic() - self._asked_s >= idle_s
            if idle:
                self._step = None
            return idle

    def end(self) -> None:
        """End this process, if it is there for nothing else; it does not answer any more."""
        if self._alone:
            os._exit(0)

    def predict(
        self, where: Address, pieces: Sequence[Piece], end: int, plain: bool
    ) -> tuple[tuple[Piece, ...], int] | Failure:
        """Predict a batch that is in an asking thread's memory, and put the predictions behind it.

        Returns:
            The predictions, and how often the step has been traced.
        """
        try:
            with self._asked():
                step = self._loaded()
                memory = self._memory(where)
                tensors = memory.read(pieces)
                outputs = step.predict_plain(tensors) if plain else step.predict(tensors)
                return memory.write(outputs, end)[0], step.traces()
        except Exception as e:  # noqa: BLE001 - raised again where it was asked for
            return Failure.of(e)

    def _memory(self, where: Address) -> Memory:
        # The thread ends with the connection, and lets go of the memory.
        if getattr(self._opened, "address", None) != where:
            self._opened.memory, self._opened.address = Memory.opened(where), where
        memory: Memory = self._opened.memory
        return memory

    def _loaded(self) -> Step:
        with self._lock:
            if self._step is None:
                with self._timed():
                    step = self._load()
                    if self._inputs is not None:
                        step.build(self._inputs)
                        if step.weights_digest() != self._digest:
                            raise ModelError(
                                "its builder made other weights again; give --weights, or seed its "
                                "initializers"
                            )
                self._step = step
            return self._step

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                self._asked_s = time.monotonic()

    def _facts(self, step: Step) -> Facts:
        built = self._inputs is not None
        outputs = step.outputs() if built else ()
        digest = step.weights_digest() if built else ""
        return Facts(
            self._name, self._load_s, step.signature(), step.recompiles, outputs, digest, step.reads()
        )

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._load_s += time.perf_counter() - begin


def door(address: str, key: bytes, host: Host | None = None) -> Any:
    """Return the manager at a Unix socket's address: of a host in this process, or of one in another."""

    class Door(BaseManager):
        pass

    questions = ("facts", "build", "predict", "forget_if_idle", "end")
    Door.register("host", callable=None if host is None else lambda: host, exposed=questions)
    return Door(address, key)


def serve_alone(load: Callable[[], Step], folder: str, name: str, key: bytes, ready: Connection) -> None:
    """Be the process that is there for the model alone, and end with the one that started it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = door(address_in(folder, name), key, Host(load, alone=True)).get_server()
    ready.send(None)
    server.serve_forever()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(0)


def address_in(folder: str, name: str) -> str:
    """Return a name for a socket in a folder, for this process, as long as it lives.

    The path of a socket has at most 107 characters, and that of a folder for temporary files may have more.
    """
    return f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}/{name}"
