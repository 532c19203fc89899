"""Results on standard output."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(what: str | RenderableType) -> None:
    """Write a result to standard output; a reader that has left does not turn success into failure."""
    if sys.stdout is None:  # closed, as under some schedulers
        return
    try:
        if isinstance(what, str):
            sys.stdout.write(what)
        else:
            from rich.console import Console

            Console(highlight=False).print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def kept_for_the_end(*, asked: bool) -> Iterator[None]:
    """Send what is written to standard output in the body to standard error, if that is ``asked`` for.

    Whoever writes it: a model's builder, a library in C++, a process that is started meanwhile.
    """
    if not asked or sys.stdout is None:
        yield
        return
    _flush()
    kept, aside = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed, as under some schedulers
        os.dup2(aside, 1)
    try:
        with os.fdopen(aside, "w") as nowhere, redirect_stdout(sys.stderr or nowhere):
            yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    sys.stdout.flush()
    # What C has written to a pipe it keeps until the process ends, after our line.
    ctypes.CDLL(None).fflush(None)
