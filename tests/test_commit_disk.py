"""What of a night is flushed to the disk, and before what; a disk that fails while the rows are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job import commit, counting, staging, storage
from job.errors import StorageError
from tests.receipts import RUN_ID, receipt, run_of, split

SPLITS = [split("year=2013/month=12/day=01/a"), split("year=2013/month=12/day=02/b"), split("c")]


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace a night, and return the changes and flushes in their order."""
    old = [split("gone/d")]
    before = run_of(folder, old, "b" * 64)
    commit.publish(before, [receipt(folder, one, run_id="b" * 64) for one in old])
    staging.write_plan(str(folder), RUN_ID, SPLITS)
    receipts = [receipt(folder, one) for one in SPLITS]
    # One of them with a file of rejected rows, which is published in folders of its own.
    rejected = receipt(folder, SPLITS[0])
    told = replace(
        receipts[0],
        rejects=rejected.attempt,
        rejects_bytes=rejected.file_bytes,
        rejects_sha256=rejected.file_sha256,
    )
    receipts[0] = told
    steps: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(storage, name)

        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            shown = args[0] if name == "release" else path
            steps.append(f"{name} {shown.removeprefix(str(folder)).lstrip('/')}")
            return real(path, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("remove", "release", "sync_folder", "write_atomic"):
            patch.setattr(storage, name, noted(name))
        patch.setattr(counting, "reconcile", lambda run, receipts: None)
        patch.setattr(counting, "recount", lambda folder, parts: None)
        commit.publish(run_of(folder, SPLITS, replace=True), receipts)
    return steps


def test_the_old_mark_is_gone_for_good_before_a_file_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = published(tmp_path, monkeypatch)
    first = next(i for i, step in enumerate(steps) if step.startswith("release "))
    assert steps.index("remove _SUCCESS") < steps.index("sync_folder ") < first


def test_every_folder_that_leads_to_a_file_is_flushed_before_the_new_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = published(tmp_path, monkeypatch)
    last = max(i for i, step in enumerate(steps) if step.startswith("release "))
    mark = steps.index("write_atomic _SUCCESS")
    flushed = {step.partition(" ")[2] for step in steps[last:mark] if step.startswith("sync_folder ")}
    folders = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert len(folders) == 8
    assert flushed >= {"", *folders}


def test_a_disk_that_fails_while_rows_are_counted_again_is_no_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging.write_plan(str(tmp_path), RUN_ID, SPLITS)
    receipts = [receipt(tmp_path, one) for one in SPLITS]
    path = Path(receipts[0].attempt)
    content = path.read_bytes()

    def is_staged(part: staging.PartFile, trusted: bool) -> bool:
        if part.staged == str(path) and not path.is_symlink():
            path.unlink()
            # A link to itself stands for the disk: the system has a number for either.
            path.symlink_to(path)
        return trusted

    with monkeypatch.context() as patch:
        patch.setattr(staging.PartFile, "is_staged", is_staged)
        with pytest.raises(
            StorageError, match="cannot be read: Too many levels of symbolic links; run again"
        ):
            commit.publish(run_of(tmp_path, SPLITS), receipts)
    path.unlink()
    path.write_bytes(content)
    assert commit.publish(run_of(tmp_path, SPLITS), receipts).rows_scored == 9
