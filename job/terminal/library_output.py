"""The noise of libraries on standard error: hidden, unless something fails or ``--debug`` is given.

It has four sources, and each is stopped in its own way:

* C++ in TensorFlow writes to file descriptor 2. Once running it obeys
  ``TF_CPP_MIN_LOG_LEVEL``; while it is being imported it obeys nothing, so
  :func:`imports` keeps what is written meanwhile and shows it only if the import fails.
* Python loggers of Beam, TensorFlow and the network libraries: their levels.
* Python warnings: the filter.
* Beam's worker prints the traceback of a failing element with ``print``; :func:`engine` drops it.

Levels and filter belong to the process, so they hold in the worker threads of the embedded
engine; the environment variable reaches worker processes. ``--debug`` sets it to ``0``, which
is also how :func:`imports` knows, in any process, to hide nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, TextIO, cast

from job import secrets

TF_LEVEL: Final = "TF_CPP_MIN_LOG_LEVEL"

_ERRORS_ONLY: Final = ("absl", "apache_beam", "google", "grpc", "tensorflow", "urllib3")

# A worker logs a failing element several times, with its traceback. The launcher raises the same error and
# prints the one line that a person needs.
_RAISED_ANYWAY: Final = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker",
    "apache_beam.runners.dataflow",
)

_capturing = threading.Lock()


def hush(*, debug: bool) -> None:
    """Silence start-up noise in this process and its children; with ``debug``, ask for it.

    Call it before the first import of TensorFlow or Beam. A level that is set in the environment stays.
    """
    if debug:
        os.environ[TF_LEVEL] = "0"
        logging.basicConfig(level=logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(secrets.Scrubbing(logging.BASIC_FORMAT))
        return
    if logging.lastResort is not None:
        # It prints the errors of loggers without a handler.
        logging.lastResort.setFormatter(secrets.Scrubbing())
    os.environ.setdefault(TF_LEVEL, "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger().setLevel(logging.ERROR)
    for name in _ERRORS_ONLY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _RAISED_ANYWAY:
        # Even what they call fatal.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def hush_all_of(package: str) -> None:
    """Silence a package that logs what it also raises, and sets its loggers' levels when it is imported.

    Call it after the import.
    """
    if os.environ.get(TF_LEVEL) == "0":
        return
    for name in (package, *logging.root.manager.loggerDict):
        if name.partition(".")[0] == package:
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def imports() -> Iterator[None]:
    """Run the body with file descriptor 2 kept aside; show what was written if the body raises.

    Use it for imports only: while it runs, nothing reaches standard error, from any thread. If a second
    thread enters, the first one's capture serves both, since the descriptor belongs to the process. With
    ``TF_CPP_MIN_LOG_LEVEL=0`` nothing is hidden.
    """
    if os.environ.get(TF_LEVEL) == "0" or not _capturing.acquire(blocking=False):
        yield
        return
    try:
        with _stderr_kept_aside():
            yield
    finally:
        _capturing.release()


@contextmanager
def engine() -> Iterator[None]:
    """Run a pipeline without the tracebacks that the embedded engine's threads print when it fails.

    Nothing is lost: the exception that the pipeline raises says what went wrong.
    """
    original, hook = sys.stderr, threading.excepthook
    if original is None or os.environ.get(TF_LEVEL) == "0":
        yield
        return
    sys.stderr = cast("TextIO", _WithoutTracebacks(original))
    threading.excepthook = lambda _: None
    # It logs that it cannot close the connection of a worker that died.
    closing = logging.getLogger("apache_beam.runners.portability.fn_api_runner.worker_handlers")
    level = closing.level
    closing.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        sys.stderr, threading.excepthook = original, hook
        closing.setLevel(level)


class _WithoutTracebacks:
    """A text stream that drops tracebacks written in one piece and passes everything else on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._dropped = threading.local()  # print() writes the text, then its newline

    def write(self, text: str) -> int:
        after_traceback = getattr(self._dropped, "last", False)
        self._dropped.last = text.startswith("Traceback (most recent call last):\n")
        if self._dropped.last or (after_traceback and text == "\n"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _stderr_kept_aside() -> Iterator[None]:
    try:
        original = os.dup(2)
    except OSError:  # standard error is closed, as under some schedulers: nothing to hide
        yield
        return
    with tempfile.TemporaryFile() as kept:
        _flush_stderr()
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            _restore(original)
            _replay(kept)
            raise
        else:
            _restore(original)


def _restore(original: int) -> None:
    _flush_stderr()
    os.dup2(original, 2)
    os.close(original)


def _replay(kept: IO[bytes]) -> None:
    kept.seek(0)
    with os.fdopen(os.dup(2), "wb") as stderr:
        stderr.write(kept.read())


def _flush_stderr() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
