"""Attempts in a bucket that come twice or too late, and readers who look on while nights are exchanged."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from job import commit, leases, output, staging, storage
from job.errors import JobError, StateUnknownError
from job.scoring import score_split
from job.spec import Receipt
from job.task import ScoringTask
from job.worker import ScoreSplits
from tests.nights import Night, Planned
from tests.servers.proxy import Fault
from tests.store_nights import MUTATES, SCHEMES, StoreNight, store_night, until

OTHER = ("--row_group_rows=30", "--split_rows=30")
REPLACE = "--if_exists=replace"
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=SCHEMES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreNight]:
    with store_night(request.param, tmp_path_factory.mktemp("night")) as one:
        yield one


@pytest.fixture
def night(shared: StoreNight) -> StoreNight:
    shared.way.proxy.reset()
    return shared


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
    commit.publish(run, [staging.write_receipt(run.output, second) for _, second in attempts])
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
        worker = ScoreSplits(self.task)
        worker._loaded = self.plan.loaded
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


@contextmanager
def held(
    night: StoreNight, fault: Fault, act: Callable[[], Any]
) -> Iterator[tuple[threading.Thread, list[Any]]]:
    """Something in another thread, whose request the proxy holds; afterwards it has come to its end.

    Yields the thread, and what comes out of it.
    """
    got: list[Any] = []

    def call() -> None:
        try:
            got.append(act())
        except JobError as e:
            got.append(e)

    night.way.proxy.set(faults=[fault])
    thread = threading.Thread(target=call)
    thread.start()
    try:
        until(lambda: night.way.proxy.counts().held)
        night.way.proxy.set(faults=[])
        yield thread, got
    finally:
        night.way.proxy.reset()
        thread.join()


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
        commit.publish(run, receipts)
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
    monkeypatch.setattr(leases, "RENEW_S", 0.0)
    mark = {"s3": r"^PUT .*publishing\.json", "gs": "^POST /upload/"}[night.scheme]
    with held(night, Fault("hold", mark, done=True, late=True), lambda: commit.publish(run, receipts)) as (
        _,
        got,
    ):
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
    output.remove_rest(folder, "a" * 64)
    assert storage.size_bytes(plan) == 1


Look = Callable[[str], bytes | None]


def read(look: Look) -> str | None:
    """The run id of the night that a reader accepts, who goes by docs/object-stores.md; and it is no mix."""
    if look("_SUCCESS") is None or (told := look("_manifest.json")) is None:
        return None
    manifest = json.loads(told)
    digests = {}
    for one in (*manifest["files"], *manifest["rejected_files"]):
        content = look(one["path"])
        if content is None:
            return None
        digests[one["path"]] = (hashlib.sha256(content).hexdigest(), one["sha256"])
    if look("_SUCCESS") is None:
        return None
    if json.loads(look("_manifest.json") or b"{}").get("run_id") != manifest["run_id"]:
        return None
    wrong = [path for path, (found, wanted) in digests.items() if found != wanted]
    assert not wrong, f"a mix was accepted: {wrong}"
    return str(manifest["run_id"])


def states(night: StoreNight, name: str, *flags: str) -> list[Mapping[str, bytes]]:
    """What a reader may see, one change after the other, while another night is published."""
    found: list[Mapping[str, bytes]] = []
    changes = Fault("hold", MUTATES, times=-1, done=True, late=True)
    with held(night, changes, lambda: night.score(name, *flags)) as (thread, got):
        night.way.proxy.set(faults=[changes])
        while thread.is_alive():
            until(lambda: night.way.proxy.counts().held or not thread.is_alive())
            found.append(visible(night, name))
            night.way.proxy.release()
    assert not isinstance(got[0], JobError), got
    return [now for before, now in pairwise([{}, *found]) if now != before]


def visible(night: StoreNight, name: str) -> dict[str, bytes]:
    """What readers look at, without what changes meanwhile."""
    starts = ("part-", "_rejected/", "_manifest", "_SUCCESS")
    found = {start: night.bucket.files(f"{name}/{start}") for start in starts}
    return {f"{start}{rest}": content for start, files in found.items() for rest, content in files.items()}


def looks(history: Sequence[Mapping[str, bytes]], when: Sequence[int]) -> Look:
    """A reader's looks, each at its time."""
    times = iter(when)
    return lambda path: history[next(times)].get(path)


def test_no_reader_accepts_a_mix_of_two_nights(night: StoreNight, monkeypatch: pytest.MonkeyPatch) -> None:
    # One after the other, so that every state between is seen.
    monkeypatch.setattr(storage, "REQUESTS_AT_ONCE", 1)
    name = next(_outputs)
    first = night.score(name, *OTHER).run_id
    history = states(night, name, REPLACE)
    second = json.loads(history[-1]["_manifest.json"])["run_id"]
    night.check(name)
    # _SUCCESS goes, four files come, two and more go, report and manifest come, and _SUCCESS.
    assert len(history) >= 10
    # Read at once, at each time; and then at any times.
    at_once = [read(looks(history, [at] * 20)) for at in range(len(history))]
    assert at_once == [first, *[None] * (len(history) - 2), second]
    draw, accepted = random.Random(0), []
    for _ in range(3000):
        span = sorted(draw.choices(range(len(history)), k=2))
        accepted.append(read(looks(history, sorted(draw.choices(range(span[0], span[1] + 1), k=20)))))
    assert set(accepted) == {None, first, second}
