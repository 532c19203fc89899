"""What a person is told when a night cannot be scored: one line, the right exit code, nothing published."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.scoring import worker
from job.shards import planner
from tests.support.bad_nights import (
    CASES,
    Case,
    a_shard_that_is_cut_short,
    an_integer_that_no_float32_is,
    good,
)
from tests.support.nights import Night, features, run_cli, visible

ROOT = Path(__file__).parents[2]
FED = "model inputs: "


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """The command line silences loggers of this process."""
    names = ["", "absl", "apache_beam", "google", "grpc", "tensorflow", "urllib3"]
    names += ["apache_beam.runners.common", "apache_beam.runners.worker"]
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def check(code: int, out: str, err: str, wanted: int, message: str) -> None:
    assert (code, out) == (wanted, ""), err
    # What feeds the model may have been said before.
    err = err.removeprefix(next((line for line in err.splitlines(True) if line.startswith(FED)), ""))
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert re.search(message, err), err


def nothing_is_published(night: Night) -> None:
    assert visible(night.output) == []
    assert not [name for name in ("_SUCCESS", "_manifest.json") if (night.output / name).exists()]


@pytest.mark.parametrize("case", CASES)
def test_one_line_the_right_exit_code_and_nothing_published(
    night: Night, capfd: pytest.CaptureFixture[str], case: Callable[[Night], Case]
) -> None:
    args, code, message = case(night)
    check(*run_cli(capfd, "score", *args), code, message)
    nothing_is_published(night)
    assert not (night.input / "out").exists()


@pytest.mark.parametrize("case", [a_shard_that_is_cut_short, an_integer_that_no_float32_is])
@pytest.mark.usefixtures("forks")
def test_the_same_in_a_process_of_its_own(night: Night, case: Callable[[Night], Case]) -> None:
    args, code, message = case(night)
    command = [sys.executable, "-m", "job", "score", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    check(done.returncode, done.stdout, done.stderr, code, message)
    nothing_is_published(night)


def test_another_run_is_refused_with_6(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    args = good(night)
    assert run_cli(capfd, "score", *args)[0] == 0
    before = {path: path.read_bytes() for path in night.output.iterdir() if path.is_file()}
    message = r"it holds run [0-9a-f]{12}, this is run [0-9a-f]{12} .*--if_exists=replace"
    check(*run_cli(capfd, "score", *args, "--batch_size=7"), 6, message)
    assert {path: path.read_bytes() for path in night.output.iterdir() if path.is_file()} == before


def test_files_of_somebody_else_are_refused_with_6(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    args = good(night, "--if_exists=replace")
    night.output.mkdir()
    (night.output / "thesis.txt").write_text("mine")
    check(
        *run_cli(capfd, "score", *args), 6, r"1 file\(s\) that no run of this job wrote, first .*thesis\.txt"
    )
    assert (night.output / "thesis.txt").read_text() == "mine"


def test_a_shard_that_changes_while_the_run_is_planned(
    night: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, plan = good(night), planner.plan

    def changing(*given: Any) -> Any:
        night.shard("part-1", features(51))
        return plan(*given)

    monkeypatch.setattr(planner, "plan", changing)
    message = r"part-1\.parquet: it is not the file that was planned .*run again to plan anew"
    check(*run_cli(capfd, "score", *args), 4, message)
    nothing_is_published(night)


def test_an_error_that_nobody_foresaw_is_one_line_too(
    night: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Any:
        raise ZeroDivisionError("a\nsurprise")

    monkeypatch.setattr(worker, "score_split", fail)
    message = r"^error: part-[0-2]: unexpected ZeroDivisionError: a surprise; see more with --debug$"
    check(*run_cli(capfd, "score", *good(night)), 1, message)
    nothing_is_published(night)


def test_after_the_shard_is_mended_the_same_command_scores_it(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    args, code, _ = an_integer_that_no_float32_is(night)
    assert run_cli(capfd, "score", *args)[0] == code
    night.shard("part-1", features(50, seed=1, first_id=50))
    assert run_cli(capfd, "score", *args)[0] == 0
    assert night.scored().column("id").to_pylist() == list(range(150))
