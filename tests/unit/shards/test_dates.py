"""The dates in paths, and which night it is."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.cli import options
from job.errors import UsageError
from job.shards import dates
from tests.support.nights import Night, dense, features, run_cli, saved, visible

DAY = datetime.date(2026, 11, 25)
DAYS = st.dates(datetime.date(1300, 1, 1), datetime.date(9000, 1, 1))


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("in/ds={ds}", "in/ds=2026-11-25"),
        ("in/{ds_nodash}/*.parquet", "in/20261125/*.parquet"),
        ("{ds-1}", "2026-11-24"),
        ("{ds+7}", "2026-12-02"),
        ("{ds_nodash-25}", "20261031"),
        ("{ds:%Y/%m/%d}", "2026/11/25"),
        ("year={ds:%Y}/month={ds-25:%m}", "year=2026/month=10"),
        ("{ds}{ds}", "2026-11-252026-11-25"),
        ("week {ds:%G-W%V}", "week 2026-W48"),
        ("none", "none"),
        ("", ""),
        ("a{1}b{}", "a{1}b{}"),
    ],
)
def test_placeholders_are_dates(template: str, path: str) -> None:
    dates.check("input", template)
    assert dates.expand(template, DAY) == path
    assert dates.has_date(template) == (path != template)


@given(DAYS, st.integers(-99_999, 99_999))
def test_days_are_counted_as_calendars_do(day: datetime.date, shift: int) -> None:
    wanted = day.toordinal() + shift
    template = f"{{ds{shift:+d}}}/{{ds_nodash{shift:+d}}}/{{ds{shift:+d}:%d.%m.%Y}}"
    iso, plain, dotted = dates.expand(template, day).split("/")
    assert datetime.date.fromisoformat(iso).toordinal() == wanted
    assert datetime.datetime.strptime(plain, "%Y%m%d").replace(tzinfo=datetime.UTC).toordinal() == wanted
    assert "".join(reversed(dotted.split("."))) == plain


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{date}", "{date} is no placeholder"),
        ("{ds-}", "{ds-} is no placeholder"),
        ("{ds_nodash }", "is no placeholder"),
        ("{ds-1d}", "is no placeholder"),
        ("{DS}", "is no placeholder"),
        ("{a,b}", "is no placeholder"),
        ("{{ ds }}", "{{ ds }} is no placeholder; use one of {ds}, "),
        ("{{ds}}", "{{ds}} is no placeholder"),
        ("{ ds }", "{ ds } is no placeholder"),
        ("{ds}}", "{ds}} is no placeholder"),
        ("{ds:%H}", "has no date's format"),
        ("{ds:%Q}", "has no date's format"),
        ("{ds:%}", "has no date's format"),
        ("{ds:YYYY}", "has no date's format"),
        ("{ds:%%}", "has no date's format"),
        ("{ds_nodash:%Y}", "has two formats"),
    ],
)
@pytest.mark.parametrize("name", ["input", "model", "output"])
def test_what_only_looks_like_a_placeholder_is_refused(name: str, template: str, reason: str) -> None:
    given = {"input": "in", "model": "m.keras", "output": "out", name: f"x/{template}/y"}
    with pytest.raises(UsageError) as caught:
        options.parse([f"--{flag}={value}" for flag, value in given.items()])
    assert str(caught.value).startswith(f"--{name}=x/{template}/y: ")
    assert reason in str(caught.value)


def test_a_date_outside_all_calendars_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\{ds-99999\} of 0200-01-01"):
        dates.expand("{ds-99999}", datetime.date(200, 1, 1))


@pytest.mark.parametrize(
    "text", ["20261125", "2026-11-31", "2026-1-1", "yesterday", "2026-W48-3", " 2026-11-25"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--ds={text}: "):
        options.parse(["--input=in", "--model=m.keras", "--output=out", f"--ds={text}"])


@pytest.mark.parametrize(
    ("zone", "now", "day"),
    [
        ("UTC", "2026-11-26T00:00:00+00:00", "2026-11-25"),
        ("UTC", "2026-11-25T23:59:59+00:00", "2026-11-24"),
        ("Europe/Berlin", "2026-11-25T23:30:00+00:00", "2026-11-25"),
        ("America/New_York", "2026-11-26T03:00:00+00:00", "2026-11-24"),
        ("Pacific/Kiritimati", "2026-11-25T10:00:00+00:00", "2026-11-25"),
        # Where clocks are put forward, the day has 23 hours.
        ("Europe/Berlin", "2026-03-29T22:30:00+00:00", "2026-03-29"),
        ("Europe/Berlin", "2026-03-28T23:30:00+00:00", "2026-03-28"),
    ],
)
def test_yesterday_is_the_zones(zone: str, now: str, day: str) -> None:
    assert dates.yesterday(zone, datetime.datetime.fromisoformat(now)).isoformat() == day


@pytest.mark.parametrize("zone", ["Berlin", "../etc/passwd", "/etc/passwd", "Europe", "utc2"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(UsageError, match=f"--timezone={zone}: no such time zone"):
        options.parse(["--input=in", "--model=m.keras", "--output=out", f"--timezone={zone}"])


def test_days_are_both_ends_and_all_between() -> None:
    first = datetime.date(2027, 12, 30)
    found = [day.isoformat() for day in dates.days(first, datetime.date(2028, 1, 2))]
    assert found == ["2027-12-30", "2027-12-31", "2028-01-01", "2028-01-02"]
    assert [*dates.days(DAY, DAY)] == [DAY]
    assert len([*dates.days(datetime.date(2028, 1, 1), datetime.date(2028, 12, 31))]) == 366


def test_without_a_date_in_a_path_there_is_no_night_unless_one_is_given() -> None:
    flags = ["--input=in", "--model=m.keras", "--output=out"]
    assert options.parse(flags)[0].ds == ""
    assert options.parse([*flags, "--ds=2026-11-25"])[0].ds == "2026-11-25"
    spec = options.parse(["--input=in/{ds}", *flags[1:], "--timezone=Europe/Berlin"])[0]
    assert spec.ds == dates.yesterday("Europe/Berlin").isoformat()
    assert spec.inputs == (f"in/{spec.ds}",)


def dated(night: Night) -> tuple[Path, list[str]]:
    """Two nights of shards, a model of the second one's day before, and the flags for both."""
    for i, day in enumerate(("2026-11-24", "2026-11-25")):
        night.shard(f"ds={day}/a", features(20, seed=i, first_id=20 * i))
    saved(dense(), night.folder / "m-20261124.keras")
    model, output = f"{night.folder}/m-{{ds_nodash-1}}.keras", f"{night.folder}/out/ds={{ds}}"
    flags = [f"--input={night.input}/ds={{ds}}", f"--model={model}", f"--output={output}", "--keys=id"]
    return night.folder / "out", flags


