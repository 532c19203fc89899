"""Every call that touches a file fails: once, and for good. The run resumes, or ends as it should."""

from __future__ import annotations

import errno
import inspect
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.commit import cleaning, output, protocol, staging
from job.errors import JobError, StorageError
from job.scoring.split import score_split
from job.shards import inputs
from job.storage import sinks
from tests.nights.test_kills import files, is_whole
from tests.support.jobs import Job, Zygote
from tests.support.nights import Night, Planned, dense, features, saved

SEAMS: list[tuple[Any, str]] = [
    *(
        (storage, name)
        for name, function in inspect.getmembers(storage, inspect.isfunction)
        if function.__module__ == "job.storage"
        # These name things and touch nothing.
        if not name.startswith("_")
        and name
        not in ("local", "join", "parent", "absolute", "is_remote", "fits", "is_readable", "parallel")
    ),
    *((sinks.HashingSink, name) for name in ("__init__", "write", "seal")),
    # Shards, their footers and their rows.
    (pq, "ParquetFile"),
    (pq.ParquetFile, "iter_batches"),
]
# These fail as files do, beneath Arrow. Storage tells in its own words.
BENEATH_ARROW = (sinks.HashingSink, pq, pq.ParquetFile)


def test_every_function_that_touches_files_is_among_them() -> None:
    found = {name for _, name in SEAMS}
    assert found >= {"write_atomic", "release", "sha256", "sync_folder", "tree", "seal"}
    assert found >= {"ParquetFile", "iter_batches"}
    assert len(SEAMS) >= 18


def with_nulls(rows: int) -> pa.Table:
    table = features(rows)
    values = [None if i % 40 == 3 else value for i, value in enumerate(table["f1"].to_pylist())]
    return table.set_column(2, "f1", pa.array(values, pa.float32()))


@pytest.fixture
def planned(night: Night) -> Planned:
    night.shard("ds=1/a", with_nulls(120), group_rows=60)
    # Where bad shards may be rejected, one that only cannot be read for now must not be.
    rejecting = ("--on_bad_shard=reject", "--max_rejected=1")
    flags = ("--keys=id", "--split_rows=60", "--batch_size=64", *rejecting)
    return night.planned(saved(dense(), night.folder / "m.keras"), *flags)


def whole_night(planned: Planned) -> None:
    """What a run does, in one thread: read footers, plan, score what has no receipt, publish."""
    run = planned.task.run
    shards = list(dict.fromkeys(split.shard for split in planned.splits))
    assert not any(footer.error for footer in inputs.read_footers(shards))
    storage.make_folder(run.output)
    with output.lease(run.output):
        output.check_output(run.output, run.run_id, replace=run.replace)
        staging.write_plan(run.output, run.run_id, planned.splits)
        receipts = []
        for split in staging.read_plan(planned.path):
            receipt = staging.read_receipt(run.output, run.run_id, split)
            if receipt is None:
                receipt = score_split(split, planned.task, planned.loaded)
                staging.write_receipt(run.output, receipt)
            receipts.append(receipt)
        protocol.publish(run, receipts, clock=lambda: 2000.0)


def outcome(planned: Planned) -> JobError | None:
    """Try a night, and return what it failed with."""
    try:
        whole_night(planned)
    except JobError as e:
        return e
    return None


