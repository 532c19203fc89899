"""Promises 1, 2 and 4 in a bucket: SIGKILL at every request that changes it, then the same command.

The proxy holds the request: before the store has seen it, or when it has taken effect and nobody was told.
A job that is killed then leaves the bucket in exactly that state.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Sequence

import pytest

from job.commit import lease
from tests.support.jobs import Done, Job, Zygote
from tests.support.servers.proxy import Entry, Fault
from tests.support.store_nights import MUTATES, SPLITS, StoreNight, kind, until

KILLED = -9
ATTEMPT = {"s3": "POST uploads files", "gs": "POST attempts"}
Point = tuple[int, bool]
Whole = tuple[dict[str, str], list[Entry]]
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def night(night_in_store: StoreNight) -> StoreNight:
    return night_in_store


def job(night: StoreNight, name: str) -> Job:
    return Job(("score", *night.args(name)), str(night.folder / "log"), env=night.env)


def run(night: StoreNight, warm: Zygote, name: str) -> Done:
    return warm.run(job(night, name))[0]


@pytest.fixture(scope="module")
def whole(night: StoreNight, warm: Zygote) -> Whole:
    """The night as it must be, and the requests that made it."""
    night.way.proxy.reset()
    name = next(_outputs)
    done = run(night, warm, name)
    assert done.code == 0, done.text
    requests = night.way.proxy.counts().requests
    return night.check(name), [one for one in requests if one.method not in ("GET", "HEAD")]


def kinds(requests: Sequence[Entry]) -> dict[str, list[int]]:
    """The numbers of the requests of each kind."""
    found: dict[str, list[int]] = {}
    for number, one in enumerate(requests):
        found.setdefault(kind(one), []).append(number)
    return found


def some(requests: Sequence[Entry]) -> list[Point]:
    """Of each kind the first request, not carried out, and the last, carried out; or one of these."""
    points = []
    for number, numbers in enumerate(kinds(requests).values()):
        ends = [(numbers[0], False), (numbers[-1], True)]
        points += ends if len(numbers) > 1 else [ends[number % 2]]
    return sorted(points)


def kill(night: StoreNight, warm: Zygote, name: str, point: Point, matches: str = MUTATES) -> None:
    """Kill a job while the proxy holds the request of this number, of those that match."""
    proxy, (at, done) = night.way.proxy, point
    proxy.reset()
    proxy.set(faults=[Fault("hold", matches, at=at, done=done)])
    (group,) = warm.start(job(night, name))
    until(lambda: proxy.counts().held)
    os.killpg(group, signal.SIGKILL)
    assert warm.wait()[0].code == KILLED
    # What its other threads had sent arrives after its death.
    until(lambda: proxy.counts().settled)
    proxy.reset()


def check_the_same_command(night: StoreNight, name: str, wanted: dict[str, str]) -> None:
    """Look at what a killed job left, run it again, and compare with the uninterrupted night."""
    files = night.files(name)
    is_whole = "_SUCCESS" in files
    receipts = sum("/receipts/" in path for path in files)
    start_s = time.monotonic()
    report = night.score(name)
    # The dead owner of the lease was of this machine, so nobody waits for it to expire.
    assert time.monotonic() - start_s < lease.EXPIRES_S / 3
    assert night.check(name) == wanted
    assert report.splits == SPLITS
    if not is_whole:
        assert report.splits_reused == receipts


def check_all(night: StoreNight, warm: Zygote, wanted: dict[str, str], points: Sequence[Point]) -> None:
    for point in points:
        name = next(_outputs)
        kill(night, warm, name, point)
        check_the_same_command(night, name, wanted)


def test_the_requests_are_those_of_the_protocol(night: StoreNight, warm: Zygote, whole: Whole) -> None:
    """One lease, one plan, attempts before receipts, the mark, the files, ``_SUCCESS``, clean staging."""
    _, requests = whole
    found = kinds(requests)
    put = {"s3": "PUT", "gs": "POST"}[night.scheme]
    # These two are sent at once, and arrive in any order.
    told = sorted((f"{put} _report.json", f"{put} _manifest.json"), key=lambda name: found[name][0])
    if night.scheme == "s3":
        order = ["PUT lease", "PUT plan.jsonl", "POST uploads files", "PUT uploadId partNumber files"]
        order += ["PUT receipts", "PUT publishing.json", "POST uploadId files", *told, "PUT _SUCCESS"]
        order += ["DELETE lease"]
    else:
        order = ["POST lease", "POST plan.jsonl", "POST attempts", "POST receipts", "POST publishing.json"]
        order += ["DELETE _SUCCESS", "POST rewriteTo files", *told, "POST _SUCCESS", "DELETE plan.jsonl"]
        order += ["DELETE lease"]
    assert [found[name][0] for name in order] == sorted(found[name][0] for name in order)
    receipts, published = {
        "s3": ("PUT receipts", "POST uploadId files"),
        "gs": ("POST receipts", "POST rewriteTo files"),
    }[night.scheme]
    assert len(found[receipts]) == len(found[published]) == SPLITS
    assert len(found[ATTEMPT[night.scheme]]) >= SPLITS


def test_killed_at_each_kind_of_request(night: StoreNight, warm: Zygote, whole: Whole) -> None:
    wanted, requests = whole
    points = some(requests)
    assert {done for _, done in points} == {False, True}
    assert len(points) >= 16
    check_all(night, warm, wanted, points)


@pytest.mark.slow
def test_killed_at_every_other_request(night: StoreNight, warm: Zygote, whole: Whole) -> None:
    """Carried out, since a request that was not leaves what the one before it has left."""
    wanted, requests = whole
    every = {(number, True) for number in range(len(requests))}
    check_all(night, warm, wanted, sorted(every - {*some(requests)}))


def test_killed_again_and_again(night: StoreNight, warm: Zygote, whole: Whole) -> None:
    """Whatever each try leaves, the last one ends with the same night, and no upload of an earlier one."""
    wanted, _ = whole
    name = next(_outputs)
    for at in (4, 6, 8, 6):
        kill(night, warm, name, (at, True))
        assert "_SUCCESS" not in night.files(name)
    check_the_same_command(night, name, wanted)


def test_what_a_first_try_left_goes_though_a_second_is_killed_when_the_night_is_whole(
    night: StoreNight, warm: Zygote, whole: Whole
) -> None:
    wanted, requests = whole
    name, found = next(_outputs), kinds(requests)
    kill(night, warm, name, (found[ATTEMPT[night.scheme]][0], True))
    marked = {"s3": "^PUT .*/_SUCCESS", "gs": "^DELETE .*/_staging/"}[night.scheme]
    kill(night, warm, name, (0, True), marked)
    assert "_SUCCESS" in night.files(name)
    check_the_same_command(night, name, wanted)
