"""Several commands at once on one output in a bucket, and owners of it that stand still and go on late."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.errors import OutputConflictError
from job.report.run_report import RunReport
from tests.support import short_leases
from tests.support.jobs import Job, Zygote
from tests.support.servers.clients import BUCKET
from tests.support.servers.proxy import Fault
from tests.support.store_nights import StoreNight, held, kind, until, until_held

# Requests that change something, but for those that keep a lease or let go of it: these come at any time.
CHANGES = r"^(PUT|POST|DELETE|PATCH) (?!.*_staging(/|%2F)lease)(?!.*ifGenerationMatch=[1-9])"
# A night with other files of the same names.
OTHER = "--row_group_rows=30"
REPLACE = "--if_exists=replace"
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture
def night(night_in_store: StoreNight) -> StoreNight:
    night_in_store.way.proxy.reset()
    return night_in_store


SOON = "tests.support.job_patches.short_leases"


def job(night: StoreNight, name: str, *flags: str, log: str = "log", clocks: str = SOON) -> Job:
    """Its lease expires in less than a second."""
    args = ("score", *night.args(name, *flags))
    return Job(args, str(night.folder / log), env=night.env, imports=(clocks,))


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def check_refused(text: str) -> None:
    (line,) = errors(text)
    assert "another run is at work on it (process " in line
    assert line.endswith("; run again when it has ended")


@pytest.mark.parametrize("jobs", [2, 5])
def test_identical_commands_make_one_night(night: StoreNight, warm: Zygote, jobs: int) -> None:
    name = next(_outputs)
    done = warm.run(*(job(night, name, log=f"log{number}") for number in range(jobs)))
    assert {one.code for one in done} <= {0, 6}
    assert sum("scored of 180 read" in one.text for one in done) == 1
    for one in done:
        if one.code == 6:
            check_refused(one.text)
        elif "scored of 180 read" not in one.text:
            assert "already published: run " in one.text
    night.check(name)


def test_different_commands_make_one_of_their_nights(night: StoreNight, warm: Zygote) -> None:
    name = next(_outputs)
    given = {rows: f"--row_group_rows={rows}" for rows in (10, 20)}
    done = warm.run(*(job(night, name, flags, log=f"log{rows}") for rows, flags in given.items()))
    assert sorted(one.code for one in done) == [0, 6]
    for one in done:
        if one.code:
            (line,) = errors(one.text)
            assert "another run is at work on it" in line or "it holds run " in line
    night.check(name)
    winner = [*given][[one.code for one in done].index(0)]
    parts = night.bucket.files(f"{name}/part-").values()
    assert {pq.read_metadata(io.BytesIO(one)).row_group(0).num_rows for one in parts} == {winner}


CHANGED = Fault("hold", CHANGES, times=-1, done=True, late=True)


def test_at_no_moment_of_a_run_is_another_let_in(night: StoreNight) -> None:
    name, refused, no_ops = next(_outputs), 0, 0
    proxy = night.way.proxy
    with held(night, CHANGED, lambda: night.score(name)) as (thread, got):
        while until_held(night, thread):
            # A change has been made, and nobody knows of it yet.
            whole = bool(night.bucket.files(f"{name}/_SUCCESS"))
            with pytest.raises(OutputConflictError, match=r"at work on it \(process"):
                night.score(name, OTHER)
            if whole:
                night.score(name)
            else:
                with pytest.raises(OutputConflictError, match=r"at work on it \(process"):
                    night.score(name)
            no_ops, refused = no_ops + whole, refused + (not whole)
            proxy.release()
    assert [type(one) for one in got] == [RunReport]
    assert no_ops >= 1
    # Of the splits, many things are held at the same moment.
    assert refused >= 8
    night.check(name)


def test_a_night_that_is_replaced_while_it_is_looked_at_is_not_taken_for_damaged(night: StoreNight) -> None:
    name = next(_outputs)
    night.score(name)
    listing = rf"^GET .*prefix={name}(%2F|/)(&|$)"
    with held(night, Fault("hold", listing), lambda: night.score(name)) as (_, got):
        night.score(name, OTHER, REPLACE)
    assert [type(one) for one in got] == [OutputConflictError]
    assert "it holds run " in str(got[0])
    night.check(name)


# By its kind, the first or the last; whether its answer comes late, or the connection is found broken.
STEPS = {
    "receipt": ("(PUT|POST) receipts", -1, True),
    "mark": (r"(PUT|POST) publishing\.json", 0, True),
    "unmark": ("POST delete|DELETE _SUCCESS", 0, False),
    "publish": ("POST (uploadId|rewriteTo) files", 0, False),
    "manifest": (r"(PUT|POST) _manifest\.json", 0, False),
    "whole": ("(PUT|POST) _SUCCESS", 0, False),
    "clean": (r"POST delete|DELETE plan\.jsonl", -1, False),
}
# Where the stores do the same, one of them will do.
ON = {"s3": ("mark", "publish", "manifest"), "gs": ("receipt", "unmark", "publish", "whole", "clean")}


@pytest.fixture(scope="module")
def steps(night_in_store: StoreNight) -> dict[str, int]:
    """The numbers of these requests, of those that change something, in any run."""
    night_in_store.way.proxy.reset()
    night_in_store.score(next(_outputs))
    requests = [
        kind(one)
        for one in night_in_store.way.proxy.counts().requests
        if one.key.startswith(BUCKET) and re.search(CHANGES, f"{one.method} {one.target}")
    ]
    return {
        step: [number for number, what in enumerate(requests) if re.fullmatch(matches, what)][which]
        for step, (matches, which, _) in STEPS.items()
    }


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on another machine than the others, and leases expire soon."""
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    short_leases.shorten(monkeypatch)


