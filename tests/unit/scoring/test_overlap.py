"""Work that overlaps: in order, one scored at a time, bounded, and over when an error is told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.scoring.overlap import MOST_AT_ONCE, READ_BYTES, Overlap, StoppedError
from tests.support.store_nights import until


class Gauge:
    """How many are inside at once, and how many there were at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def run(overlap: Overlap[int], works: list[Callable[[], int]]) -> list[int]:
    found: list[int] = []
    for work in works:
        found += overlap.begin(work)
    return [*found, *overlap.finish()]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, READ_BYTES), max_size=30), seed=st.integers(0, 2**16))
def test_all_results_come_in_order_and_one_is_scored_at_a_time(sizes: list[int], seed: int) -> None:
    overlap, pauses = Overlap[int](), random.Random(seed)
    under_way, scored = Gauge(), Gauge()
    read: list[int] = []
    most_bytes: list[tuple[int, int]] = []

    def work(number: int, size_bytes: int, pause_s: float) -> int:
        with under_way:
            time.sleep(pause_s)
            with overlap.reading(size_bytes):
                read.append(size_bytes)
                most_bytes.append((len(read), sum(read)))
                time.sleep(pause_s)
                with overlap.scoring(), scored:
                    time.sleep(pause_s)
                read.remove(size_bytes)
            time.sleep(pause_s)
        return number

    def one(number: int, size_bytes: int) -> Callable[[], int]:
        pause_s = pauses.uniform(0, 0.002)
        return lambda: work(number, size_bytes, pause_s)

    assert run(overlap, [one(*pair) for pair in enumerate(sizes)]) == list(range(len(sizes)))
    assert scored.most <= 1
    assert under_way.most <= MOST_AT_ONCE
    assert all(count <= 2 or total <= READ_BYTES for count, total in most_bytes)


@pytest.mark.parametrize(("size_bytes", "at_once"), [(1000, MOST_AT_ONCE), (READ_BYTES, 2)])
def test_small_shards_are_read_many_at_a_time_and_large_ones_two(size_bytes: int, at_once: int) -> None:
    overlap, go_on, reading = Overlap[int](), threading.Event(), Gauge()

    def work() -> int:
        with overlap.reading(size_bytes), reading:
            go_on.wait()
        return 0

    for _ in range(MOST_AT_ONCE):
        assert list(overlap.begin(work)) == []
    until(lambda: reading.now == at_once)
    time.sleep(0.05)
    assert reading.now == at_once
    go_on.set()
    assert list(overlap.finish()) == [0] * MOST_AT_ONCE


def test_results_that_are_there_do_not_wait_for_the_bundle_to_end() -> None:
    overlap = Overlap[int]()
    assert list(overlap.begin(lambda: 1)) == []
    until(lambda: overlap._pending[0].done())
    assert list(overlap.begin(lambda: 2)) == [1]
    assert list(overlap.finish()) == [2]


def test_an_error_is_told_when_all_has_ended_and_nothing_more_is_scored() -> None:
    overlap, failing, ended = Overlap[int](), threading.Event(), list[str]()

    def slow() -> int:
        with overlap.reading(1), overlap.scoring():
            failing.wait()
            time.sleep(0.05)
        ended.append("slow")
        return 1

    def waits_for_its_turn() -> int:
        with overlap.reading(1), overlap.scoring():
            ended.append("scored in vain")
        return 2

    def fails() -> int:
        failing.set()
        raise ValueError("the first")

    def fails_as_well() -> int:
        failing.wait()
        time.sleep(0.02)
        raise ValueError("the second")

    list(overlap.begin(slow))
    until(lambda: overlap._scoring)
    for work in (waits_for_its_turn, fails_as_well, fails):
        list(overlap.begin(work))
    with pytest.raises(ValueError, match="the first"):
        list(overlap.finish())
    assert ended == ["slow"]
    # A bundle that the engine tries again finds no trace of it.
    assert run(overlap, [lambda: 3, lambda: 4]) == [3, 4]


def test_what_comes_after_an_error_does_not_begin_to_read() -> None:
    overlap = Overlap[int]()

    def fails() -> int:
        raise OSError("gone")

    def reads() -> int:
        with overlap.reading(1):
            return 1

    list(overlap.begin(fails))
    until(lambda: overlap._error)
    with pytest.raises(StoppedError):
        reads()
    with pytest.raises(OSError, match="gone"):
        list(overlap.begin(reads))
    assert run(overlap, [reads]) == [1]


def test_what_a_bundle_left_behind_is_waited_for() -> None:
    overlap, ended = Overlap[int](), list[int]()

    def work() -> int:
        time.sleep(0.05)
        ended.append(1)
        return 1

    list(overlap.begin(work))
    overlap.forget()
    assert ended == [1]
    assert list(overlap.finish()) == []
