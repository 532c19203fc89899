"""Requests that may be sent again: how often, how long apart, and when to give up.

Every request can be repeated, since it writes the same each time. A conditional request that got no answer
checks afterwards whether it took effect. Pauses grow and are random ("full jitter":
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter), so that a thousand workers
do not come back at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from job.errors import StorageError, one_line

T = TypeVar("T")

# An overloaded or restarted store is back within this time. If it is not, a person should know.
BUDGET_S: Final = 90.0
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 8.0

# Not the default generator: if a model seeds that, all workers would come back at the same time.
_RANDOM: Final = random.SystemRandom()

_guards: dict[object, tuple[str, str, Callable[[bool], None]]] = {}


class TransientError(Exception):
    """A request failed in a way that may pass."""


class RefusedError(Exception):
    """The condition of a request does not hold: the object exists already, or was replaced."""


def guarded(start: str, but: str, guard: Callable[[bool], None]) -> Callable[[], None]:
    """Call ``guard`` before each try of a request about a path that begins with ``start``, in any thread.

    Requests about the path ``but`` are not guarded. ``guard`` is told whether the request is sent again. If
    it raises, the request ends: a process that was suspended in between may no longer be allowed to send it.

    Returns:
        A function that ends this.
    """
    key = object()
    _guards[key] = (start, but, guard)

    def end() -> None:
        del _guards[key]

    return end


def patiently(
    where: str,
    request: Callable[[], T],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Send a request until it succeeds, fails for good, or ``BUDGET_S`` are spent.

    Raises:
        StorageError: the budget is spent; the message names ``where``.
    """
    give_up_s = clock() + BUDGET_S
    ceiling_s, tries = FIRST_PAUSE_S, 0
    while True:
        tries += 1
        for start, but, guard in tuple(_guards.values()):
            if where.startswith(start) and where != but:
                guard(tries > 1)
        try:
            return request()
        except TransientError as e:
            pause_s = _RANDOM.uniform(0.0, ceiling_s)
            if clock() + pause_s > give_up_s:
                raise StorageError(
                    f"{where}: no good answer in {tries} tries within {BUDGET_S:.0f} s, last "
                    f"{one_line(e.__cause__ or e)}; run again when the store answers"
                ) from e
            sleep(pause_s)
            ceiling_s = min(LONGEST_PAUSE_S, 2 * ceiling_s)
