"""Ctrl-C and SIGTERM: both end a command the same way, so that schedulers get what a person gets.

Without a handler SIGTERM ends a process on the spot: a job on an engine elsewhere would go on, and nobody
would be told. As the first process of a container it would even be ignored, until the container is killed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_INTERRUPTED: Final = 128 + signal.SIGINT  # as shells report it


class Terminated(KeyboardInterrupt):
    """SIGTERM, as systemd and Kubernetes send it; whoever looks after Ctrl-C looks after this too."""


def raise_for(number: int, _: FrameType | None = None) -> None:
    """Raise what a signal stands for; a handler of signals."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def exit_code(error: KeyboardInterrupt) -> int:
    """Return what a command ends with that was stopped so."""
    return 128 + signal.SIGTERM if isinstance(error, Terminated) else _INTERRUPTED


def told(error: KeyboardInterrupt) -> str:
    """Return what a person is told of it."""
    how = "terminated by SIGTERM" if isinstance(error, Terminated) else "interrupted"
    return f"{how}; the same command resumes where this one stopped"


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the body on SIGTERM, unless somebody has decided otherwise."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_for)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def later() -> Iterator[None]:
    """Raise a first Ctrl-C or SIGTERM only when the body has ended; a second one at once."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise_for(number)
        came.append(number)

    # What ends the process without us, or is ignored, stays so.
    handled = [one for one in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(one))]
    before = {one: signal.signal(one, note) for one in handled}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if came:
        raise_for(came[0])
