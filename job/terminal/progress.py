"""Progress and messages on standard error: how many rows are done, how fast, and how long it will take.

The scoring loop calls ``rows_done.add(rows)`` once per batch, in whatever thread; in the
embedded engine those threads share this process, so the count is the run's. Other engines
score elsewhere: for those :func:`shown` asks, every two seconds, how many rows are finished.

On a terminal this is a bar; elsewhere a line every ten seconds, and none for a shorter run.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job import escapes, secrets
from job.errors import JobError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Clock = Callable[[], float]

LINE_EVERY_S: Final = 10.0

# Long enough to even out the pause while a file is closed, short enough that the first
# seconds, when the model is traced, do not spoil the estimate for an hour.
RATE_WINDOW_S: Final = 30.0

_LOOK_EVERY_S: Final = 0.5
_POLL_EVERY_S: Final = 2.0


class RowCounter:
    """A count of rows that many threads add to; adding takes about a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = 0

    def add(self, rows: int) -> None:
        """Count ``rows`` more; a failed attempt subtracts what it added."""
        with self._lock:
            self._rows += rows

    @property
    def value(self) -> int:
        """Rows counted since the process began."""
        return self._rows


rows_done: Final = RowCounter()


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment. ``rows_per_s`` is recent, and ``None`` before the first rows."""

    rows: int
    total_rows: int
    elapsed_s: float
    rows_per_s: float | None

    @property
    def share(self) -> float:
        """Part of the rows that is done, 0 to 1; 1 where there are no rows."""
        return self.rows / self.total_rows if self.total_rows else 1.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at the recent rate, or ``None`` while there is no rate."""
        return (self.total_rows - self.rows) / self.rows_per_s if self.rows_per_s else None

    def text(self) -> str:
        """Return one plain line with every figure."""
        # Rounded down: 100% must mean all of them.
        parts = [f"{self.rows:,} of {self.total_rows:,} rows ({int(self.share * 100)}%)"]
        if self.rows_per_s is not None:
            parts.append(f"{self.rows_per_s:,.0f} rows/s")
        if self.left_s is not None and self.rows < self.total_rows:
            parts.append(f"{duration(self.left_s)} left")
        return ", ".join([*parts, f"{duration(self.elapsed_s)} so far"])


class Progress:
    """Rows done out of ``total_rows``, and the recent speed.

    ``reused_rows`` are done before the start and do not count as speed. Only one thread may call
    :meth:`look`.
    """

    def __init__(
        self, total_rows: int, reused_rows: int = 0, *, clock: Clock, counter: RowCounter = rows_done
    ) -> None:
        self._total_rows = total_rows
        self._clock = clock
        self._counter = counter
        self._offset = reused_rows - counter.value
        self._started_s = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._started_s, reused_rows)])

    def set(self, rows: int) -> None:
        """Say how many of the total rows are done, reused ones included."""
        self._offset = rows - self._counter.value

    def at_least(self, rows: int) -> None:
        """Say that no fewer than these of the total rows are done, reused ones included."""
        if rows > self._counter.value + self._offset:
            self.set(rows)

    def look(self) -> Snapshot:
        """Return the state of the run now, and remember it for the speed."""
        now_s = self._clock()
        # An engine may score a split twice after a kill; more than all would be nonsense.
        rows = max(0, min(self._counter.value + self._offset, self._total_rows))
        self._samples.append((now_s, rows))
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - RATE_WINDOW_S:
            self._samples.popleft()
        first_s, first_rows = self._samples[0]
        moved = rows > first_rows and now_s > first_s
        rows_per_s = (rows - first_rows) / (now_s - first_s) if moved else None
        return Snapshot(rows, self._total_rows, now_s - self._started_s, rows_per_s)


class PlainLines:
    """Prints a line every :data:`LINE_EVERY_S` seconds, the first one after that time; for logs and pipes."""

    def __init__(self, progress: Progress, say: Callable[[str], None]) -> None:
        self._progress = progress
        self._say = say
        self._said_s = 0.0

    def tick(self) -> None:
        """Print a line if it is time."""
        snapshot = self._progress.look()
        if snapshot.elapsed_s - self._said_s >= LINE_EVERY_S:
            self._said_s = snapshot.elapsed_s
            self._say(snapshot.text())

    def finish(self) -> None:
        """Print the last state, if any line was printed before."""
        if self._said_s:
            self._say(self._progress.look().text())


@functools.cache
def console() -> Console:
    """Return the only console on standard error, so that messages and the bar do not collide."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Write one line to standard error without secrets and escapes; it is not folded to the terminal.

    If standard error cannot be written, nothing happens.
    """
    _say(escapes.visible(secrets.scrub(text)))


def say_lines(text: str) -> None:
    """Write several lines to standard error, such as a traceback, as ``say`` does."""
    _say(escapes.visible_lines(secrets.scrub(text)))


def _say(text: str) -> None:
    from rich.text import Text

    with suppress(OSError):
        # Text, because what is told of may hold what would read as markup, or as the name of an emoji.
        console().print(Text(text), soft_wrap=True)


@contextmanager
def shown(
    total_rows: int,
    reused_rows: int = 0,
    *,
    clock: Clock = time.monotonic,
    finished_rows: Callable[[], int] | None = None,
) -> Iterator[Progress]:
    """Show progress while the body runs; ``reused_rows`` of ``total_rows`` are done already.

    Where other processes score, ``finished_rows`` returns how many rows they have finished.
    """
    progress = Progress(total_rows, reused_rows, clock=clock)
    view = _bar(progress) if console().is_terminal else _lines(progress)
    with view, nullcontext() if finished_rows is None else _polled(progress, finished_rows):
        yield progress


@contextmanager
def _polled(progress: Progress, finished_rows: Callable[[], int]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        wait_s = _POLL_EVERY_S
        while not over.wait(wait_s):
            began_s = time.monotonic()
            # A look that fails is made up for by the next one.
            with suppress(JobError, OSError):
                progress.at_least(finished_rows())
            # Of a million splits a look takes a while; it must not become the main load on a file server.
            wait_s = max(_POLL_EVERY_S, 10 * (time.monotonic() - began_s))

    poller = threading.Thread(target=run, name="progress-poll", daemon=True)
    poller.start()
    try:
        yield
    finally:
        over.set()
        poller.join()


@contextmanager
def _bar(progress: Progress) -> Iterator[None]:
    from rich.live import Live

    # Standard output is left alone: it may be a pipe that wants results only.
    with Live(
        console=console(),
        get_renderable=lambda: render(progress.look()),
        refresh_per_second=1 / _LOOK_EVERY_S,
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
    ):
        yield


@contextmanager
def _lines(progress: Progress) -> Iterator[None]:
    lines = PlainLines(progress, say)
    over = threading.Event()

    def run() -> None:
        while not over.wait(_LOOK_EVERY_S):
            lines.tick()

    ticker = threading.Thread(target=run, name="progress", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
    lines.finish()


def render(snapshot: Snapshot) -> Table:
    """Return one line: a bar and the figures beside it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(ProgressBar(total=1.0, completed=snapshot.share), snapshot.text())
    return row


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``8s``, ``3m05s``, ``2h07m``."""
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{whole_s}s"
    if whole_s < 3600:
        return f"{whole_s // 60}m{whole_s % 60:02}s"
    return f"{whole_s // 3600}h{whole_s % 3600 // 60:02}m"
