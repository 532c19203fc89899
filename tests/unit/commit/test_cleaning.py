"""Leftovers of abandoned runs: what is removed, what is kept, and why."""

from __future__ import annotations

import datetime
import errno
import json
import os
import time
from pathlib import Path

import pytest

from job.commit import output, protocol, staging
from job.commit.cleaning import clean
from job.errors import OutputConflictError, UsageError
from tests.support.nights import Night, dense, features, run_cli, saved
from tests.support.receipts import receipt, run_of, split

NOW = 2_000_000_000.0
RUNS = {name: name * 64 for name in "bcde"}


def left(folder: Path, run_id: str, age_s: float) -> None:
    """Leave a run behind with one receipt, all files as old as that."""
    one = receipt(folder, split("a"), run_id=run_id)
    staging.write_receipt(str(folder), one)
    for path in Path(staging.folder_of(str(folder), run_id)).rglob("*"):
        os.utime(path, (NOW - age_s, NOW - age_s))


def test_old_ones_go_and_young_ones_stay(tmp_path: Path) -> None:
    left(tmp_path, RUNS["b"], 7200)
    left(tmp_path, RUNS["c"], 3599)
    for dry_run in (True, False):
        found = clean(str(tmp_path), older_than_s=3600, dry_run=dry_run, clock=lambda: NOW)
        assert [(one.run_id[0], one.splits, one.kept) for one in found] == [
            ("b", 1, ""),
            ("c", 1, "too young"),
        ]
        assert found[0].size_bytes > 100
        assert found[0].age_s == pytest.approx(7200)
        kept = [RUNS["b"], RUNS["c"]] if dry_run else [RUNS["c"]]
        assert sorted(os.listdir(tmp_path / "_staging")) == kept


def test_a_clock_that_was_set_back_removes_nothing(tmp_path: Path) -> None:
    left(tmp_path, RUNS["b"], -3600)
    (one,) = clean(str(tmp_path), older_than_s=0, dry_run=False, clock=lambda: NOW)
    assert one.kept == "too young"
    assert one.age_s == pytest.approx(-3600)


def test_a_live_run_keeps_its_own_and_all_others(tmp_path: Path) -> None:
    left(tmp_path, RUNS["b"], 7200)
    with (
        output.lease(str(tmp_path)),
        pytest.raises(OutputConflictError, match=f"another run is at work on it .process {os.getpid()}"),
    ):
        clean(str(tmp_path), older_than_s=0, dry_run=False, clock=lambda: NOW)
    assert (tmp_path / "_staging" / RUNS["b"]).exists()


def test_a_half_published_night_is_kept_and_the_rest_of_a_published_one_not(tmp_path: Path) -> None:
    left(tmp_path, RUNS["d"], 7200)
    Path(output.marker_path(str(tmp_path), RUNS["d"])).write_text(json.dumps({"stale": [], "files": []}))
    os.utime(output.marker_path(str(tmp_path), RUNS["d"]), (NOW - 7200, NOW - 7200))
    (one,) = clean(str(tmp_path), older_than_s=0, dry_run=False, clock=lambda: NOW)
    assert one.kept.startswith("half published: finish it with its own command")
    run = run_of(tmp_path, [split("a")], RUNS["e"], replace=True)
    protocol.publish(run, [receipt(tmp_path, split("a"), run_id=RUNS["e"])], clock=lambda: NOW)
    assert not (tmp_path / "_staging").exists()
    left(tmp_path, RUNS["e"], 7200)
    Path(output.marker_path(str(tmp_path), RUNS["e"])).write_text(json.dumps({"stale": [], "files": []}))
    os.utime(output.marker_path(str(tmp_path), RUNS["e"]), (NOW - 7200, NOW - 7200))
    (one,) = clean(str(tmp_path), older_than_s=0, dry_run=False, clock=lambda: NOW)
    assert (one.run_id, one.kept) == (RUNS["e"], "")
    assert not (tmp_path / "_staging").exists()
    assert (tmp_path / "_SUCCESS").exists()


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        clean(str(tmp_path / "no"), older_than_s=0, dry_run=False, clock=lambda: NOW)


def test_the_command(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    night.shard("a", features(50))
    left(night.output, RUNS["b"], NOW)
    model = saved(dense(), night.folder / "m.keras")
    code, _, err = run_cli(capfd, "score", *night.args(model, "--keys=id"))
    assert code == 0
    assert (
        f"{night.output}/_staging/{RUNS['b']}: left by another run; `scoring-job clean {night.output}`" in err
    )
    code, out, _ = run_cli(capfd, "clean", str(night.output), "--dry_run")
    assert (code, "would be removed" in out) == (0, True)
    code, out, _ = run_cli(capfd, "clean", str(night.output), "--older_than=2d")
    assert code == 0
    assert out.startswith(f"{night.output}: run bbbbbbbbbbbb: 1 finished splits, ")
    assert out.endswith(" h old: removed\n")
    assert not (night.output / "_staging").exists()
    code, out, _ = run_cli(capfd, "clean", str(night.output))
    assert (code, out) == (0, f"{night.output}: nothing was left in staging\n")
    assert len(night.files()) == 1


def test_a_stray_file_goes_too_when_it_is_old_enough(tmp_path: Path) -> None:
    stray = tmp_path / "_staging" / "notes.txt"
    stray.parent.mkdir()
    stray.write_text("mine")
    os.utime(stray, (NOW - 7200, NOW - 7200))
    (one,) = clean(str(tmp_path), older_than_s=7201, dry_run=False, clock=lambda: NOW)
    assert (one.run_id, one.kept, one.size_bytes, stray.exists()) == ("notes.txt", "too young", 4, True)
    (one,) = clean(str(tmp_path), older_than_s=3600, dry_run=False, clock=lambda: NOW)
    assert (one.kept, stray.exists()) == ("", False)


def test_what_cannot_be_removed_is_not_called_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path, RUNS["b"], NOW)

    def fails(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails)
        code, out, err = run_cli(capfd, "clean", str(tmp_path))
    assert (code, out) == (1, "")
    assert f"{RUNS['b']}: cannot be removed: Permission denied" in err
    assert (tmp_path / "_staging" / RUNS["b"]).exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: OUTPUT"),
        (["x", "--older_than=3"], "--older_than=3: must be a whole number with s, m, h or d behind it"),
        (["x", "--all"], "unknown flag --all; see "),
    ],
)
def test_wrong_usage(args: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capfd, "clean", *args)
    assert code == 2
    assert message in err


def test_the_outputs_of_the_last_nights_are_cleaned_and_one_that_is_at_work_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    days = [today - datetime.timedelta(days=number) for number in (1, 2, 3, 40)]
    for day in days:
        left(tmp_path / day.isoformat(), RUNS["b"], NOW - time.time() + 7200)
    with output.lease(str(tmp_path / days[1].isoformat())):
        code, out, err = run_cli(capfd, "clean", f"{tmp_path}/{{ds}}")
    assert (code, err) == (0, "")
    assert out.count("removed") == 2
    assert f"kept: {tmp_path}/{days[1]}: another run is at work on it" in out
    assert [day for day in days if [*(tmp_path / day.isoformat()).rglob("receipts")]] == [days[1], days[3]]
    assert run_cli(capfd, "clean", f"{tmp_path}/{{ds}}", "--nights=40")[0] == 0
    assert [*tmp_path.rglob("receipts")] == []
    code, _, err = run_cli(capfd, "clean", f"{tmp_path}/{{date}}")
    assert (code, f"{tmp_path}/{{date}}: {{date}} is no placeholder" in err) == (2, True)
