"""How the owner of a lease keeps it, and how one that lost it comes to know before it does harm."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from job import storage
from job.commit import lease
from job.errors import OutputConflictError, StateUnknownError, StorageError
from job.storage import buckets, objects
from tests.support.leases import OTHER, Clock, Place
from tests.support.servers.proxy import Fault
from tests.support.store_nights import until

RENEW_S, EXPIRES_S = lease.RENEW_S, lease.EXPIRES_S


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is renewed all the time; it expires as late as ever."""
    monkeypatch.setattr(lease, "RENEW_S", 0.02)


def test_each_renewal_changes_the_stamp(place: Place, soon: None) -> None:
    store, stamps = objects.store(place.scheme), set[str]()
    with place.held() as token:

        def several() -> bool:
            found = store.read_stamped(place.path)
            assert found is not None
            assert json.loads(found[0])["token"] == token
            stamps.add(found[1])
            return len(stamps) > 3

        until(several)
    assert place.content() is None


def test_renewals_that_fail_for_a_while_lose_nothing(
    place: Place, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one renewal's budget or beyond it; carried out without an answer, or not at all."""
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.001)
    writes = r"^(PUT|POST) .*(_staging/lease|ifGenerationMatch)"
    for fault, budget_s in (("503", 60.0), ("lost", 60.0), ("503", 0.0), ("lost", 0.0)):
        monkeypatch.setattr(buckets, "BUDGET_S", 60.0)
        with place.held() as token:
            monkeypatch.setattr(buckets, "BUDGET_S", budget_s)
            place.proxy.set(faults=[Fault(fault, writes, times=3)])
            until(partial(failed, place, fault, 3))
            until(partial(renewed, place, renewals(place) + 2))
            lease.check(place.path, token)
        assert place.content() is None
        place.proxy.reset()


def failed(place: Place, fault: str, times: int) -> bool:
    return [one.fault for one in place.proxy.counts().requests].count(fault) >= times


def renewed(place: Place, times: int) -> bool:
    return renewals(place) >= times


def renewals(place: Place) -> int:
    return int(place.told()["renewals"])


def lost(place: Place, told: str) -> Any:
    """The body is refused with one line that says who has the lease."""
    return pytest.raises(
        StateUnknownError,
        match=f"^{place.path}: this run's lease expired while the machine stood still: {told}; nothing more "
        f"was published, run again to see what is there$",
    )


@pytest.mark.parametrize("taken", [True, False])
def test_an_owner_whose_lease_is_taken_or_removed_sends_no_more_about_its_output(
    place: Place, soon: None, taken: bool
) -> None:
    told = f"{OTHER} has it now" if taken else "it is gone"
    with place.held() as token:
        storage.write_atomic(f"{place.output}/before", b"")
        place.owned() if taken else place.remove()
        with lost(place, told):
            lease.check(place.path, token)

        def refused() -> bool:
            with contextlib.suppress(StateUnknownError):
                storage.size_bytes(f"{place.output}/before")
                return False
            return True

        # The next renewal finds it out.
        until(refused)
        with lost(place, told):
            storage.write_atomic(f"{place.output}/after", b"")
        with lost(place, told):
            storage.remove(f"{place.output}/before")
        with lost(place, told):
            storage.names(place.output)
        # Others' are no business of this lease.
        storage.write_atomic(f"{place.output}2/elsewhere", b"")
    left = {"before", "_staging/lease"} if taken else {"before"}
    assert place.keys() == left
    if taken:
        assert place.told()["token"] == "other"


