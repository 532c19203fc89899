"""Private copies of models: what is hashed, checked and loaded is the same bytes.

A model may be exchanged while it is looked at, by another name or in place. So it is copied once, to a folder
that only its user may enter, and its digest is of what was written there. Keras and TensorFlow read nothing
else.

::

    TMPDIR/scoring-job-UID/models/KEY/   one model, for all processes of this user on this machine
        copy.json                        the SHA-256 of each file
        lock                             held, shared, by each process that uses it
        model/…  weights/…               the files, under their own names

A copy takes as much room as the model. The last process that uses it removes it when it ends; what killed
processes leave behind goes when the next copy is made.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from job import storage
from job.errors import JobError
from job.storage import private_folder

_LOCK: Final = "lock"
_TOLD: Final = "copy.json"
_TURN: Final = "models"
_NO_COPY: Final = "no copy of the model can be made there"
# A folder that is being filled.
_UNFINISHED: Final = ".part"


class _Lock:
    """Says that this process uses a folder, as long as it lives."""

    def __init__(self, folder: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(os.path.join(folder, _LOCK), flags, 0o600)
        # Where the file system has no locks, nobody else removes it either.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        _locks.add(self)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


_locks: weakref.WeakSet[_Lock] = weakref.WeakSet()


@dataclass(frozen=True)
class Copy:
    """A copy, which stays at least as long as this object.

    Attributes:
        folder: where it lies.
        digests: the SHA-256 of each file in hex, by its path below ``folder``.
        links: what is a link where it comes from, a file or a folder; folders behind links are not copied.
        lock: what keeps it.
    """

    folder: str
    digests: Mapping[str, str]
    links: Sequence[str]
    lock: _Lock

    def below(self, folder: str) -> dict[str, str]:
        """Return the digests of the files below one of its folders, by their names there."""
        top = f"{folder}/"
        return {name.removeprefix(top): it for name, it in self.digests.items() if name.startswith(top)}


class Making:
    """A new copy that is being made; ``keep`` it, or it is gone with the ``making`` that it is from."""

    def __init__(self, folder: str, lock: _Lock) -> None:
        self._folder, self._lock = folder, lock
        self._digests: dict[str, str] = {}
        self._links: list[str] = []
        self._states: dict[str, str] = {}

    def add(self, path: str, name: str) -> str:
        """Copy a file or a folder to what ``name`` says of the copy's folder, and return where that is.

        Raises:
            StorageError: something cannot be read or written.
        """
        target = os.path.join(self._folder, name)
        found = storage.copied(path, target)
        self._digests |= {os.path.join(name, part).rstrip("/"): it for part, it in found.digests.items()}
        self._links += [os.path.join(name, link) for link in found.links]
        self._states[path] = found.state
        return target

    @property
    def copy(self) -> Copy:
        """Return the copy as it is so far."""
        return Copy(self._folder, self._digests, self._links, self._lock)

    @property
    def states(self) -> Mapping[str, str]:
        """Return the state of each source as it was copied, see ``storage.state``."""
        return self._states

    def keep(self, key: str) -> Copy:
        """Give the copy to all processes of this user under a key, which stands for its content; return it.

        Where there is one already, that is returned.
        """
        content = json.dumps({"digests": self._digests, "links": self._links})
        kept = os.path.join(os.path.dirname(self._folder), key)
        with private_folder.os_errors(_NO_COPY):
            Path(self._folder, _TOLD).write_text(content, encoding="utf-8")
            with private_folder.turn(_TURN):
                if (held := _taken(kept)) is not None:
                    return replace(held, links=self._links)
                os.rename(self._folder, kept)
        return Copy(kept, self._digests, self._links, self._lock)


@contextlib.contextmanager
def making() -> Iterator[Making]:
    """Make a new copy in the body, which keeps it or not.

    Raises:
        StorageError: there is no room for it.
        UsageError: it cannot be made there, however often it is tried.
    """
    with private_folder.os_errors(_NO_COPY):
        top = _top()
        with private_folder.turn(_TURN):
            _sweep(top)
            folder = tempfile.mkdtemp(suffix=_UNFINISHED, dir=top)
            lock = _Lock(folder)
    try:
        yield Making(folder, lock)
    finally:
        # It is not there any more where it was kept.
        shutil.rmtree(folder, ignore_errors=True)


def found(key: str) -> Copy | None:
    """Return the copy that some process of this user has kept under a key, ``None`` where there is none."""
    # Where none can be made there is none, and whoever makes one is told why.
    with contextlib.suppress(OSError), private_folder.turn(_TURN):
        return _taken(os.path.join(_top(), key))
    return None


def _taken(folder: str) -> Copy | None:
    """Return a finished copy; in a turn, so that nobody removes it meanwhile."""
    try:
        told = json.loads(Path(folder, _TOLD).read_text(encoding="utf-8"))
        return Copy(folder, told["digests"], told["links"], _Lock(folder))
    except OSError:
        return None


def _end(pid: int) -> None:
    # A process that this one has forked does not end its use of them.
    if pid == os.getpid():
        for lock in list(_locks):
            lock.close()
        with contextlib.suppress(JobError, OSError), private_folder.turn(_TURN):
            _sweep(_top())


atexit.register(_end, os.getpid())


def _sweep(top: str) -> None:
    """Remove the copies that no process holds."""
    for name in os.listdir(top):
        folder = os.path.join(top, name)
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _top() -> str:
    """Return the folder of all copies, made where it is not there yet."""
    global _own
    try:
        top = os.path.join(private_folder.folder(), private_folder.MODELS)
    except JobError:
        # Somebody else has it, or a file has its name: then this process shares with none.
        if _own is None or not os.path.isdir(_own):
            _own = tempfile.mkdtemp(prefix="scoring-job-models-")
            atexit.register(shutil.rmtree, _own, ignore_errors=True)
        return _own
    os.makedirs(top, mode=0o700, exist_ok=True)
    return top


_own: str | None = None
