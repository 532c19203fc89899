"""What of a night is flushed to the disk, and before what; a disk that fails while the rows are counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job import storage
from job.commit import output, protocol, reconciliation, staging
from job.errors import StorageError
from job.spec import Split
from tests.support.nights import visible
from tests.support.power_cut import Disk
from tests.support.receipts import RUN_ID, receipt, run_of, split

SPLITS = [split("year=2013/month=12/day=01/a"), split("year=2013/month=12/day=02/b"), split("c")]


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace a night, and return the changes and flushes in their order."""
    old = [split("gone/d")]
    before = run_of(folder, old, "b" * 64)
    protocol.publish(before, [receipt(folder, one, run_id="b" * 64) for one in old])
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

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            shown = {"release": args[:1], "withdraw": path[:1]}.get(name, [path])
            steps.extend(f"{name} {one.removeprefix(str(folder)).lstrip('/')}" for one in shown)
            return real(path, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("withdraw", "release", "sync_folder", "write_atomic"):
            patch.setattr(storage, name, noted(name))
        patch.setattr(reconciliation, "reconcile", lambda run, receipts: None)
        patch.setattr(reconciliation, "recount", lambda folder, parts: None)
        protocol.publish(run_of(folder, SPLITS, replace=True), receipts)
    return steps


def test_the_old_mark_is_gone_for_good_before_a_file_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = published(tmp_path, monkeypatch)
    first = next(i for i, step in enumerate(steps) if step.startswith("release "))
    assert steps.index("withdraw _SUCCESS") < steps.index("sync_folder ") < first


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
            protocol.publish(run_of(tmp_path, SPLITS), receipts)
    path.unlink()
    path.write_bytes(content)
    assert protocol.publish(run_of(tmp_path, SPLITS), receipts).rows_scored == 9


OLD_RUN, OLD_SPLITS = "b" * 64, [SPLITS[0], split("year=2013/gone"), split("kept/gone"), split("d")]


def score(folder: Path, run_id: str, splits: list[Split], *, replacing: bool) -> None:
    """What the command does: it goes on where the folder says that the run is."""
    run = run_of(folder, splits, run_id, replace=replacing)
    storage.make_folder(str(folder))
    with output.lease(str(folder)):
        seen = output.look(str(folder), run_id)
        if (seen.published or {}).get("run_id") == run_id or output.mark_again(str(folder), run_id, seen):
            return
        output.check_output(str(folder), run_id, replace=replacing, seen=seen)
        staging.write_plan(str(folder), run_id, splits)
        receipts = []
        for one in splits:
            found = staging.read_receipt(str(folder), run_id, one)
            content = f"{run_id} {one.name}".encode()
            receipts.append(
                found or staging.write_receipt(str(folder), receipt(folder, one, content, run_id=run_id))
            )
        protocol.publish(run, receipts)


def whole(folder: Path) -> str:
    """The run whose night is there; every file that a reader finds is that night's, whole."""
    manifest = json.loads((folder / "_manifest.json").read_bytes())
    digests = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    found = {str(path.relative_to(folder)): path for path in visible(folder)}
    assert set(found) == set(digests)
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[name], name
    return str(manifest["run_id"])


@pytest.mark.parametrize("replacing", [False, True])
def test_a_power_cut_at_any_step_leaves_one_whole_night_or_none_and_the_same_command_goes_on(
    tmp_path: Path, replacing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a night in a new folder, and of one that replaces another."""
    folder = tmp_path / "nights" / "2024" / "ds=1"
    if replacing:
        score(folder, OLD_RUN, OLD_SPLITS, replacing=False)
        # Somebody else's, which keeps a folder there.
        (folder / "kept" / "_note").write_text("")
    disk = Disk(tmp_path)
    with disk.watched():
        score(folder, RUN_ID, SPLITS, replacing=replacing)
    assert whole(folder) == RUN_ID
    found: Counter[str] = Counter()
    for number, cut in enumerate(disk.cuts):
        for state in cut.states(tmp_path, seeds=2):
            # Receipts of another boot are not taken at their word.
            monkeypatch.setattr(storage, "boot_id", lambda state=state: state)
            there = whole(folder) if (folder / "_SUCCESS").exists() else ""
            found[there[:1]] += 1
            assert there or number < len(disk.cuts) - 1, f"{state}: it was told to be published"
            try:
                score(folder, RUN_ID, SPLITS, replacing=replacing)
                assert (folder / "_SUCCESS").exists()
                assert whole(folder) == RUN_ID
            except Exception as e:
                raise AssertionError(f"{state}: the same command does not go on") from e
    assert set(found) == ({"", "a", "b"} if replacing else {"", "a"})
    assert len(disk.cuts) > 60
