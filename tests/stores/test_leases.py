"""Who gets the lease on an output in a bucket, and when."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from job.commit import lease
from job.errors import OutputConflictError, StateUnknownError
from job.storage import disk, objects
from tests.support.jobs import ROOT
from tests.support.leases import OTHER, Clock, Place

RENEW_S, EXPIRES_S, LOOK_S = lease.RENEW_S, lease.EXPIRES_S, lease._LOOK_EVERY_S
HOST = lease._process(os.getpid())["host"]


def test_a_lease_is_there_in_the_body_and_gone_afterwards(place: Place) -> None:
    with place.held() as token:
        content = place.told()
        assert (content["token"], content["process"]) == (token, os.getpid())
        lease.check(place.path, token)
    assert place.content() is None
    with pytest.raises(StateUnknownError, match="it is gone; nothing more was published"):
        lease.check(place.path, token)


def test_renewals_come_six_times_before_it_expires() -> None:
    """Told in docs/object-stores.md."""
    assert (RENEW_S, EXPIRES_S) == (10, 60)


@pytest.mark.parametrize("renewed_s", [1.0, RENEW_S, EXPIRES_S - LOOK_S])
def test_an_owner_elsewhere_that_renews_refuses_others(place: Place, clock: Clock, renewed_s: float) -> None:
    place.owned()
    clock.events[renewed_s] = lambda: place.owned(renewals=1)
    told: list[str] = []
    with (
        pytest.raises(OutputConflictError, match=rf"at work on it \({OTHER}\)"),
        place.held(told.append),
    ):
        pytest.fail("it was not refused")
    assert renewed_s <= clock.passed_s < renewed_s + LOOK_S
    assert told == [f"{place.path}: {OTHER} holds it; waiting up to 60 s to see if it lives"]
    assert place.told()["renewals"] == 1


def test_an_owner_elsewhere_that_does_not_renew_is_taken_for_dead(place: Place, clock: Clock) -> None:
    """By the waiter's own clock alone: whatever the lease tells of times lies in the future."""
    place.owned()
    with place.held() as token:
        assert EXPIRES_S <= clock.passed_s <= EXPIRES_S + LOOK_S
        assert place.told()["token"] == token


def test_a_lease_that_is_renewed_at_the_last_moment_is_waited_for_anew(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the waiter's last look, and before it takes the lease over."""
    real = objects.ObjectStore.write_if
    late = iter([lambda: place.owned(renewals=1)])

    def write_if(*args: Any) -> Any:
        next(late, lambda: None)()
        return real(*args)

    place.owned()
    monkeypatch.setattr(objects.ObjectStore, "write_if", write_if)
    with place.held():
        assert 2 * EXPIRES_S <= clock.passed_s <= 2 * (EXPIRES_S + LOOK_S)


def test_a_lease_that_is_removed_while_one_waits_is_free(place: Place, clock: Clock) -> None:
    place.owned()
    clock.events[5.0] = place.remove
    with place.held():
        assert clock.passed_s < 5.0 + LOOK_S


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b'{"token": "x', b"[[1, 2]]"),
        *(
            b'{"process": "x"}',
            b'{"process": null, "host": 5}',
            b'{"process": -1}',
            b'{"process": "\\u0000"}',
            b'{"token": []}',
        ),
    ],
)
def test_whatever_lies_there_is_taken_over_in_the_end(place: Place, clock: Clock, content: bytes) -> None:
    place.put(content)
    with place.held() as token:
        assert clock.passed_s <= EXPIRES_S + LOOK_S
        lease.check(place.path, token)
    assert place.content() is None


def mine(**changes: Any) -> dict[str, Any]:
    """What a lease of this very process says of it."""
    return {**lease._process(os.getpid()), **changes}


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        # Numbers of processes are used again.
        ({"began": "1"}, False),
        # There is none with such a number.
        ({"process": 2**22 + 1}, False),
        # Nothing of a machine tells of its time before a restart, or of what runs in a container.
        ({"host": HOST.replace(disk.boot_id(), "another-boot")}, True),
        ({"host": HOST.replace(os.uname().nodename, "another-name")}, True),
    ],
)
def test_only_an_owner_of_this_machine_is_looked_up(
    place: Place, clock: Clock, changes: dict[str, Any], waits: bool
) -> None:
    place.owned(**mine(**changes))
    with place.held():
        assert (clock.passed_s >= EXPIRES_S) == waits
        assert waits or not clock.passed_s


def test_an_owner_of_this_machine_that_lives_refuses_others_at_once(place: Place, clock: Clock) -> None:
    place.owned(**mine())
    with (
        pytest.raises(OutputConflictError, match=rf"at work on it \(process {os.getpid()} on "),
        place.held(),
    ):
        pytest.fail("it was not refused")
    assert clock.passed_s == 0


HOLDER = """
import sys, threading
from job.commit import lease as leases
with leases.held(sys.argv[1], print):
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2:]:
        raise KeyboardInterrupt
"""


@contextlib.contextmanager
def holder(place: Place, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lease."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, place.path, *more],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_killed_owner_of_this_machine_is_found_dead_at_once(place: Place, clock: Clock) -> None:
    """Also before its parent has asked for it: in a container nobody may ever do."""
    with holder(place) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(OutputConflictError, match=rf"\(process {process.pid} on "), place.held():
            pytest.fail("it was not refused")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with place.held() as token:
            lease.check(place.path, token)
        process.wait()
    assert clock.passed_s == 0


def test_an_owner_that_is_interrupted_keeps_the_lease_until_it_has_ended(place: Place, clock: Clock) -> None:
    """Threads of an engine may go on after it."""
    with holder(place, "interrupt") as process:
        process.communicate("\n", 30)
    assert place.told()["process"] == process.pid
    with place.held():
        assert clock.passed_s == 0


def test_of_many_that_find_a_lease_expired_one_gets_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", 0.2)
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.05)
    place.owned()
    start, ended, got = threading.Barrier(8), threading.Barrier(8), list[bool]()

    def one() -> None:
        start.wait()
        try:
            with place.held():
                got.append(True)
                ended.wait(30)
        except OutputConflictError:
            got.append(False)
            ended.wait(30)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    assert place.content() is None
