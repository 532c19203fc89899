"""Results on standard output: lines, tables, and one JSON line at the end."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job import escapes
from job.errors import StorageError
from job.terminal import progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text


def cell(text: str, style: str = "") -> Text:
    """Return a cell for one of rich's tables: one line, in which nothing is read as markup."""
    from rich.text import Text

    return Text(escapes.visible(text), style=style)


def grid(told: Mapping[str, str]) -> Table:
    """Return labels and values as two columns that stay readable in a narrow terminal or a pipe."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in told.items():
        table.add_row(cell(label, "bold"), cell(value))
    return table


def show(*lines: str, needed: bool = False) -> None:
    """Write lines to standard output, each with a line break.

    If the reader has left, that is no error. A full disk is one only if the lines are the command's purpose
    (``needed``); otherwise the night is published all the same, and a line on standard error says so.

    Raises:
        StorageError: they are needed, and cannot be written.
    """
    _write(lambda: "".join(f"{escapes.visible(line)}\n" for line in lines), needed=needed)


def draw(what: RenderableType, *, needed: bool = False) -> None:
    """Write a table or another renderable of rich to standard output, as :func:`show` does."""
    _write(lambda: _rendered(what), needed=needed)


def _write(text: Callable[[], str], *, needed: bool) -> None:
    if sys.stdout is None:  # closed, as under some schedulers
        return
    try:
        # Rich looks at the stream while it renders.
        sys.stdout.write(text())
        sys.stdout.flush()
    except OSError as e:
        # Python flushes once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            return
        reason = e.strerror or str(e)
        if needed:
            raise StorageError(f"standard output: cannot be written: {reason}") from e
        progress.say(f"standard output cannot be written: {reason}; the exit code says how it ended")


def _rendered(what: RenderableType) -> str:
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    # Captured, because rich ends the process where a reader has left.
    with console.capture() as captured:
        console.print(_Shown(what))
    return captured.get()


@dataclass(frozen=True)
class _Shown:
    """A renderable without characters that would steer the terminal; rich's own styles stay."""

    what: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.what, options):
            shown = segment.text if segment.control else escapes.visible_lines(segment.text)
            yield segment._replace(text=shown)


@contextmanager
def kept_for_the_end(*, asked: bool) -> Iterator[None]:
    """In the body, send everything for standard output to standard error, if that is ``asked`` for.

    This includes what a model's builder, a C++ library or a child process writes.
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
    with suppress(OSError):  # a full disk is told of when something is shown
        sys.stdout.flush()
    # What C has written to a pipe it keeps until the process ends, after our line.
    ctypes.CDLL(None).fflush(None)
