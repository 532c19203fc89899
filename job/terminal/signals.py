"""Ctrl-C and SIGTERM end a command in the same way, so schedulers get the same result as people.

Without a handler SIGTERM would end the process at once: a job on an engine elsewhere would go on, and nobody
would be told. The first process of a container would even ignore it, until the container is killed.
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
    """SIGTERM, as systemd and Kubernetes send it. Code that handles Ctrl-C handles it too."""


def raise_for(number: int, _: FrameType | None = None) -> None:
    """Raise the exception for a signal; this is a signal handler."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a command that a signal ended."""
    return 128 + signal.SIGTERM if isinstance(error, Terminated) else _INTERRUPTED


def told(error: KeyboardInterrupt) -> str:
    """Return the line that tells a person which signal ended the command."""
    how = "terminated by SIGTERM" if isinstance(error, Terminated) else "interrupted"
    return f"{how}; the same command resumes where this one stopped"


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the body on SIGTERM, unless the process handles SIGTERM already."""
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
    """Hold back a first Ctrl-C or SIGTERM until the body has ended; a second one is raised at once."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise_for(number)
        came.append(number)

    # A signal that is ignored, or ends the process by itself, stays as it is.
    handled = [one for one in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(one))]
    before = {one: signal.signal(one, note) for one in handled}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if came:
        raise_for(came[0])