def test_the_same_command_scores_each_nights_own_rows(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    top, flags = dated(night)
    code, _, err = run_cli(capfd, "score", *flags, "--ds=2026-11-25")
    assert code == 0, err
    output = Night(night.folder).output / "ds=2026-11-25"
    assert [path.name for path in visible(top)] == ["a.parquet"]
    assert (output / "_SUCCESS").exists()
    assert '"ds": "2026-11-25"' in (output / "_manifest.json").read_text()
    code, out, _ = run_cli(capfd, "score", *flags, "--ds=2026-11-25")
    assert (code, "already published" in out) == (0, True)
    # Its model would be of the day before.
    code, _, err = run_cli(capfd, "score", *flags, "--ds=2026-11-24")
    assert code == 4
    assert "m-20261123.keras" in err


def test_a_night_without_input_is_told_by_its_exit_code(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    _, flags = dated(night)
    saved(dense(), night.folder / "m-20261125.keras")
    code, _, err = run_cli(capfd, "score", *flags, "--ds=2026-11-26")
    assert code == 3
    assert f"{night.input}/ds=2026-11-26: no file matches" in err
    code, _, err = run_cli(capfd, "score", *flags, "--ds=2026-11-26", "--wait_for_input=2s")
    assert code == 3
    assert "waiting for it, at most 2s" in err
    assert err.rstrip().endswith("or @list.txt; waited 2s for it")
    assert not (night.folder / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_input_that_comes_late_is_waited_for_with_its_marker(night: Night) -> None:
    _, flags = dated(night)
    saved(dense(), night.folder / "m-20261125.keras")
    late = night.input / "ds=2026-11-26"
    command = [sys.executable, "-m", "job", "score", *flags, "--ds=2026-11-26"]
    command += ["--wait_for_input=5m", "--input_marker=_DONE"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reader.start()

        def wait_for(text: str) -> None:
            deadline = time.monotonic() + 60
            while not any(text in line for line in lines):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)

        wait_for("waiting for it, at most 5m00s")
        night.shard("ds=2026-11-26/a", features(20))
        # It must not be scored before it is complete.
        time.sleep(3)
        assert process.poll() is None
        night.shard("ds=2026-11-26/b", features(30, first_id=20))
        (late / "_DONE").touch()
        assert process.wait(120) == 0
        reader.join()
    assert len(visible(night.folder / "out" / "ds=2026-11-26")) == 2


def test_without_the_marker_input_is_not_complete(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    _, flags = dated(night)
    code, _, err = run_cli(capfd, "score", *flags, "--ds=2026-11-25", "--input_marker=_DONE")
    assert code == 3
    assert f"--input_marker=_DONE: {night.input}/ds=2026-11-25 has none" in err
    # Of each folder that a glob matches, and of the folder of a file that is named by itself.
    other = [f"--input={night.input}/ds=*", *flags[1:], "--ds=2026-11-25", "--input_marker=_DONE"]
    (night.input / "ds=2026-11-24" / "_DONE").touch()
    assert run_cli(capfd, "score", *other)[0] == 3
    (night.input / "ds=2026-11-25" / "_DONE").touch()
    assert run_cli(capfd, "score", *other)[0] == 0
    single = [f"--input={night.input}/ds=2026-11-25/a.parquet", *flags[1:], "--ds=2026-11-25"]
    assert run_cli(capfd, "score", *single, "--input_marker=_X", "--if_exists=replace")[0] == 3
    assert run_cli(capfd, "score", *single, "--input_marker=_DONE", "--if_exists=replace")[0] == 0
