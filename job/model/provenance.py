"""What a builder reads besides its sources: the files that it opens, and the folders that it lists.

A builder may load a model from a file beside it, or the newest of a folder. Its sources say nothing of what
is in there, so a night of the model that was trained again would be the same run. An audit hook (PEP 578)
sees what is read while a builder runs, in its thread; what was read is part of the run. The night's manifest
names it, so that the same command later finds out without the builder whether it is there unchanged.

Seen are files that Python opens, modules that are imported from where nothing is installed, databases of
SQLite, and what Keras reads past Python: by ``h5py``, by TensorFlow's ``GFile`` and for its tables. Of a
SavedModel all files count. Not seen is what other libraries open by themselves (a checkpoint that TensorFlow
restores, Arrow's own files), what other threads open, what is read when the model is called for the first
time, and what comes over the network. Of folders, new names of files and of models count.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import site
import stat
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from job import storage
from job.errors import ModelError
from job.model import artifact
from job.spec import ModelReference, Reads

_PSEUDO_FILES: Final = ("/proc/", "/sys/", "/dev/")
_SAVED_MODEL: Final = "saved_model.pb"


class Recorder:
    """What one thread reads."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._opened: dict[str, tuple[int, ...]] = {}
        self._written: set[str] = set()
        self._listed: set[str] = set()

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Take note of an audit event."""
        if threading.get_ident() != self._thread:
            return
        if event == "open":
            self.open(args[0], reads=args[2] & os.O_ACCMODE == os.O_RDONLY)
        elif event == "sqlite3.connect":
            self.open(args[0], reads=True)
        elif event == "os.rename":
            self.open(args[1], reads=False)
        elif event in ("os.listdir", "os.scandir"):
            # The import system looks through all folders that modules may be in.
            caller = sys._getframe(2).f_code.co_filename
            if "importlib" not in caller and (path := _place(args[0] or ".")):
                self._listed.add(path)

    def open(self, given: Any, *, reads: bool) -> None:
        """Take note of a file that is opened."""
        if not (path := _place(given)):
            return
        if not reads:
            self._written.add(path)
            return
        if path.endswith(".pyc"):
            # It is made of the source, and may be there or not.
            with suppress(ValueError):
                path = importlib.util.source_from_cache(path)
        with suppress(OSError):
            self._opened.setdefault(path, _stamp(os.stat(path)))

    def found(self, known: Collection[str]) -> Reads:
        """Return what is there of it, with digests, sorted; without ``known`` files, which count anyway.

        Raises:
            ModelError: a file was changed since it was opened, by somebody else.
        """
        for path, stamp in self._opened.items():
            with suppress(OSError):
                if _stamp(os.stat(path)) != stamp and path not in self._written:
                    raise ModelError(f"{path}: it was changed while the model's builder read it; run again")
        paths = set(self._opened) | {f"{path}/" for path in self._listed}
        for path in self._opened:
            if os.path.basename(path) == _SAVED_MODEL:
                # TensorFlow reads its variables by itself.
                paths.update(info.path for info in storage.tree(os.path.dirname(path)))
        return tuple((path, digest) for path, digest in now(paths - set(known)) if digest)


def now(paths: Iterable[str]) -> Reads:
    """Return digests of files, and of folders, whose paths end with ``/``; empty where there is none."""
    return tuple((path, _listing(path) if path.endswith("/") else _digest(path)) for path in sorted(paths))


def check_same(reference: ModelReference, reads: Reads) -> None:
    """Refuse a model whose builder read another file than the one for the run, by the same name.

    It may have been changed since the run was planned, or be another one on this machine. Other names are no
    sign of either: what is read may depend on where one is.

    Raises:
        ModelError: it did.
    """
    planned = dict(reference.reads)
    for path, digest in reads:
        if not path.endswith("/") and planned.get(path, digest) != digest:
            raise ModelError(
                f"{reference.path}: its builder read {path} here, whose SHA-256 is {digest}; where the run "
                f"was planned it was {planned[path]}; put the same file there, or start a new run"
            )


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Record what this thread reads in the body."""
    _install()
    # One at a time: those who go through a door that is no longer theirs would leave it open.
    with _recording, ExitStack() as stack:
        recorder = Recorder()
        for kind, parameter in _doors():
            stack.enter_context(_noting(kind, parameter, recorder))
        _recorders.append(recorder)
        stack.callback(_recorders.remove, recorder)
        yield recorder


_recording: Final = threading.RLock()
_recorders: Final[list[Recorder]] = []


@functools.cache
def _install() -> None:
    """Install the hook, which stays as long as the process."""
    events = frozenset({"open", "sqlite3.connect", "os.rename", "os.listdir", "os.scandir"})

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in events:
            for recorder in _recorders:
                # Whoever opens the file must not fail because of it.
                with suppress(TypeError, ValueError, LookupError, OSError):
                    recorder.note(event, args)

    sys.addaudithook(hook)


def _doors() -> Iterator[tuple[Any, str]]:
    """Yield the classes by which Keras reads files past Python, with the parameter that is the path."""
    with suppress(ImportError):
        # Keras brings it.
        yield importlib.import_module("h5py").File, "name"
    if "tensorflow" in sys.modules:
        yield importlib.import_module("tensorflow.python.lib.io.file_io").FileIO, "name"
        # Of a vocabulary.
        yield importlib.import_module("tensorflow.python.ops.lookup_ops").TextFileInitializer, "filename"


@contextmanager
def _noting(kind: Any, parameter: str, recorder: Recorder) -> Iterator[None]:
    """Let objects of a class that opens files tell a recorder, as Python's own do."""
    begin = kind.__init__
    signature = inspect.signature(begin)

    @functools.wraps(begin)
    def noted(*args: Any, **kwargs: Any) -> None:
        with suppress(TypeError):
            given = signature.bind(*args, **kwargs).arguments
            flags = os.O_RDONLY if given.get("mode", "r") in ("r", "rb") else os.O_RDWR
            recorder.note("open", (given[parameter], None, flags))
        begin(*args, **kwargs)

    kind.__init__ = noted
    try:
        yield
    finally:
        kind.__init__ = begin


def _place(given: Any) -> str:
    """Return the absolute path of what is opened; nothing of what is no file, or is installed."""
    if not isinstance(given, (str, bytes, os.PathLike)):
        return ""
    path = os.fsdecode(given)
    if "\0" in path or "://" in path or path == ":memory:":
        return ""
    path = os.path.abspath(path)
    return "" if path.startswith((*_PSEUDO_FILES, *_installed())) else path


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the folders of what is installed, this package among them, with ``/`` at their ends."""
    named = sysconfig.get_paths()
    folders = [named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return tuple(f"{os.path.abspath(folder)}/" for folder in folders)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest(path: str) -> str:
    """Return the SHA-256 of a file; nothing of what is no file."""
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return _digest_of(path, _stamp(status))
    return ""


@functools.lru_cache(maxsize=4096)
def _digest_of(path: str, _: tuple[int, ...]) -> str:
    return storage.sha256(path)


def _listing(path: str) -> str:
    """Return a digest of the names in a folder of files and of models; nothing of what is no folder."""
    with suppress(OSError), os.scandir(path) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith((".", "_"))
            and (entry.is_file() or any(os.path.exists(f"{entry.path}/{mark}") for mark in artifact.marks()))
        )
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    return ""
