"""Several commands at once on one output in a bucket, and owners of it that stand still or come too late."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import short_leases
from tests.killing import Job, Zygote, zygote
from tests.servers import stores
from tests.servers.clients import BUCKET
from tests.servers.proxy import Fault
from tests.store_nights import SCHEMES, StoreNight, kind, store_night, until

# Requests that change something, but for those that keep a lease or let go of it: these come at any time.
CHANGES = r"^(PUT|POST|DELETE|PATCH) (?!.*_staging(/|%2F)lease)(?!.*ifGenerationMatch=[1-9])"
# A night with other files of the same names.
OTHER = "--row_group_rows=30"
REPLACE = "--if_exists=replace"
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def warm() -> Iterator[Zygote]:
    with zygote(stores.environment(None, None), ("job.s3", "job.gcs")) as one:
        yield one


@pytest.fixture(scope="module")
def hasty() -> Iterator[Zygote]:
    """Its jobs' leases expire in a second."""
    with zygote(stores.environment(None, None), ("job.s3", "job.gcs", "tests.expiring_soon")) as one:
        yield one


@pytest.fixture(scope="module", params=SCHEMES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreNight]:
    with store_night(request.param, tmp_path_factory.mktemp("night")) as one:
        yield one


@pytest.fixture
def night(shared: StoreNight) -> StoreNight:
    shared.way.proxy.reset()
    return shared


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on another machine than the others, and leases expire soon."""
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    short_leases.shorten(monkeypatch)


def job(night: StoreNight, name: str, *flags: str, log: str = "log") -> Job:
    return Job(("score", *night.args(name, *flags)), str(night.folder / log), env=night.env)


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


# The last request of its kind, or the first.
STEPS = {
    "receipt": ("(PUT|POST) receipts", -1),
    "mark": (r"(PUT|POST) publishing\.json", 0),
    "unmark": ("POST delete|DELETE _SUCCESS", 0),
    "publish": ("POST (uploadId|rewriteTo) files", 0),
    "manifest": (r"(PUT|POST) _manifest\.json", 0),
    "whole": ("(PUT|POST) _SUCCESS", 0),
    "clean": (r"POST delete|DELETE plan\.jsonl", -1),
}


@pytest.fixture(scope="module")
def steps(shared: StoreNight) -> dict[str, int]:
    """The numbers of some requests, of those that change something, in any run."""
    shared.way.proxy.reset()
    shared.score(next(_outputs))
    requests = [
        kind(one)
        for one in shared.way.proxy.counts().requests
        if one.key.startswith(BUCKET) and re.search(CHANGES, f"{one.method} {one.target}")
    ]
    return {
        step: [number for number, what in enumerate(requests) if re.fullmatch(matches, what)][which]
        for step, (matches, which) in STEPS.items()
    }


def stall(night: StoreNight, warm: Zygote, one: Job, at: int, *, late: bool) -> int:
    """Start a job and stop it while it waits for an answer; returns its process group.

    When it goes on it finds the connection broken, and nothing done; or the answer, if that is to be late.
    """
    night.way.proxy.set(faults=[Fault("hold", CHANGES, at=at, done=late, late=late)])
    (group,) = warm.start(one)
    until(lambda: night.way.proxy.counts().held)
    os.killpg(group, signal.SIGSTOP)
    # One of its threads takes the signal, and stops the others when it gets to it.
    until(lambda: states(group) == {"T"})
    night.way.proxy.reset()
    return group


def states(process: int) -> set[str]:
    """What the threads of a process are doing, as proc_pid_stat(5) has it."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


@pytest.mark.parametrize("late", [False, True], ids=["broken", "late"])
@pytest.mark.parametrize("step", STEPS)
def test_an_owner_that_stood_still_changes_nothing_of_the_next_night(
    night: StoreNight, hasty: Zygote, steps: dict[str, int], elsewhere: None, step: str, late: bool
) -> None:
    name = next(_outputs)
    group = stall(night, hasty, job(night, name), steps[step], late=late)
    try:
        night.score(name, OTHER, REPLACE)
        night.check(name)
        before = night.files(name)
    finally:
        os.killpg(group, signal.SIGCONT)
        (done,) = hasty.wait()
    assert night.files(name) == before, (done.text, [(r.method, r.target, r.status, r.fault) for r in night.way.proxy.counts().requests])
    night.check(name)
    assert done.code == 1, done.text
    (line,) = errors(done.text)
    print(line)
