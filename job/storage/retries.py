"""Requests that may be sent again: how often, how long apart, and when to give up.

Every request of ours can be repeated: what it writes is the same each time, and one that is conditional and
was answered by nobody looks afterwards whether it took effect. Pauses grow and are drawn at random ("full
jitter": https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter), so that a
thousand workers do not come back at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from job.errors import StorageError, one_line

T = TypeVar("T")

# A store that is overloaded or restarted is back within this; a night that waits longer is better told.
BUDGET_S: Final = 90.0
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 8.0

# Not the common generator: a model that seeds it would have all workers come back at the same time.
_RANDOM: Final = random.SystemRandom()

_guards: dict[object, tuple[str, str, Callable[[bool], None]]] = {}


class TransientError(Exception):
    """A request failed in a way that may pass."""


class RefusedError(Exception):
    """A condition of a request does not hold: the object is there already, or is another one by now."""


def guarded(start: str, but: str, guard: Callable[[bool], None]) -> Callable[[], None]:
    """Call ``guard`` before every try of a request about what begins so, ``but`` one path, in any thread.

    It is told whether the request is sent again.

    What it raises ends the request: who stood still in the midst of one may have no business there any more.

    Returns:
        What puts an end to that.
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
