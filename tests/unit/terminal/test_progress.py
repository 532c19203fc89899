"""Rates and estimates from a clock that the test turns by hand."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from job.terminal import progress
from job.terminal.progress import PlainLines, Progress, RowCounter, Snapshot


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counter() -> RowCounter:
    counter = RowCounter()
    counter.add(77)  # rows of an earlier run in this process must not show
    return counter


def test_counts_from_many_threads_add_up() -> None:
    counter = RowCounter()

    def add_many() -> None:
        for _ in range(2_000):
            counter.add(3)

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 24_000


def test_a_failed_attempt_takes_its_rows_back(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(100, clock=clock, counter=counter)
    counter.add(30)
    counter.add(-30)
    assert shown.look().rows == 0


def test_a_run_told_by_hand(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(1_000, clock=clock, counter=counter)
    assert shown.look() == Snapshot(0, 1_000, 0.0, None)
    clock.now_s += 4
    assert shown.look() == Snapshot(0, 1_000, 4.0, None)
    counter.add(200)
    clock.now_s += 4
    half_way = shown.look()
    assert half_way == Snapshot(200, 1_000, 8.0, 25.0)  # 200 rows in 8 s
    assert half_way.left_s == 32.0  # 800 rows at 25 a second
    assert half_way.text() == "200 of 1,000 rows (20%), 25 rows/s, 32s left, 8s so far"


def test_the_rate_is_of_the_last_half_minute(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(1_000_000, clock=clock, counter=counter)
    for _ in range(60):  # a slow minute, then a fast one
        clock.now_s += 1
        counter.add(10)
        shown.look()
    assert shown.look().rows_per_s == 10.0
    for _ in range(30):
        clock.now_s += 1
        counter.add(1_000)
        shown.look()
    assert shown.look().rows_per_s == 1_000.0


def test_a_run_that_stands_still_promises_nothing(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(1_000, clock=clock, counter=counter)
    counter.add(500)
    for _ in range(62):
        clock.now_s += 1
        last = shown.look()
    assert last.rows_per_s is None
    assert last.text() == "500 of 1,000 rows (50%), 1m02s so far"


def test_reused_rows_are_done_but_are_no_speed(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(1_000, 600, clock=clock, counter=counter)
    assert shown.look() == Snapshot(600, 1_000, 0.0, None)
    counter.add(100)
    clock.now_s += 10
    assert shown.look() == Snapshot(700, 1_000, 10.0, 10.0)


def test_rows_can_be_told_from_elsewhere(clock: Clock, counter: RowCounter) -> None:
    shown = Progress(1_000, 600, clock=clock, counter=counter)
    clock.now_s += 10
    shown.set(800)
    assert shown.look() == Snapshot(800, 1_000, 10.0, 20.0)
    shown.set(900)
    assert shown.look().rows == 900


@pytest.mark.parametrize(("added", "rows"), [(1_001, 1_000), (-1, 0)])
def test_no_more_than_all_and_no_less_than_none(
    clock: Clock, counter: RowCounter, added: int, rows: int
) -> None:
    shown = Progress(1_000, clock=clock, counter=counter)
    counter.add(added)
    assert shown.look().rows == rows


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (Snapshot(0, 0, 0.0, None), "0 of 0 rows (100%), 0s so far"),
        (Snapshot(9_999, 10_000, 1.0, None), "9,999 of 10,000 rows (99%), 1s so far"),
        (Snapshot(10_000, 10_000, 90.0, 111.1), "10,000 of 10,000 rows (100%), 111 rows/s, 1m30s so far"),
    ],
)
def test_text(snapshot: Snapshot, text: str) -> None:
    assert snapshot.text() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (7620, "2h07m"),
        (360_000, "100h00m"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def told_after(ticks_s: Iterator[float] | list[float], clock: Clock, counter: RowCounter) -> list[str]:
    said: list[str] = []
    lines = PlainLines(Progress(1_000, clock=clock, counter=counter), said.append)
    start_s = clock.now_s
    for tick_s in ticks_s:
        clock.now_s = start_s + tick_s
        counter.add(100)
        lines.tick()
    lines.finish()
    return said


def test_a_short_run_says_nothing(clock: Clock, counter: RowCounter) -> None:
    assert told_after([1.0, 5.0, 9.9], clock, counter) == []


def test_a_long_run_says_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, counter: RowCounter
) -> None:
    assert told_after([5.0, 10.0, 15.0, 20.0, 21.0], clock, counter) == [
        "200 of 1,000 rows (20%), 20 rows/s, 40s left, 10s so far",
        "400 of 1,000 rows (40%), 20 rows/s, 30s left, 20s so far",
        "500 of 1,000 rows (50%), 24 rows/s, 21s left, 21s so far",
    ]


def test_a_pipe_gets_plain_lines_on_standard_error(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.01)
    said = threading.Event()
    say = progress.say

    def say_and_tell(text: str) -> None:
        say(text)
        said.set()

    monkeypatch.setattr(progress, "say", say_and_tell)
    threads_before = threading.active_count()
    with progress.shown(1_000, 100, clock=clock):
        progress.rows_done.add(400)
        clock.now_s += 10
        assert said.wait(10)
    assert threading.active_count() == threads_before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "500 of 1,000 rows (50%), 40 rows/s, 12s left, 10s so far"


def test_an_error_in_the_body_comes_through_and_the_ticker_ends(capsys: pytest.CaptureFixture[str]) -> None:
    threads_before = threading.active_count()
    with pytest.raises(RuntimeError, match="body"), progress.shown(10):
        raise RuntimeError("body")
    assert threading.active_count() == threads_before
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with progress.shown(1_000, 250, clock=clock) as shown:
        clock.now_s += 5
        shown.set(500)
    text = screen.getvalue()
    assert "500 of 1,000 rows (50%), 50 rows/s, 10s left, 5s so far" in text
    assert "━" in text


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize(
    "snapshot", [Snapshot(0, 0, 0.0, None), Snapshot(2_000_000, 40_000_000, 3_600.0, 1_234_567.0)]
)
def test_the_bar_is_one_line_at_any_width(snapshot: Snapshot, width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(progress.render(snapshot))
    assert screen.getvalue().count("\n") == 1


def test_messages_are_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("[red]a[/red]/x[0].parquet " + "y" * 300)
    assert capsys.readouterr().err == "[red]a[/red]/x[0].parquet " + "y" * 300 + "\n"


def test_rows_that_other_processes_score_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL_EVERY_S", 0.001)
    answers = iter([None, 40, 30, 70])
    asked = threading.Event()

    def finished_rows() -> int:
        answer = next(answers, 71)
        if answer is None:
            raise OSError("gone for a moment")
        if answer == 71:
            asked.set()
        return min(answer, 70)

    threads_before = threading.active_count()
    with progress.shown(100, 10, finished_rows=finished_rows) as shown:
        assert asked.wait(10)
        assert shown.look().rows == 70
    assert threading.active_count() == threads_before


def test_at_least_never_goes_back() -> None:
    shown = progress.Progress(100, 10, clock=lambda: 0.0)
    seen = []
    for rows in (5, 40, 30):
        shown.at_least(rows)
        seen.append(shown.look().rows)
    assert seen == [10, 40, 40]
