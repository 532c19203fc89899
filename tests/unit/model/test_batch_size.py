"""The batch size, with a clock that only moves when a batch is predicted."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from job.model.batch_size import CANDIDATE_ROWS, BatchSize


class Machine:
    """Predicts batches in a set number of seconds each, and keeps what it was asked for."""

    def __init__(self, seconds: Mapping[int, float], *, too_large: int = 10**9) -> None:
        self.now_s = 0.0
        self.calls: list[int] = []
        self._seconds = seconds
        self._too_large = too_large

    def clock(self) -> float:
        return self.now_s

    def predict(self, rows: int) -> None:
        self.calls.append(rows)
        if rows >= self._too_large:
            raise MemoryError(rows)
        self.now_s += self._seconds[rows]


# Rows a second:             6,400      23,273       85,333        256,000
SMALL: Mapping[int, float] = {64: 0.01, 256: 0.011, 1024: 0.012, 4096: 0.016}


@pytest.mark.parametrize(
    ("large", "available_rows", "best_rows", "tried_up_to"),
    [
        # 282,483, 256,000, 256,000: two in a row that are no better end the search before 65,536.
        ({8192: 0.029, 16384: 0.064, 32768: 0.128}, 65_536, 8192, 32768),
        # 264,258 and 266,407 are less than 10 % above 256,000: not worth the memory.
        ({8192: 0.031, 16384: 0.0615}, 65_536, 4096, 16384),
        # 264,258 is not, but 282,483 is: one that is no better does not end the search.
        ({8192: 0.031, 16384: 0.058, 32768: 0.120, 65536: 0.240}, 65_536, 16384, 65536),
        # Each twice as fast as the one before.
        ({8192: 0.016, 16384: 0.016, 32768: 0.016, 65536: 0.016}, 65_536, 65536, 65536),
        # Nothing larger than what is at hand is tried.
        ({}, 8191, 4096, 4096),
        ({}, 1024, 1024, 1024),
    ],
)
def test_the_fastest_worthwhile_batch_is_chosen(
    large: dict[int, float], available_rows: int, best_rows: int, tried_up_to: int
) -> None:
    machine = Machine({**SMALL, **large})
    assert BatchSize(machine.clock).choose(available_rows, machine.predict) == best_rows
    tried = [rows for rows in CANDIDATE_ROWS if rows <= tried_up_to]
    # Once to warm up, then three times each, or once where that takes more than 20 ms and is worthwhile, or
    # more than 100 ms.
    tries, best = {}, 0.0
    for rows, seconds in {**SMALL, **large}.items():
        worthwhile = rows / seconds > 1.1 * best
        tries[rows] = 1 if seconds > (0.02 if worthwhile else 0.1) else 3
        best = rows / seconds if worthwhile else best
    assert machine.calls == [64, *(rows for rows in tried for _ in range(tries[rows]))]


@pytest.mark.parametrize("held_s", [0.03, 0.08])
@pytest.mark.parametrize("held_up", [[256], [256, 1024], [1024, 4096]])
def test_a_thread_that_holds_the_interpreter_now_and_then_does_not_make_batches_small(
    held_up: list[int], held_s: float
) -> None:
    """64 rows at a time would take ten times as long, all night."""
    machine = Machine({**SMALL, 8192: 0.031, 16384: 0.0615, 32768: 0.128, 65536: 0.256})
    stalls = [rows for rows in held_up for _ in range(2)]

    def predict(rows: int) -> None:
        machine.predict(rows)
        if rows in stalls:
            stalls.remove(rows)
            machine.now_s += held_s

    assert BatchSize(machine.clock).choose(65_536, predict) == 4096
    assert not stalls


@pytest.mark.parametrize(("available_rows", "expected"), [(0, 1), (1, 1), (700, 700), (1023, 1023)])
def test_few_rows_go_through_as_one_batch_and_are_not_measured(available_rows: int, expected: int) -> None:
    machine = Machine({})
    assert BatchSize(machine.clock).choose(available_rows, machine.predict) == expected
    assert machine.calls == []


def test_a_slow_model_is_measured_for_about_two_seconds() -> None:
    machine = Machine({64: 0.9, 256: 0.9, 1024: 0.9, 4096: 0.9})
    batch = BatchSize(machine.clock)
    assert batch.choose(65_536, machine.predict) == 1024
    # 0.9 s is more than an eighth of the two seconds: no repeats. At 2.7 s the fourth is not begun.
    assert machine.calls == [64, 64, 256, 1024]


def test_the_choice_is_remembered_until_four_times_the_rows_are_at_hand() -> None:
    machine = Machine({**SMALL, 8192: 0.016, 16384: 0.016, 32768: 0.016, 65536: 0.016})
    batch = BatchSize(machine.clock)
    assert batch.choose(2000, machine.predict) == 1024
    before = len(machine.calls)
    assert batch.choose(7999, machine.predict) == 1024
    assert batch.choose(10, machine.predict) == 1024
    assert len(machine.calls) == before
    assert batch.choose(8000, machine.predict) == 4096
    assert batch.choose(65_536, machine.predict) == 65_536
    before = len(machine.calls)
    assert batch.choose(1_000_000, machine.predict) == 65_536
    assert len(machine.calls) == before, "no more rows than 65,536 are ever tried"


def test_a_batch_that_cannot_be_predicted_ends_the_search_and_not_the_run() -> None:
    machine = Machine({**SMALL, 8192: 0.016}, too_large=8192)
    assert BatchSize(machine.clock).choose(65_536, machine.predict) == 4096
    assert machine.calls[-1] == 8192


def test_a_model_that_fails_on_every_row_is_left_to_the_scoring_loop() -> None:
    machine = Machine({}, too_large=1)
    assert 1 <= BatchSize(machine.clock).choose(5000, machine.predict) <= 5000


def test_threads_measure_once() -> None:
    machine = Machine({**SMALL, 8192: 0.016, 16384: 0.064, 32768: 0.128})
    batch = BatchSize(machine.clock)
    chosen: list[int] = []
    threads = [
        threading.Thread(target=lambda: chosen.append(batch.choose(65_536, machine.predict)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen == [8192] * 4
    # Six sizes three times, one that takes more than 100 ms once.
    assert len(machine.calls) == 1 + 3 * 6 + 1


def test_of_rows_of_more_values_fewer_are_a_batch() -> None:
    machine = Machine({**SMALL, 8192: 0.1, 16384: 0.3})
    size = BatchSize(machine.clock)
    assert size.choose(900, machine.predict, row_cells=5) == 900
    assert size.choose(16_384, machine.predict, row_cells=10) == 4096
    calls = len(machine.calls)
    rows = {cells: size.choose(16_384, machine.predict, row_cells=cells) for cells in (5, 20, 40_960, 10**6)}
    assert rows == {5: 8192, 20: 2048, 40_960: 64, 10**6: 64}
    assert len(machine.calls) == calls
    size.shrink(100, row_cells=1000)
    assert [size.within(4096, cells) for cells in (1, 1000, 50_000, 10**6)] == [4096, 50, 1, 1]
    assert size.memory_rows == 100