@pytest.fixture
def still(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time passes for an owner that does not renew by itself."""
    monkeypatch.setattr(lease, "RENEW_S", 1e6)
    return clock


def test_an_owner_that_stood_still_makes_sure_before_it_goes_on(place: Place, still: Clock) -> None:
    with place.held() as token:
        for stood_s, renewed in ((EXPIRES_S / 2 - 1, 0), (1, 1), (EXPIRES_S / 2 - 1, 1), (1e5, 2)):
            still.now_s += stood_s
            storage.write_atomic(f"{place.output}/x", b"")
            assert renewals(place) == renewed
        lease.check(place.path, token)
        still.now_s += EXPIRES_S / 2
        place.owned()
        with lost(place, f"{OTHER} has it now"):
            storage.write_atomic(f"{place.output}/y", b"")
    assert place.keys() == {"x", "_staging/lease"}


def test_a_lease_is_as_old_as_the_request_that_wrote_it(
    place: Place, still: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may have come late."""
    real = objects.ObjectStore.write_if

    def write_if(*args: Any) -> Any:
        written = real(*args)
        still.now_s += EXPIRES_S / 2
        return written

    monkeypatch.setattr(objects.ObjectStore, "write_if", write_if)
    with place.held():
        for number in range(1, 3):
            storage.write_atomic(f"{place.output}/x", b"")
            assert renewals(place) == number


def test_an_owner_that_cannot_make_sure_does_not_go_on(
    place: Place, still: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.held():
        monkeypatch.setattr(buckets, "BUDGET_S", 0.0)
        still.now_s += EXPIRES_S / 2
        place.proxy.set(faults=[Fault("503", "lease|ifGenerationMatch", times=-1)])
        with pytest.raises(StorageError, match=f"^{place.path}: no good answer in 1 tries"):
            storage.write_atomic(f"{place.output}/x", b"")
        place.proxy.reset()
        storage.write_atomic(f"{place.output}/y", b"")
    assert place.keys() == {"y"}


def test_a_request_that_is_sent_again_is_looked_at_again(
    place: Place, still: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner stood still while it waited for an answer, and the connection broke."""

    def pause(seconds: float) -> None:
        still.now_s += EXPIRES_S
        place.owned()

    monkeypatch.setattr(buckets.patiently, "__kwdefaults__", {"clock": time.monotonic, "sleep": pause})
    with place.held():
        place.proxy.set(faults=[Fault("reset", "^(PUT|POST) ", at=0)])
        with lost(place, f"{OTHER} has it now"):
            storage.write_atomic(f"{place.output}/x", b"")
    assert place.keys() == {"_staging/lease"}


def test_a_publisher_in_another_process_looks_as_often_as_the_lease_is_renewed(
    place: Place, clock: Clock
) -> None:
    place.owned()
    with lease.watched(place.path, "other"):
        for passed_s in (0.0, RENEW_S - 1, 1.0, 0.0, 1e5):
            clock.now_s += passed_s
            storage.write_atomic(f"{place.output}/x", b"")
        looks = [one for one in place.proxy.counts().requests if one.key.endswith("/lease")]
        assert len(looks) == 3
        place.owned(token="new")
        storage.write_atomic(f"{place.output}/y", b"")
        clock.now_s += RENEW_S
        with lost(place, f"{OTHER} has it now"):
            storage.write_atomic(f"{place.output}/z", b"")
    storage.write_atomic(f"{place.output}/afterwards", b"")
    assert place.keys() == {"x", "y", "afterwards", "_staging/lease"}


@pytest.mark.parametrize("clock_that_goes_on", ["asleep_s", "paused_s"])
def test_the_time_in_which_the_machine_stood_still_counts(
    place: Place, still: Clock, clock_that_goes_on: str
) -> None:
    """The steady clock stands still with a machine that is suspended, the boot's too where it is paused."""
    with place.held():
        setattr(still, clock_that_goes_on, EXPIRES_S / 2 - 1)
        storage.write_atomic(f"{place.output}/x", b"")
        assert renewals(place) == 0
        setattr(still, clock_that_goes_on, EXPIRES_S / 2)
        storage.write_atomic(f"{place.output}/x", b"")
        assert renewals(place) == 1
        setattr(still, clock_that_goes_on, 1e5)
        place.owned()
        with lost(place, f"{OTHER} has it now"):
            storage.write_atomic(f"{place.output}/y", b"")
    assert place.keys() == {"x", "_staging/lease"}


def test_the_wall_clock_alone_makes_no_lease_younger(place: Place, still: Clock) -> None:
    """It is put back by an hour, as on a machine whose clock was wrong."""
    with place.held():
        still.paused_s = -3600.0
        still.now_s += EXPIRES_S / 2
        storage.write_atomic(f"{place.output}/x", b"")
        assert renewals(place) == 1


def test_who_waits_does_not_count_its_own_sleep(place: Place, clock: Clock) -> None:
    """The owner may have slept on the same machine, and renews its lease when both are awake."""
    place.owned()

    def both_sleep() -> None:
        clock.asleep_s += 1e5

    clock.events = {10.0: both_sleep, 20.0: lambda: place.owned(renewals=1)}
    with pytest.raises(OutputConflictError, match="another run is at work on it"), place.held():
        raise AssertionError("it was taken")
    assert clock.passed_s < EXPIRES_S


def test_a_look_at_the_lease_that_was_slept_over_is_made_again(
    place: Place, still: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = objects.ObjectStore.read_bytes, 0

    def read_bytes(self: objects.ObjectStore, path: str) -> bytes | None:
        nonlocal answers
        found, answers = real(self, path), answers + 1
        if answers == 1:
            # The answer is there, and is read when another has taken the lease.
            still.asleep_s += 1e5
            place.owned()
        return found

    with place.held() as token:
        monkeypatch.setattr(objects.ObjectStore, "read_bytes", read_bytes)
        with lost(place, f"{OTHER} has it now"):
            lease.check(place.path, token)
    assert answers == 2


def test_a_request_that_is_sent_again_is_looked_at_whatever_the_clocks_say(
    place: Place, still: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them stood still with the machine while it waited for an answer, and the connection broke."""

    @contextlib.contextmanager
    def another_publishes(here: Place) -> Iterator[None]:
        """The request that comes next is sent again, and meanwhile another has taken the lease."""
        told = {"clock": time.monotonic, "sleep": lambda seconds: here.owned()}
        monkeypatch.setattr(buckets.patiently, "__kwdefaults__", told)
        storage.write_atomic(f"{here.output}/x", b"")
        here.proxy.set(faults=[Fault("reset", "^(PUT|POST) ", at=0)])
        with lost(here, f"{OTHER} has it now"):
            yield
        assert here.keys() == {"x", "_staging/lease"}

    with place.held(), another_publishes(place):
        storage.write_atomic(f"{place.output}/y", b"")
    elsewhere = place.fresh
    elsewhere.owned(token="mine")
    with lease.watched(elsewhere.path, "mine"), another_publishes(elsewhere):
        storage.write_atomic(f"{elsewhere.output}/y", b"")
