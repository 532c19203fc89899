"""When a request is sent again, how long after, and when no more. Time is counted here, never slept."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import ShardChangedError, StorageError, UsageError
from job.storage import buckets
from job.storage.buckets import RefusedError, TransientError, patiently

# As the documentation of object stores has them.
BUDGET_S, FIRST_S, LONGEST_S = 90.0, 0.2, 8.0
ROUNDED_S = 1e-6
ANY = settings(max_examples=200, deadline=None, derandomize=True)


class Store:
    """A store that fails so many times, each taking its seconds, on a clock of its own."""

    def __init__(self, failures_s: Sequence[float], last: Exception | None = None) -> None:
        self.now_s, self.asked = 1e6, 0
        self.pauses_s = list[float]()
        self._failures_s, self._last = failures_s, last

    def request(self) -> str:
        """Fail, or answer."""
        self.asked += 1
        if self.asked <= len(self._failures_s):
            self.now_s += self._failures_s[self.asked - 1]
            raise TransientError(f"failure {self.asked}")
        if self._last is not None:
            raise self._last
        return "answer"

    def sleep(self, pause_s: float) -> None:
        """Let time pass."""
        self.pauses_s.append(pause_s)
        self.now_s += pause_s

    def patiently(self) -> str:
        """Ask until it answers."""
        return patiently("s3://b/x", self.request, clock=lambda: self.now_s, sleep=self.sleep)


def ceiling_s(number: int) -> float:
    """Return the longest pause after so many pauses."""
    return float(min(LONGEST_S, FIRST_S * 2**number))


class Drawn:
    """Draws as it is told to, and then nothing any more."""

    def __init__(self, parts: Sequence[float]) -> None:
        self._parts = iter(parts)

    def uniform(self, low: float, high: float) -> float:
        """Return a number that lies so far between the two."""
        return low + next(self._parts, 0.0) * (high - low)


PART = st.one_of(st.floats(0, 1), st.just(1.0))


@ANY
@given(failures=st.lists(st.tuples(st.floats(0, 30), PART), max_size=40))
def test_a_request_is_repeated_until_it_is_answered_or_the_budget_is_spent(
    failures: list[tuple[float, float]],
) -> None:
    """Each failure takes its seconds; the pause after it is a part of the longest that it may be."""
    store, began_s, told = Store([took_s for took_s, _ in failures]), 1e6, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_RANDOM", Drawn([part for _, part in failures]))
        try:
            assert store.patiently() == "answer"
        except StorageError as e:
            told = str(e)
    wanted_s = [part * ceiling_s(number) for number, (_, part) in enumerate(failures)]
    assert store.pauses_s == pytest.approx(wanted_s[: store.asked - 1])
    # No request is begun after the budget: what takes longer is at most the last one.
    begun_s = sum(took_s for took_s, _ in failures[: store.asked - 1]) + sum(store.pauses_s)
    assert begun_s <= BUDGET_S + ROUNDED_S
    if told:
        # Nor is it given up while there is time.
        assert store.now_s - began_s + wanted_s[store.asked - 1] > BUDGET_S - ROUNDED_S
        assert f"in {store.asked} tries within 90 s, last TransientError: failure {store.asked};" in told
    else:
        assert store.asked == len(failures) + 1


def test_a_store_that_never_answers_is_asked_often_enough_and_never_in_a_rush() -> None:
    """Of drawn pauses so many fit into the budget; of the longest ones at least these do."""
    longest = itertools.accumulate(ceiling_s(number) for number in itertools.count())
    least = 1 + sum(1 for _ in itertools.takewhile(lambda sum_s: sum_s <= BUDGET_S, longest))
    tries = []
    for _ in range(200):
        store = Store([0.0] * 10_000)
        with pytest.raises(StorageError):
            store.patiently()
        tries.append(store.asked)
    assert min(tries) >= least == 16
    # On average a pause is half as long as the longest.
    assert 20 < sum(tries) / len(tries) < 35


def test_pauses_are_drawn_evenly_from_nothing_to_the_longest() -> None:
    drawn: dict[int, list[float]] = {}
    for _ in range(400):
        store = Store([0.0] * 8)
        store.patiently()
        for number, pause_s in enumerate(store.pauses_s):
            drawn.setdefault(number, []).append(pause_s / ceiling_s(number))
    for number, parts in drawn.items():
        # Each quarter has some 100 of 400; chance passes six deviations of 8.7 once in ten million runs.
        quarters = [sum(math.floor(4 * part) == quarter for part in parts) for quarter in range(4)]
        assert all(abs(count - 100) < 6 * 8.7 for count in quarters), (number, quarters)


def test_a_seed_does_not_make_all_workers_come_back_together() -> None:
    def pauses() -> list[float]:
        random.seed(1)
        store = Store([0.0] * 5)
        store.patiently()
        return store.pauses_s

    kept = random.getstate()
    assert pauses() != pauses()
    random.setstate(kept)


@pytest.mark.parametrize(
    "error",
    [
        StorageError("not allowed"),
        ShardChangedError("replaced"),
        UsageError("no bucket"),
        FileNotFoundError("gone"),
        RefusedError("condition"),
        ConnectionError("that nobody called transient"),
        ValueError("our own mistake"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_what_cannot_pass_is_never_repeated(error: Exception, before: int) -> None:
    store = Store([0.0] * before, last=error)
    with pytest.raises(type(error)) as caught:
        store.patiently()
    assert caught.value is error
    assert (store.asked, len(store.pauses_s)) == (before + 1, before)


def test_an_interruption_ends_the_pause_and_the_request() -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    store = Store([0.0] * 5)
    with pytest.raises(KeyboardInterrupt):
        patiently("s3://b/x", store.request, clock=lambda: store.now_s, sleep=interrupted)
    assert store.asked == 1


def failing(cause: Exception | None) -> Callable[[], str]:
    def request() -> str:
        raise TransientError("in short") from cause

    return request


@pytest.mark.parametrize(
    ("cause", "told"),
    [(None, "TransientError: in short"), (OSError("line 1\nline 2"), "OSError: line 1 line 2")],
)
def test_the_error_names_the_object_and_what_the_store_said_in_one_line(
    cause: Exception | None, told: str
) -> None:
    # Each look at the clock finds that a minute has passed.
    minutes = itertools.count(0.0, 60.0)
    with pytest.raises(StorageError) as caught:
        patiently("gs://b/in/a.parquet", failing(cause), clock=lambda: next(minutes), sleep=lambda _: None)
    assert str(caught.value) == (
        f"gs://b/in/a.parquet: no good answer in 2 tries within 90 s, last {told}; run again when the store "
        f"answers"
    )
    assert isinstance(caught.value.__cause__, TransientError)


def test_the_numbers_are_those_that_are_told() -> None:
    numbers = (buckets.BUDGET_S, buckets.FIRST_PAUSE_S, buckets.LONGEST_PAUSE_S)
    assert numbers == (BUDGET_S, FIRST_S, LONGEST_S)