def failing(
    patch: pytest.MonkeyPatch, seam: tuple[Any, str], error: OSError, at: int, for_good: bool
) -> list[int]:
    """Let one function fail at its call number ``at``, or from there on; return a list of its calls."""
    owner, name = seam
    real = getattr(owner, name)
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == at or (for_good and calls[-1] > at):
            raise error if owner in BENEATH_ARROW else StorageError(f"x: {error.strerror}")
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("seam", SEAMS, ids=[name for _, name in SEAMS])
def test_each_call_fails(planned: Planned, seam: tuple[Any, str], for_good: bool) -> None:
    folder = Path(planned.task.run.output)
    whole_night(planned)
    expected = files(folder)
    at = 0
    while True:
        shutil.rmtree(folder)
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, seam, OSError(errno.EIO, "Input/output error"), at, for_good)
            failed = outcome(planned)
        assert failed is None or failed.exit_code == 1, failed
        if for_good and seam[0] in (pq, pq.ParquetFile) and len(calls) > at:
            assert isinstance(failed, StorageError), "a run without its input"
        assert "\n" not in str(failed)
        assert is_whole(folder) in ("", planned.task.run.run_id)
        if len(calls) <= at:
            break
        if output.published(str(folder)) is None:
            whole_night(planned)
        cleaning.remove_rest(str(folder), planned.task.run.run_id)
        assert files(folder) == expected
        at += 1
    assert files(folder) == expected


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_an_old_night_is_untouched_until_the_mark(planned: Planned, for_good: bool) -> None:
    folder = Path(planned.task.run.output)
    whole_night(planned)
    old = files(folder)
    kept = folder.with_name("old")
    shutil.copytree(folder, kept)
    new = replace(
        planned,
        task=replace(
            planned.task, row_group_rows=7, run=replace(planned.task.run, run_id="e" * 64, replace=True)
        ),
    )
    new = replace(new, path=staging.write_plan(str(folder), "e" * 64, planned.splits))
    for seam in SEAMS:
        at = 0
        while True:
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            with pytest.MonkeyPatch.context() as patch:
                calls = failing(patch, seam, OSError(errno.ENOSPC, "No space left on device"), at, for_good)
                outcome(new)
            seen = is_whole(folder)
            assert seen in ("", "e" * 64, planned.task.run.run_id)
            if seen != "e" * 64 and output.read_marker(str(folder), "e" * 64) is None:
                now = files(folder)
                assert {name: now.get(name) for name in old} == old, (seam, at)
            if len(calls) <= at:
                break
            # Every call of the functions that are called often would take minutes.
            at += 1 + at // 4


@pytest.fixture
def full(night: Night) -> Night:
    for i in range(2):
        night.shard(f"part-{i}", features(200, seed=i, first_id=200 * i), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    return night


def command(night: Night, **changes: Any) -> Job:
    args = night.args(night.folder / "m.keras", "--keys=id", "--split_rows=50", "--batch_size=64")
    return Job(("score", *args), str(night.folder / "log"), str(night.output), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 1000], ids=["one step", "for good"])
def test_the_real_command_on_a_disk_that_fails(full: Night, warm: Zygote, length: int) -> None:
    """Beneath Python itself: whatever the job calls, also where it does not call job.storage.

    A disk that is read-only, full or broken: each in its turn.
    """
    (done,) = warm.run(command(full))
    expected = files(full.output)
    told = 0
    turns = itertools.cycle((errno.EROFS, errno.ENOSPC, errno.EIO))
    for at, number in zip(range(1, len(done.steps), 7), turns, strict=False):
        shutil.rmtree(full.output)
        (failed,) = warm.run(command(full, deny=number, deny_from=at, deny_to=at + length))
        assert failed.code in (0, 1), failed.text
        if failed.code:
            told += 1
            errors = [line for line in failed.text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, failed.text
            assert "unexpected" not in errors[0]
            assert "--debug" not in errors[0], failed.text
            assert "Traceback" not in failed.text
        assert is_whole(full.output) or not (full.output / "_SUCCESS").exists()
        (again,) = warm.run(command(full))
        assert again.code == 0, again.text
        assert files(full.output) == expected
    assert told > 3


def test_a_file_that_cannot_grow_is_one_line(full: Night, warm: Zygote) -> None:
    """A real limit of the system's: no file of more than a few kilobytes."""
    wide = {f"f{i}": np.random.default_rng(i).normal(size=5000).astype(np.float32) for i in range(4)}
    full.shard("part-9", pa.table({"id": np.arange(5000), **wide}))
    (done,) = warm.run(command(full, imports=("tests.support.job_patches.small_files",)))
    assert done.code == 1, done.text
    (line,) = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert "File too large" in line
    assert not full.files()
    (again,) = warm.run(command(full))
    assert again.code == 0, again.text
    report = json.loads((full.output / "_report.json").read_text())
    assert report["rows_scored"] == 5400
    assert report["splits_reused"] > 0


def test_clocks_that_jump_change_nothing(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    folder = Path(planned.task.run.output)
    whole_night(planned)
    expected = files(folder)
    shutil.rmtree(folder)
    real: Callable[[], float] = time.time
    jumps = iter(range(1, 1_000_000))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 7200 * next(jumps))
    whole_night(planned)
    assert files(folder) == expected
