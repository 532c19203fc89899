"""Promises 1 to 3: complete, all or nothing, once; publishing repeated from every point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job import storage
from job.commit import protocol, staging
from job.commit.output import check_output, lease, mark_again, published, remove_staging
from job.errors import DataError, OutputConflictError, StateUnknownError
from job.report.run_report import RunReport
from job.spec import Receipt, Run, Shard
from tests.support.receipts import RUN_ID, parquet, receipt, run_of, split

SPLITS = [split("a", 3), split("ds=1/b", 4), split("ds=1/c", 0)]
NOW = 1010.0


def staged(output: Path, run_id: str = RUN_ID, *, replace: bool = False) -> tuple[Run, list[Receipt]]:
    run = run_of(output, SPLITS, run_id, replace=replace)
    staging.write_plan(str(output), run_id, SPLITS)
    receipts = [receipt(output, s, f"{run_id[:1]} {s.name}".encode(), run_id=run_id) for s in SPLITS]
    for one in receipts:
        staging.write_receipt(str(output), one)
    return run, receipts


def tree(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def test_a_published_night(tmp_path: Path) -> None:
    run, receipts = staged(tmp_path)
    report = protocol.publish(run, reversed(receipts), clock=lambda: NOW)
    files = tree(tmp_path)
    assert sorted(files) == [
        *("_SUCCESS", "_manifest.json", "_report.html", "_report.json"),
        *("a.parquet", "ds=1/b.parquet", "ds=1/c.parquet"),
    ]
    assert files["ds=1/b.parquet"] == parquet(b"a ds=1/b", 4)
    assert RunReport.from_json(files["_report.json"].decode()) == report
    assert (report.rows_scored, report.wall_s, report.first_batch_s) == (7, 10.0, 2.0)
    manifest = published(str(tmp_path))
    assert manifest is not None
    assert (manifest["run_id"], manifest["rows_scored"], manifest["rows_read"]) == (RUN_ID, 7, 7)
    assert [f["path"] for f in manifest["files"]] == ["a.parquet", "ds=1/b.parquet", "ds=1/c.parquet"]
    for entry in manifest["files"]:
        assert storage.sha256(f"{tmp_path}/{entry['path']}") == entry["sha256"]
        assert (tmp_path / entry["path"]).stat().st_size == entry["bytes"]
    assert manifest["files"][1]["shard"] == "/in/ds=1/b.parquet"


Change = Callable[[list[Receipt]], list[Receipt]]
WRONG: dict[str, tuple[Change, str]] = {
    "a row was lost": (
        lambda r: [replace(r[0], rows_scored=2), *r[1:]],
        "holds 3 rows, 3 were read, 2 scored",
    ),
    "a row was doubled": (lambda r: [replace(r[0], rows_scored=4), *r[1:]], "3 were read, 4 scored"),
    "a row was not read": (lambda r: [replace(r[0], rows_read=2, rows_scored=2), *r[1:]], "2 were read"),
    "the plan has other rows": (
        lambda r: [replace(r[0], split=split("a", 2), rows_read=2, rows_scored=2), *r[1:]],
        "7 rows were planned and 6 read",
    ),
    "workers built two models": (
        lambda r: [replace(r[0], weights_digest="f" * 64), *r[1:]],
        "give --weights",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_published_when_it_does_not_add_up(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    run, receipts = staged(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=message):
        protocol.publish(run, change(receipts), clock=lambda: NOW)
    assert tree(tmp_path) == before


def test_rows_are_counted_again_in_the_files_themselves(tmp_path: Path) -> None:
    """A file of another number of rows, though its size and its receipt agree."""
    run, receipts = staged(tmp_path)
    other = parquet(b"a a", 4)
    Path(receipts[0].attempt).write_bytes(other)
    receipts[0] = replace(receipts[0], file_bytes=len(other), file_sha256=hashlib.sha256(other).hexdigest())
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"it holds 4 rows, its receipt says 3; the night was not published"):
        protocol.publish(run, receipts, clock=lambda: NOW)
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_read_back_is_not_published(tmp_path: Path) -> None:
    run, receipts = staged(tmp_path)
    path = Path(receipts[0].attempt)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(DataError, match="a file that was written cannot be read back"):
        protocol.publish(run, receipts, clock=lambda: NOW)
    assert not (tmp_path / "_SUCCESS").exists()


def test_a_clock_that_is_set_back_makes_no_negative_seconds(tmp_path: Path) -> None:
    run, receipts = staged(tmp_path)
    report = protocol.publish(run, receipts, clock=lambda: run.started_unix_s - 3600)
    assert (report.wall_s, report.rows_per_s) == (0.0, 0.0)
    receipts = [replace(r, first_batch_unix_s=run.started_unix_s - 60) for r in receipts]
    assert RunReport.of(run, receipts, ended_unix_s=NOW).first_batch_s == 0.0


def test_a_published_night_that_lost_its_mark_gets_it_back(tmp_path: Path) -> None:
    run, receipts = staged(tmp_path)
    protocol.publish(run, receipts, clock=lambda: NOW)
    assert not mark_again(str(tmp_path), "b" * 64)
    (tmp_path / "_SUCCESS").unlink()
    assert not mark_again(str(tmp_path), "b" * 64)
    with lease(str(tmp_path)):
        assert mark_again(str(tmp_path), RUN_ID)
    assert not (tmp_path / "_staging").exists()
    assert (tmp_path / "_SUCCESS").exists()
    # Not where a file is another one, of the same size or not.
    (tmp_path / "_SUCCESS").unlink()
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:50] + b"?" + content[51:])
    assert not mark_again(str(tmp_path), RUN_ID)
    (tmp_path / "a.parquet").unlink()
    assert not mark_again(str(tmp_path), RUN_ID)
    assert not (tmp_path / "_SUCCESS").exists()


LOST: dict[str, Change] = {"lost": lambda r: r[2:], "doubled": lambda r: [*r, r[0]], "all lost": lambda r: []}


@pytest.mark.parametrize("case", LOST)
def test_receipts_that_the_engine_lost_or_doubled_are_those_in_staging(tmp_path: Path, case: str) -> None:
    run, receipts = staged(tmp_path)
    report = protocol.publish(run, LOST[case](receipts), clock=lambda: NOW)
    assert (report.splits, report.rows_scored) == (3, 7)
    manifest = published(str(tmp_path))
    assert manifest is not None
    assert [entry["path"] for entry in manifest["files"]] == ["a.parquet", "ds=1/b.parquet", "ds=1/c.parquet"]


def test_a_split_without_a_receipt_is_missing(tmp_path: Path) -> None:
    run, receipts = staged(tmp_path)
    for path in (tmp_path / "_staging").rglob("receipts/a.json"):
        path.unlink()
    before = tree(tmp_path)
    with pytest.raises(StateUnknownError, match="2 of 3 splits have a receipt; run again to resume"):
        protocol.publish(run, receipts[1:], clock=lambda: NOW)
    assert tree(tmp_path) == before


class StoppedError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[str]:
    """Let that many changes to the file system happen, then fail every one, as a dead process would."""
    done: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(storage, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= steps:
                raise StoppedError
            done.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("release", "remove", "remove_tree", "write_atomic", "make_folder", "remove_empty_folder"):
        monkeypatch.setattr(storage, name, counted(name))
    return done


@pytest.mark.parametrize("replacing", [False, True])
def test_publishing_can_be_repeated_from_every_point(tmp_path: Path, replacing: bool) -> None:
    def prepared(output: Path) -> tuple[Run, list[Receipt]]:
        if replacing:
            old = [*SPLITS, split("gone/d", 1)]
            run = run_of(output, old, "b" * 64)
            protocol.publish(
                run, [receipt(output, s, b"old", run_id="b" * 64) for s in old], clock=lambda: NOW
            )
            check_output(str(output), RUN_ID, replace=True)
        return staged(output, replace=replacing)

    whole = tmp_path / "whole"
    protocol.publish(*prepared(whole), clock=lambda: NOW)
    expected = tree(whole)
    steps = 0
    while True:
        output = tmp_path / f"cut{steps}"
        run, receipts = prepared(output)
        with pytest.MonkeyPatch.context() as patch:
            done = stop_after(patch, steps)
            try:
                protocol.publish(run, receipts, clock=lambda: NOW)
            except StoppedError:
                pass
            else:
                break
        finished = published(str(output))
        if finished is not None and finished["run_id"] == RUN_ID:
            remove_staging(str(output), RUN_ID)
        else:
            check_output(str(output), RUN_ID, replace=replacing)
            found = [staging.read_receipt(str(output), RUN_ID, s) for s in SPLITS]
            assert found == receipts
            protocol.publish(run, receipts, clock=lambda: NOW)
        got = tree(output)
        assert sorted(got) == sorted(expected)
        data = [name for name in got if name.endswith(".parquet")]
        assert {name: got[name] for name in data} == {name: expected[name] for name in data}
        assert json.loads(got["_manifest.json"]) == json.loads(expected["_manifest.json"])
        steps += 1
    assert steps == len(done) > 10


def test_while_publishing_there_is_no_success(tmp_path: Path) -> None:
    old = run_of(tmp_path, SPLITS, "b" * 64)
    protocol.publish(old, [receipt(tmp_path, s, b"old", run_id="b" * 64) for s in SPLITS], clock=lambda: NOW)
    run, receipts = staged(tmp_path, replace=True)
    seen: list[bool] = []
    real = storage.release

    def look_and_rename(source: str, target: str) -> None:
        seen.append((tmp_path / "_SUCCESS").exists())
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "release", look_and_rename)
        protocol.publish(run, receipts, clock=lambda: NOW)
    assert seen == [False, False, False]
    assert (tmp_path / "_SUCCESS").exists()


def test_a_file_that_is_nowhere_is_seen_before_anything_is_touched(tmp_path: Path) -> None:
    """Promise 2: the old night stays whole when the new one turns out not to be."""
    old = [receipt(tmp_path, s, b"old", run_id="b" * 64) for s in SPLITS]
    protocol.publish(run_of(tmp_path, SPLITS, "b" * 64), old, clock=lambda: NOW)
    run, receipts = staged(tmp_path, replace=True)
    Path(receipts[1].attempt).unlink()
    before = tree(tmp_path)
    with pytest.raises(StateUnknownError, match=r"neither there nor published; nothing was changed"):
        protocol.publish(run, receipts, clock=lambda: NOW)
    assert tree(tmp_path) == before


def test_a_night_that_was_published_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    mine, receipts = staged(tmp_path)
    protocol.publish(*staged(tmp_path, "b" * 64), clock=lambda: NOW)
    before = tree(tmp_path)
    with pytest.raises(OutputConflictError, match="holds run bbbbbbbbbbbb, this is run aaaaaaaaaaaa"):
        protocol.publish(mine, receipts, clock=lambda: NOW)
    assert tree(tmp_path) == before


def test_a_night_half_published_by_another_run_can_be_replaced(tmp_path: Path) -> None:
    others = [*SPLITS, split("other/d", 1)]
    half = run_of(tmp_path, others, "b" * 64)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)
        patch.setattr(storage, "sync_files", lambda paths: 1 / 0)
        with pytest.raises((StoppedError, ZeroDivisionError)):
            protocol.publish(half, [receipt(tmp_path, s, run_id="b" * 64) for s in others], clock=lambda: NOW)
    assert (tmp_path / "a.parquet").exists()
    with pytest.raises(OutputConflictError, match="run bbbbbbbbbbbb was interrupted while it was published"):
        check_output(str(tmp_path), RUN_ID, replace=False)
    check_output(str(tmp_path), RUN_ID, replace=True)
    protocol.publish(*staged(tmp_path, replace=True), clock=lambda: NOW)
    data = [name for name in tree(tmp_path) if not name.startswith("_")]
    assert data == ["a.parquet", "ds=1/b.parquet", "ds=1/c.parquet"]
    assert not (tmp_path / "_staging").exists()


def test_the_run_id_depends_on_every_input() -> None:
    shard, options = Shard("/a", 1, "1"), {"keys": ("x",), "batch_size": None}
    ids = {
        protocol.run_id([shard], "m", options),
        protocol.run_id([replace(shard, path="/b")], "m", options),
        protocol.run_id([replace(shard, size_bytes=2)], "m", options),
        protocol.run_id([replace(shard, stamp="2")], "m", options),
        protocol.run_id([shard, shard], "m", options),
        protocol.run_id([shard], "n", options),
        protocol.run_id([shard], "m", {**options, "keys": ()}),
        protocol.run_id([shard], "m", {**options, "batch_size": 1}),
    }
    assert len(ids) == 8
    assert protocol.run_id([shard], "m", dict(reversed(options.items()))) in ids
