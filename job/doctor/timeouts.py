"""Calls with a time limit, each in its own thread.

A server may accept a connection and never answer, or a client may retry without end. The doctor then stops
waiting and leaves the thread behind, see ``anything_overdue``.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from job.engines.engine import Check
from job.errors import JobError, one_line

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
_AFTER_ANOTHER_S: Final = 15.0
_overdue: Final[list[threading.Thread]] = []


class Call(Generic[T]):
    """A call of ``act``, started at once in a thread.

    After :meth:`wait`, ``came`` says whether it returned in time; then ``value`` is what it returned.
    """

    def __init__(self, name: str, act: Callable[[], T], *, limit_s: float) -> None:
        self.name = name
        self.value: T | None = None
        self.came = False
        self._error: BaseException | None = None
        self._limit_s, self._began_s = limit_s, time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True, name=f"check of {name}")
        self._thread.start()

    def _run(self, act: Callable[[], T]) -> None:
        try:
            self.value = act()
            self.came = True
        except BaseException as e:  # noqa: BLE001 - wait() returns it as a check
            self._error = e
            # Shown with --debug.
            _LOG.info("%s\n%s", self.name, "".join(traceback.format_exception(e)))

    def wait(self) -> T | Check:
        """Return the value, or a failed check if there is none."""
        # If a call did not come back, others may be waiting for the same server: wait less for them.
        limit_s = min(self._limit_s, _AFTER_ANOTHER_S) if anything_overdue() else self._limit_s
        self._thread.join(max(0.0, self._began_s + limit_s - time.monotonic()))
        if self._thread.is_alive():
            _overdue.append(self._thread)
            told = f"no answer within {limit_s:.0f} s"
            return Check(self.name, False, told, "see whether it is up, and reached from here")
        if self.came:
            return self.value  # type: ignore[return-value]
        if isinstance(self._error, JobError):
            return Check.of_error(self.name, self._error)
        return Check(self.name, False, one_line(self._error or RuntimeError()), "see more with --debug")

    def check(self, told: Callable[[T], Check]) -> Check:
        """Return the check that ``told`` makes of the value, or a failed check if there is none."""
        found = self.wait()
        return found if isinstance(found, Check) and not self.came else told(self.value)  # type: ignore[arg-type]


def anything_overdue() -> bool:
    """Say whether a thread was left behind; Python would wait at exit for what it has started."""
    return any(thread.is_alive() for thread in _overdue)
