"""Plans, attempts, receipts and failures as they lie in staging."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from job.commit import staging
from job.errors import DataError, JobError, SchemaError
from job.spec import Shard, Split
from tests.support.receipts import RUN_ID, receipt, split

NAMES = ("a", "ds=2013-12-01/part-00000", "odd name ü/x~1-00000-00002")


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    splits = [*map(split, NAMES), Split("empty", Shard("/in/e", 1, "2"), (), 0, 0)]
    path = staging.write_plan(str(tmp_path), RUN_ID, splits)
    assert list(staging.read_plan(path)) == splits
    slices = [list(staging.read_plan(path, first, 2)) for first in range(2)]
    assert slices == [splits[0::2], splits[1::2]]
    assert all(slices)
    assert staging.write_plan(str(tmp_path), RUN_ID, splits) == path


@pytest.mark.parametrize("name", NAMES)
def test_a_receipt_comes_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    one = split(name)
    assert staging.read_receipt(str(tmp_path), RUN_ID, one) is None
    written = receipt(tmp_path, one, rejects_left_out=("odd", "t"))
    staging.write_receipt(str(tmp_path), written)
    assert staging.read_receipt(str(tmp_path), RUN_ID, one) == written
    assert staging.finished(str(tmp_path), RUN_ID) == {one.name}


def test_attempts_of_one_split_never_share_a_file(tmp_path: Path) -> None:
    staging.write_plan(str(tmp_path), RUN_ID, [split("a")])
    paths = {staging.new_attempt(str(tmp_path), RUN_ID, split("a")) for _ in range(100)}
    assert len(paths) == 100


def test_the_later_receipt_counts(tmp_path: Path) -> None:
    one = split("a")
    for written in (receipt(tmp_path, one, b"first"), receipt(tmp_path, one, b"second")):
        staging.write_receipt(str(tmp_path), written)
    assert staging.read_receipt(str(tmp_path), RUN_ID, one) == written
    assert staging.finished(str(tmp_path), RUN_ID) == {one.name}


def receipt_file(output: Path) -> Path:
    return output / "_staging" / RUN_ID / "receipts" / "a.json"


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"{}", b'{"split": {}}', b"\0" * 40])
def test_a_torn_receipt_is_none(tmp_path: Path, torn: bytes) -> None:
    staging.write_receipt(str(tmp_path), receipt(tmp_path, split("a")))
    receipt_file(tmp_path).write_bytes(torn)
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None


def test_a_receipt_of_another_run_or_split_is_none(tmp_path: Path) -> None:
    written = receipt(tmp_path, split("a"))
    staging.write_receipt(str(tmp_path), written)
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a", rows=4)) is None
    content = json.loads(receipt_file(tmp_path).read_text())
    receipt_file(tmp_path).write_text(json.dumps({**content, "run_id": "b" * 64}))
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None


def test_a_receipt_whose_file_is_gone_or_cut_short_is_none(tmp_path: Path) -> None:
    written = receipt(tmp_path, split("a"), b"predictions")
    staging.write_receipt(str(tmp_path), written)
    Path(written.attempt).write_bytes(b"predic")
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None
    Path(written.attempt).unlink()
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None


def test_a_receipt_whose_file_is_published_still_counts(tmp_path: Path) -> None:
    written = receipt(tmp_path, split("a"), b"predictions")
    staging.write_receipt(str(tmp_path), written)
    Path(written.attempt).rename(tmp_path / "a.parquet")
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) == written
    # The same length with other bytes is another night's file.
    (tmp_path / "a.parquet").write_bytes(b"PREDICTIONS")
    assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None


def test_after_a_restart_a_receipt_counts_if_its_file_is_what_it_says(tmp_path: Path) -> None:
    for boot_id in ("another boot", ""):
        written = receipt(tmp_path, split("a"), b"predictions", boot_id=boot_id)
        staging.write_receipt(str(tmp_path), written)
        assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) == written
        Path(written.attempt).write_bytes(b"\0" * 11)
        assert staging.read_receipt(str(tmp_path), RUN_ID, split("a")) is None


def test_the_launcher_gets_the_workers_error(tmp_path: Path) -> None:
    staging.write_plan(str(tmp_path), RUN_ID, [])
    assert staging.failure(str(tmp_path), RUN_ID) is None
    staging.write_failure(str(tmp_path), RUN_ID, "b", DataError("row 7"))
    staging.write_failure(str(tmp_path), RUN_ID, "a", SchemaError("column x"))
    found = staging.failure(str(tmp_path), RUN_ID)
    assert type(found) is SchemaError
    assert str(found) == "column x"
    staging.clear_failures(str(tmp_path), RUN_ID)
    assert staging.failure(str(tmp_path), RUN_ID) is None


def test_an_error_of_unknown_kind_is_still_an_error(tmp_path: Path) -> None:
    class NewError(JobError):
        pass

    staging.write_plan(str(tmp_path), RUN_ID, [])
    staging.write_failure(str(tmp_path), RUN_ID, "a", NewError("what"))
    assert type(staging.failure(str(tmp_path), RUN_ID)) is JobError


def test_reused_is_not_stored(tmp_path: Path) -> None:
    written = receipt(tmp_path, split("a"))
    staging.write_receipt(str(tmp_path), written)
    again = staging.read_receipt(str(tmp_path), RUN_ID, split("a"))
    assert again is not None
    assert not again.reused
    assert replace(again, reused=True) != written
