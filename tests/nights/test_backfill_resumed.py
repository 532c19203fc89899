"""A backfill over nights that are there in part, or that ends in the middle."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from tests.support.backfill_nights import DAYS, filled, flags, lines, report
from tests.support.nights import Night, dense, features, run_cli, saved, visible
from tests.support.store_nights import until


def test_nights_of_another_run_are_kept_unless_they_are_to_be_replaced(
    nights: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(capfd, "score", *flags(nights), f"--ds={DAYS[0]}")[0] == 0
    before = (nights.output / DAYS[0] / "_manifest.json").read_bytes()
    saved(dense(seed=5), nights.folder / "m.keras")
    code, out, _ = filled(nights, capfd)
    assert code == 0
    assert lines(out)[1] == f"{DAYS[0]} 60 0 kept, of another run"
    assert lines(out)[-1].endswith("3 published, 1 kept, of another run")
    assert (nights.output / DAYS[0] / "_manifest.json").read_bytes() == before
    # Of one night: as it is asked for.
    assert run_cli(capfd, "score", *flags(nights), f"--ds={DAYS[0]}")[0] == 6
    code, out, _ = run_cli(capfd, "score", *flags(nights, "--if_exists=keep"), f"--ds={DAYS[0]}")
    assert code == 0
    assert out.startswith("kept: run ")
    code, out, _ = filled(nights, capfd, "--if_exists=replace")
    assert code == 0
    assert "1 published" in lines(out)[-1]
    assert (nights.output / DAYS[0] / "_manifest.json").read_bytes() != before
    visible(nights.output / DAYS[1])[0].unlink()
    saved(dense(seed=6), nights.folder / "m.keras")
    # A night that is damaged is none to keep.
    code, _, err = run_cli(capfd, "score", *flags(nights, "--if_exists=keep"), f"--ds={DAYS[1]}")
    assert (code, "is published, but 1 of its files are gone" in err) == (6, True)


@pytest.mark.usefixtures("forks")
def test_what_has_ended_is_told_also_where_the_rest_was_stopped(
    nights: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C, when the second night of four is there."""
    command = [sys.executable, "-m", "job", "backfill", f"--start={DAYS[0]}", f"--end={DAYS[-1]}"]
    command += flags(nights, "--parallel=1", "--split_rows=10")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        second = nights.output / DAYS[1] / "_staging"
        until(lambda: second.exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=100)
    assert process.returncode == 130
    assert lines(told)[1] == f"{DAYS[0]} 60 0 published"
    assert filled(nights, capfd, "--split_rows=10")[0] == 0


def test_a_night_without_rows_is_no_yardstick(nights: Night, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("0", "1"):
        nights.shard(f"ds={DAYS[1]}/{name}", features(0))
    code, out, err = filled(nights, capfd, "--max_rows_change=0.9")
    assert code == 5, err
    assert f"{DAYS[1]} exit 5" in " ".join(out.split())
    code, _, err = filled(nights, capfd)
    assert code == 0, err
    assert report(nights, DAYS[2])["compared"]["baseline"] == str(nights.output / DAYS[0])


@pytest.mark.parametrize("parallel", ["2", "4"])
def test_each_night_is_compared_with_the_one_before_it(
    nights: Night, capfd: pytest.CaptureFixture[str], parallel: str
) -> None:
    """Also where that one is published while this one is scored."""
    code, out, err = filled(nights, capfd, f"--parallel={parallel}", "--max_rows_change=0.1")
    assert code == 0, err
    # Once, since all nights are bound alike.
    assert re.fullmatch(rf"{DAYS[0]}: model inputs: f0, f1, f2, f3 → .* by position\n", err)
    assert [line.split()[0] for line in lines(out)[1:-1]] == list(DAYS)
    baselines = [report(nights, day)["compared"]["baseline"] for day in DAYS[1:]]
    assert baselines == [str(nights.output / day) for day in DAYS[:-1]]
