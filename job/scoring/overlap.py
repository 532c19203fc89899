"""Several splits in progress at once, for files in buckets: one is scored while others wait for the store.

A split in a bucket waits for about eight answers: of its receipt, its footer, its data, its attempt. On a
disk such waits are too short to matter, and splits are scored one after the other. In a bucket each split
gets a thread of its own. Still only one at a time is scored, so that the model needs no more memory and no
more cores than on a disk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

T = TypeVar("T")

MOST_AT_ONCE: Final = 8
# Two shards are always read at a time, the one that is scored and the next; more, while they are this small.
READ_BYTES: Final = 32 << 20


class StoppedError(Exception):
    """Another split of the bundle has failed, so this one is given up."""


class Overlap(Generic[T]):
    """Runs work in at most ``MOST_AT_ONCE`` threads, and yields results in the order in which it was begun.

    It has one owner: ``begin``, ``finish`` and ``forget`` are called by one thread at a time.
    """

    def __init__(self) -> None:
        self._pending: deque[Future[T]] = deque()
        self._changed = threading.Condition()
        self._reading: list[int] = []
        self._scoring = False
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], T]) -> Iterator[T]:
        """Wait for a free thread and start ``work`` in it; yield results of work that was begun before.

        Raises:
            Exception: the error of the first work that failed; all other work has ended by then.
        """
        while len(self._pending) >= MOST_AT_ONCE or (self._pending and self._pending[0].done()):
            yield self._result()
        # Daemons: they do not keep a process alive that is told to end.
        self._pending.append(shared_unbounded_instance().submit(self._run, work))

    def finish(self) -> Iterator[T]:
        """Wait for all work, and yield the results that are left; raises as ``begin`` does."""
        while self._pending:
            yield self._result()

    def forget(self) -> None:
        """Wait for all work, and drop its results."""
        wait(self._pending)
        self._pending.clear()
        self._error = None

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseException as e:
            with self._changed:
                self._error = self._error or e
                self._changed.notify_all()
            raise

    def _result(self) -> T:
        future = self._pending.popleft()
        wait([future])
        if self._error is not None:
            error = self._error
            # Nobody is to write anything after the error has been told.
            self.forget()
            raise error
        return future.result()

    @contextmanager
    def reading(self, size_bytes: int) -> Iterator[None]:
        """Reserve memory for reading a shard while the body runs; wait until there is enough.

        Raises:
            StoppedError: other work has failed.
        """
        with self._when(lambda: len(self._reading) < 2 or sum(self._reading) + size_bytes <= READ_BYTES):
            self._reading.append(size_bytes)
        try:
            yield
        finally:
            with self._changed:
                self._reading.remove(size_bytes)
                self._changed.notify_all()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Wait for this split's turn to be scored, and hold it while the body runs.

        Raises:
            StoppedError: other work has failed.
        """
        with self._when(lambda: not self._scoring):
            self._scoring = True
        try:
            yield
        finally:
            with self._changed:
                self._scoring = False
                self._changed.notify_all()

    @contextmanager
    def _when(self, condition: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or condition())
            if self._error is not None:
                raise StoppedError
            yield
