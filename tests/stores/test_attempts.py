"""Attempts, receipts and publishers in a bucket that come twice or too late."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace

import pytest

from job import storage
from job.commit import cleaning, lease, protocol, staging
from job.errors import JobError, StateUnknownError
from job.scoring.overlap import Overlap
from job.scoring.split import score_split
from job.scoring.task import ScoringTask
from job.scoring.worker import ScoreSplits
from job.spec import Receipt
from tests.support.nights import Night, Planned
from tests.support.servers.proxy import Fault
from tests.support.store_nights import StoreNight, held

OTHER = ("--row_group_rows=30", "--split_rows=30")
REPLACE = "--if_exists=replace"
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture
def night(night_in_store: StoreNight) -> StoreNight:
    night_in_store.way.proxy.reset()
    return night_in_store


@dataclass(frozen=True, eq=False)
class InBucket(Night):
    """What is planned there."""

    store: StoreNight
    name: str

    def args(self, model: object, *flags: str) -> list[str]:
        return list(self.store.args(self.name, *flags))


def planned(night: StoreNight, name: str) -> Planned:
    return InBucket(night.folder, night, name).planned("")


def test_of_two_attempts_of_a_split_the_first_stands(night: StoreNight) -> None:
    """Two workers were given the same split; both score all of it."""
    name = next(_outputs)
    plan = planned(night, name)
    run = plan.task.run
    attempts = [[score_split(one, plan.task, plan.loaded) for _ in range(2)] for one in plan.splits]
    for first, second in attempts:
        assert first.attempt != second.attempt
        assert staging.write_receipt(run.output, first) == first
        assert staging.write_receipt(run.output, second) == first
        assert staging.read_receipt(run.output, run.run_id, first.split) == first
    # The engine may hand over either.
    protocol.publish(run, [staging.write_receipt(run.output, second) for _, second in attempts])
    night.check(name)
    published = {
        one["path"]: one["sha256"] for one in json.loads(night.files(name)["_manifest.json"])["files"]
    }
    assert published == {f"{first.split.name}.parquet": first.file_sha256 for first, _ in attempts}


@dataclass(frozen=True)
class Zombie:
    """A worker of a run that was published, which does not know it."""

    task: ScoringTask
    plan: Planned

    def process(self) -> list[Receipt]:
        """What the engine has it do with its first split."""
        worker = ScoreSplits(self.task, overlaps=False)
        worker._loaded, worker._overlap, worker._rival = self.plan.loaded, Overlap(), None
        return list(worker.process(self.plan.splits[0]))

    def attempt(self) -> Receipt:
        """The same, before the receipt is written."""
        return score_split(self.plan.splits[0], self.task, self.plan.loaded)


def zombie(night: StoreNight, name: str, run_id: str) -> Zombie:
    plan = planned(night, f"{name}-planned")
    run = replace(plan.task.run, run_id=run_id, output=night.path(name))
    return Zombie(replace(plan.task, run=run), plan)


def test_a_worker_that_goes_on_after_publishing_leaves_nothing(night: StoreNight) -> None:
    name = next(_outputs)
    late = zombie(night, name, night.score(name).run_id)
    before = night.files(name)
    assert late.process() == []
    with pytest.raises(StateUnknownError, match="it was published or removed meanwhile"):
        staging.write_receipt(late.task.run.output, late.attempt())
    staging.write_failure(late.task.run.output, late.task.run.run_id, "part-0", JobError("too late"))
    assert night.files(name) == before
    night.check(name)


@pytest.mark.parametrize("command", ["the same", "the next night"])
def test_what_a_worker_left_that_died_after_publishing_goes_with_the_next_command(
    night: StoreNight, command: str
) -> None:
    name = next(_outputs)
    late = zombie(night, name, night.score(name).run_id)
    before = night.files(name)
    late.attempt()
    left = night.files(name).keys() - before.keys(), night.bucket.uploads(f"{name}/")
    assert left == (set(), [f"{name}/part-0.parquet"]) if night.scheme == "s3" else len(left[0]) == 1
    if command == "the same":
        night.score(name)
        assert night.files(name) == before
    else:
        night.score(name, *OTHER, REPLACE)
    night.check(name)


def test_a_worker_whose_attempt_is_swept_while_it_is_written_leaves_nothing(night: StoreNight) -> None:
    """Where uploads are to be swept it is told so in a line, and not by what it was sent."""
    name = next(_outputs)
    late = zombie(night, name, night.score(name, *OTHER).run_id)
    written = {"s3": "^POST .*part-0.*uploads", "gs": "^POST /upload/"}[night.scheme]
    with held(night, Fault("hold", written, done=True, late=True), late.attempt) as (_, got):
        report = night.score(name, REPLACE)
        before = night.files(name)
    if night.scheme == "s3":
        assert [type(one) for one in got] == [StateUnknownError]
        assert str(got[0]).startswith(
            f"{night.path(name)}/part-0.parquet: what was sent of it is gone: its run"
        )
    else:
        with pytest.raises(StateUnknownError, match="it was published or removed meanwhile"):
            staging.write_receipt(late.task.run.output, got[0])
    assert night.files(name) == before
    night.check(name)
    assert night.score(name).run_id == report.run_id


def test_a_receipt_that_comes_after_publishing_goes_with_the_next_command(night: StoreNight) -> None:
    """Its writer had just seen that the run is under way."""
    name = next(_outputs)
    plan = planned(night, name)
    run = plan.task.run
    receipts = [score_split(one, plan.task, plan.loaded) for one in plan.splits]
    for one in receipts:
        staging.write_receipt(run.output, one)
    again = score_split(plan.splits[0], plan.task, plan.loaded)
    look = Fault("hold", r"^(HEAD|GET) .*plan\.jsonl", done=True, late=True)
    with held(night, look, lambda: staging.write_receipt(run.output, again)) as (_, got):
        protocol.publish(run, receipts)
        before = night.files(name)
        night.check(name)
    assert got == [again]
    assert night.files(name).keys() - before.keys() == {f"_staging/{run.run_id}/receipts/part-0.json"}
    report = night.score(name, *OTHER, REPLACE)
    assert report.run_id != run.run_id
    night.check(name)


def test_a_publisher_whose_launcher_lost_the_lease_ends(
    night: StoreNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on a worker, where nobody renews the lease."""
    name = next(_outputs)
    plan = planned(night, name)
    receipts = [score_split(one, plan.task, plan.loaded) for one in plan.splits]
    run = replace(plan.task.run, lease="launcher")
    night.bucket.put(f"{name}/_staging/lease", b'{"token": "launcher"}')
    # As if it had stood still for so long.
    monkeypatch.setattr(lease, "RENEW_S", 0.0)
    written = {"s3": r"^PUT .*publishing\.json", "gs": "^POST /upload/"}[night.scheme]
    mark = Fault("hold", written, done=True, late=True)
    with held(night, mark, lambda: protocol.publish(run, receipts)) as (_, got):
        night.bucket.put(f"{name}/_staging/lease", b'{"token": "other"}')
        before = night.files(name)
        assert f"_staging/{run.run_id}/publishing.json" in before
    assert [type(one) for one in got] == [StateUnknownError]
    assert "lease expired" in str(got[0])
    assert night.files(name) == before


def test_the_rest_of_a_run_that_is_not_published_by_now_stays(night: StoreNight) -> None:
    """Between the look at a published night and the lease, others may have worked on the output."""
    folder = night.path(next(_outputs))
    plan = staging.write_plan(folder, "a" * 64, [])
    cleaning.remove_rest(folder, "a" * 64)
    assert storage.exists(plan)