@contextmanager
def standing_still(night: StoreNight, warm: Zygote, one: Job, at: int, *, late: bool) -> Iterator[list[str]]:
    """A job that stands still in the body, as its machine may, while it waits for an answer.

    When it goes on it finds the answer, if that is to be late; or the connection broken, and nothing done.
    Afterwards it has ended, and the list holds what it said.
    """
    night.way.proxy.set(faults=[Fault("hold", CHANGES, at=at, done=late, late=late)])
    (group,) = warm.start(one)
    said: list[str] = []
    try:
        until(lambda: night.way.proxy.counts().held)
        os.killpg(group, signal.SIGSTOP)
        # One of its threads takes the signal, and stops the others when it gets to it.
        until(lambda: states(group) == {"T"})
        night.way.proxy.reset()
        yield said
    finally:
        os.killpg(group, signal.SIGCONT)
        (done,) = warm.wait()
    assert done.code == 1, done.text
    said.extend(errors(done.text))


def states(process: int) -> set[str]:
    """What the threads of a process are doing, as proc_pid_stat(5) has it."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


@pytest.mark.slow
def test_an_owner_that_stood_still_changes_nothing_of_the_next_night(
    night: StoreNight, warm: Zygote, steps: dict[str, int], elsewhere: None
) -> None:
    for step in ON[night.scheme]:
        name = next(_outputs)
        with standing_still(night, warm, job(night, name), steps[step], late=STEPS[step][2]) as said:
            night.score(name, OTHER, REPLACE)
            night.check(name)
            before = night.files(name)
        assert night.files(name) == before, step
        night.check(name)
        check_lost(said)


@pytest.mark.slow
@pytest.mark.parametrize("step", sorted({*STEPS} - {"receipt"}))
def test_not_even_one_whose_clocks_stood_still_with_it(
    night: StoreNight, warm: Zygote, steps: dict[str, int], elsewhere: None, step: str
) -> None:
    """A virtual machine that was paused: nothing tells its owner but the lease itself."""
    name = next(_outputs)
    one = job(night, name, clocks="tests.support.job_patches.stopped_clocks")
    with standing_still(night, warm, one, steps[step], late=STEPS[step][2]) as said:
        night.score(name, OTHER, REPLACE)
        night.check(name)
        before = night.files(name)
    assert night.files(name) == before
    check_lost(said)


def check_lost(said: list[str]) -> None:
    (line,) = said
    assert "_staging/lease: this run's lease expired while the machine stood still: it is gone; " in line
    assert line.endswith("; nothing more was published, run again to see what is there")


def test_an_owner_that_stood_still_leaves_its_own_night_as_another_command_completed_it(
    night: StoreNight, warm: Zygote, steps: dict[str, int], elsewhere: None
) -> None:
    name = next(_outputs)
    with standing_still(night, warm, job(night, name), steps["publish"], late=True) as said:
        assert night.score(name).splits_reused == 3
        night.check(name)
        before = night.files(name)
    assert night.files(name) == before
    check_lost(said)


def test_a_run_whose_lease_is_taken_ends_before_it_publishes(
    night: StoreNight, warm: Zygote, steps: dict[str, int]
) -> None:
    name, other = next(_outputs), b'{"token": "other", "process": 7, "host": "elsewhere", "since": "noon"}'
    night.way.proxy.set(faults=[Fault("hold", CHANGES, at=steps["receipt"], done=True, late=True)])
    warm.start(job(night, name))
    until(lambda: night.way.proxy.counts().held)
    night.bucket.put(f"{name}/_staging/lease", other)
    night.way.proxy.reset()
    (done,) = warm.wait()
    assert done.code == 1, done.text
    (line,) = errors(done.text)
    assert "lease expired while the machine stood still: process 7 on elsewhere since noon has it" in line
    files = night.files(name)
    assert files["_staging/lease"] == other
    assert not [path for path in files if not path.startswith("_staging/") or "publishing" in path]
