"""Several commands, publishers and attempts at once on one output: one night, and nothing left over."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import storage
from job.commit import output, protocol, staging
from job.errors import JobError, StateUnknownError
from job.scoring.split import score_split
from job.spec import Receipt, Run
from tests.nights.test_kills import files, is_whole
from tests.support.jobs import Job, Zygote
from tests.support.nights import Night, dense, features, saved
from tests.support.receipts import RUN_ID, receipt, run_of, split


@pytest.fixture
def full(night: Night) -> Night:
    for i in range(3):
        night.shard(f"part-{i}", features(300, seed=i, first_id=300 * i), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    return night


def job(night: Night, number: int, *flags: str) -> Job:
    args = night.args(night.folder / "m.keras", "--keys=id", "--split_rows=50", *flags)
    return Job(("score", *args), str(night.folder / f"log{number}"))


@pytest.mark.parametrize("jobs", [2, 5])
def test_identical_commands_make_one_night(full: Night, warm: Zygote, jobs: int) -> None:
    done = warm.run(*(job(full, i) for i in range(jobs)))
    assert sorted({one.code for one in done} - {6}) == [0]
    for one in done:
        if one.code == 6:
            (line,) = [line for line in one.text.splitlines() if line.startswith("error: ")]
            assert "another run is at work on it (process " in line
            assert "; run again when it has ended" in line
    assert is_whole(full.output)
    assert sum("scored of 900 read" in one.text for one in done) == 1
    assert full.scored()["id"].to_pylist() == list(range(900))
    assert not (full.output / "_staging").exists()


def test_different_commands_make_one_of_their_nights(full: Night, warm: Zygote) -> None:
    done = warm.run(*(job(full, i, f"--row_group_rows={10 + i}") for i in range(4)))
    assert [one.code for one in done].count(0) == 1
    assert {one.code for one in done} == {0, 6}
    run_id = is_whole(full.output)
    for path in full.files():
        metadata = pq.read_metadata(path).metadata
        assert metadata[b"scoring_job.run_id"].decode() == run_id
    assert not (full.output / "_staging").exists()


def test_a_killed_owner_holds_nothing(full: Night, warm: Zygote) -> None:
    (killed,) = warm.run(Job(job(full, 0).args, str(full.folder / "log0"), str(full.output), kill_at=25))
    assert killed.code == -9
    assert (full.output / "_staging/lease").exists()
    (done,) = warm.run(job(full, 1))
    assert done.code == 0, done.text


def test_an_attempt_that_ends_after_publishing_leaves_nothing(full: Night) -> None:
    planned = full.planned(full.folder / "m.keras", "--keys=id", "--split_rows=50")
    run, splits = planned.task.run, planned.splits
    receipts = [score_split(one, planned.task, planned.loaded) for one in splits]
    zombie = score_split(splits[0], planned.task, planned.loaded)
    protocol.publish(run, receipts)
    before = files(full.output)
    with pytest.raises(StateUnknownError, match="it was published or removed meanwhile"):
        staging.write_receipt(run.output, zombie)
    staging.write_failure(run.output, run.run_id, "part-0", JobError("too late"))
    with pytest.raises(StateUnknownError, match="it was published or removed meanwhile"):
        score_split(splits[0], planned.task, planned.loaded)
    assert files(full.output) == before
    assert not (full.output / "_staging").exists()


STEPS = (
    "release",
    "remove",
    "remove_tree",
    "write_atomic",
    "make_folder",
    "remove_empty_folder",
    "sync_files",
)
SPLITS = [split("a", 3), split("ds=1/b", 4)]


def publish_together(folder: Path, order: list[bool]) -> list[BaseException]:
    """Run two publishers of one run a step at a time, in that order; afterwards both run freely."""
    turns = itertools.chain(order, itertools.repeat(None))
    lock = threading.Condition()
    state: dict[str, Any] = {"turn": next(turns), "alive": {True, False}}
    errors: list[BaseException] = []

    def stepped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            me = threading.current_thread().name == "first"
            with lock:
                free = (None, me)
                lock.wait_for(lambda: state["turn"] in free or state["turn"] not in state["alive"], 20)
                try:
                    return real(*args, **kwargs)
                finally:
                    state["turn"] = next(turns)
                    lock.notify_all()

        return call

    def publisher() -> None:
        try:
            protocol.publish(run, receipts)
        except JobError as e:
            errors.append(e)
        finally:
            with lock:
                state["alive"].discard(threading.current_thread().name == "first")
                lock.notify_all()

    run = run_of(folder, SPLITS)
    staging.write_plan(str(folder), RUN_ID, SPLITS)
    receipts = [receipt(folder, one, one.name.encode()) for one in SPLITS]
    for one in receipts:
        staging.write_receipt(str(folder), one)
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(storage, name, stepped(getattr(storage, name)))
        threads = [threading.Thread(target=publisher, name=name) for name in ("first", "second")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    return errors


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.booleans(), max_size=40))
def test_two_publishers_of_one_run_in_any_interleaving(
    tmp_path_factory: pytest.TempPathFactory, order: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("both")
    errors = publish_together(folder, order)
    assert len(errors) < 2, errors
    # At worst the mark is missing, and the next command puts it back.
    with output.lease(str(folder)):
        if output.published(str(folder)) is None:
            assert output.mark_again(str(folder), RUN_ID)
    output.remove_staging(str(folder), RUN_ID)
    assert is_whole(folder) == RUN_ID
    assert sorted(files(folder)) == [
        *("_SUCCESS", "_manifest.json", "_report.html", "_report.json", "a.parquet", "ds=1/b.parquet")
    ]


def held_at(run: Run, receipts: list[Receipt], step: str, meanwhile: Callable[[], None]) -> None:
    """Publish, and let something happen where the publisher first comes to a step."""
    real, times = getattr(storage, step), itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(times) == 0:
            meanwhile()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, step, call)
        protocol.publish(run, receipts)


@pytest.mark.parametrize("step", ["release", "sync_files"])
def test_a_publisher_that_outlives_its_launcher_takes_nothing_of_the_next_night(
    tmp_path: Path, step: str
) -> None:
    """What the first run was to remove is what the other one has just published."""
    old_splits = [*SPLITS, split("gone/c", 2)]
    before = run_of(tmp_path, old_splits, "0" * 64)
    protocol.publish(before, [receipt(tmp_path, one, b"old", run_id="0" * 64) for one in old_splits])
    mine, others = (
        run_of(tmp_path, SPLITS, replace=True),
        run_of(tmp_path, old_splits, "b" * 64, replace=True),
    )
    staging.write_plan(str(tmp_path), RUN_ID, SPLITS)
    receipts = [receipt(tmp_path, one, b"mine") for one in SPLITS]

    def meanwhile() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, step, real)
            protocol.publish(others, [receipt(tmp_path, one, b"new", run_id="b" * 64) for one in old_splits])
        published.append(files(tmp_path))

    published: list[dict[str, str]] = []
    real = getattr(storage, step)
    with pytest.raises(StateUnknownError, match="another run has published there since this one began to"):
        held_at(mine, receipts, step, meanwhile)
    assert is_whole(tmp_path) == "b" * 64
    assert (tmp_path / "gone/c.parquet").exists()
    assert files(tmp_path) == published[0]


@pytest.mark.slow
def test_a_reader_never_accepts_a_mix(full: Night, warm: Zygote) -> None:
    """Nights are swapped to and fro while a reader goes by ``_SUCCESS`` and the manifest."""
    stop = threading.Event()
    accepted: list[str] = []
    torn = 0

    def read() -> str | None:
        success, manifest = full.output / "_SUCCESS", full.output / "_manifest.json"
        if not success.exists():
            return None
        night = json.loads(manifest.read_bytes())
        ids = []
        for entry in night["files"]:
            file = pq.ParquetFile(full.output / entry["path"])
            ids.append(file.metadata.metadata[b"scoring_job.run_id"].decode())
            if file.read().num_rows != entry["rows"]:
                ids.append("torn")
        if not success.exists() or json.loads(manifest.read_bytes())["run_id"] != night["run_id"]:
            return None
        assert set(ids) == {night["run_id"]}
        return str(night["run_id"])

    def loop() -> None:
        nonlocal torn
        while not stop.is_set():
            try:
                accepted.extend(filter(None, [read()]))
            except FileNotFoundError:
                torn += 1
            # Without it, the reader would take the core that the nights are made on.
            time.sleep(0.01)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        for i in range(10):
            flags = (
                "--if_exists=replace",
                f"--row_group_rows={10 + i % 2}",
                f"--split_rows={50 + 50 * (i % 2)}",
            )
            args = full.args(full.folder / "m.keras", "--keys=id", *flags)
            (done,) = warm.run(Job(("score", *args), str(full.folder / "log")))
            assert done.code == 0, done.text
    finally:
        stop.set()
        thread.join()
    assert len(set(accepted)) == 2
    assert len(accepted) > 25
