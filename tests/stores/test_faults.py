"""Stores that fail now and then, for good, slowly or without an answer: the right night, or one line."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from job import storage
from job.storage import buckets, gcs, objects, s3
from tests.support.nights import run_cli
from tests.support.servers.proxy import Fault
from tests.support.store_nights import SPLITS, StoreNight, own_clients

# What a store is asked: by its request, as the proxy sees it.
S3_REQUESTS = {
    # First: where several tries follow each other, the copy that one has made is used by the next.
    "read the model": "^GET /bucket/m.keras",
    "list": r"^GET /bucket\?list-type",
    "head": "^HEAD ",
    "read a shard": "^GET /bucket/in/",
    "read the plan": r"^GET .*/plan\.jsonl",
    "read a receipt": "^GET .*/receipts/",
    "read what tells of a night": "^GET .*/(publishing|_manifest|_report)",
    "write the lease": "^PUT .*/lease",
    "write the plan": r"^PUT .*/plan\.jsonl",
    "write rejected rows": "^PUT .*/attempts/",
    "write a receipt": "^PUT .*/receipts/",
    "begin an upload": r"^POST .*\?uploads",
    "send a part": "^PUT .*partNumber",
    "look at an upload": "^GET .*uploadId",
    # From here on all receipts are there.
    "read the lease": "^GET .*/lease",
    "mark": r"^PUT .*/publishing\.json",
    "finish an upload": "^POST .*uploadId",
    "copy": "^PUT .*/_rejected/",
    "write what tells of the night": "^PUT .*/out[^/]*/_(report|manifest)",
    "list uploads": r"^GET .*\?uploads",
    "delete": r"^POST /bucket\?delete",
}
# The names of what is written in one go are told in the body only: these are counted.
GCS_REQUESTS = {
    # First: where several tries follow each other, the copy that one has made is used by the next.
    "read the model": "^GET /download/.*/m.keras",
    "list": r"^GET /storage/v1/b/bucket/o\?",
    "head": r"^GET /storage/v1/b/bucket/o/",
    "read a shard": "^GET /download/.*/in/",
    "read the plan": r"^GET /download/.*/plan\.jsonl",
    "read a receipt": "^GET /download/.*/receipts/",
    "read what tells of a night": "^GET /download/.*/(publishing|_manifest|_report)",
    # From here on all receipts are there.
    "read the lease": "^GET /download/.*/lease",
    "write": "^POST /upload/",
    "copy": "/rewriteTo/",
    "delete a mark": "^DELETE .*/_SUCCESS",
    "delete from staging": "^DELETE .*/_staging/[^/]+/.",
}
REQUESTS = {"s3": S3_REQUESTS, "gs": GCS_REQUESTS}
# Numbers of writes: the lease, the plan, and then attempts and receipts, or the mark and what tells of the
# night where all receipts are there. _SUCCESS is never among the first five.
WRITES = (0, 1, 3, 4, 4)
# They need not lead to a failure: after _SUCCESS nothing is lost any more, and what was carried out though
# its answer was lost is looked up where it was to be written by one only.
MAY_PASS = ("delete from staging", "list uploads", "write the lease", "write a receipt", "write 0", "write 3")
# Asked in the same way as others.
ALIKE = (
    *("read the plan", "read a receipt", "read what tells of a night", "look at an upload", "list uploads"),
    *("write rejected rows", "mark", "write what tells of the night"),
)
# Asked only for splits without a receipt.
SCORING = ("write rejected rows", "write a receipt", "begin an upload", "send a part")
READ_S = 0.25
_outputs = (f"out{number}" for number in itertools.count())


@pytest.fixture
def night(night_in_store: StoreNight, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreNight]:
    """A night whose requests are repeated in milliseconds, by a client that has no copy of the model yet."""
    night_in_store.way.proxy.reset()
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_S", 0.05)
    with own_clients():
        yield night_in_store


@pytest.fixture
def impatient(night: StoreNight, monkeypatch: pytest.MonkeyPatch) -> StoreNight:
    """The same with a short budget."""
    monkeypatch.setattr(buckets, "BUDGET_S", 0.15)
    return night


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for an answer no longer than ``READ_S``."""
    real: Any = getattr(s3, "Config")  # noqa: B009 - it is botocore's, which mypy sees

    def config(**settings: Any) -> Any:
        return real(**{**settings, "read_timeout": READ_S})

    monkeypatch.setattr(s3, "Config", config)
    monkeypatch.setattr(gcs, "_TIMEOUT_S", (READ_S, READ_S))


def score(night: StoreNight, capfd: pytest.CaptureFixture[str], name: str) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and what it said on standard error."""
    code, _, err = run_cli(capfd, "score", *night.args(name))
    return code, err


def check_afterwards(night: StoreNight, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """With the store well again, the same command completes the night."""
    night.way.proxy.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "BUDGET_S", 60.0)
        code, err = score(night, capfd, name)
    assert code == 0, err
    night.check(name)


def let_its_owner_be_dead(night: StoreNight, name: str) -> None:
    """A command that fails ends with its process and so frees its lease; here the process is this one."""
    if "_staging/lease" in night.files(name):
        night.bucket.put(f"{name}/_staging/lease", b"{}")


def every_first(night: StoreNight, fault: str, **more: Any) -> list[Fault]:
    """Of each kind of request the first fails, then the third and so on; with ``times``, only the first."""
    ats = range(1) if more else range(0, 60, 2)
    return [Fault(fault, matches, at=at, **more) for matches in REQUESTS[night.scheme].values() for at in ats]


def spoilt(night: StoreNight) -> set[str]:
    """The kinds of request of which some failed."""
    failed = [f"{one.method} {unquote(one.target)}" for one in night.way.proxy.counts().requests if one.fault]
    named = REQUESTS[night.scheme].items()
    return {what for what, matches in named if any(re.search(matches, one) for one in failed)}


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "lost", "cut"])
def test_every_other_request_fails_and_the_night_is_right(night: StoreNight, fault: str) -> None:
    name = next(_outputs)
    night.way.proxy.set(faults=every_first(night, fault))
    night.score(name)
    assert spoilt(night) == REQUESTS[night.scheme].keys()
    night.check(name)


@pytest.mark.parametrize("fault", ["slow", "hang"])
def test_one_of_each_kind_of_request_takes_long_and_the_night_is_right(
    hasty: None, night: StoreNight, fault: str
) -> None:
    name = next(_outputs)
    night.way.proxy.set(faults=every_first(night, fault, times=1, step_bytes=4096, hang_s=5.0))
    night.score(name)
    assert spoilt(night) == REQUESTS[night.scheme].keys()
    night.check(name)


def targets(scheme: str, fault: str) -> list[tuple[str, Fault]]:
    """What fails for good: the requests of each kind."""
    found = {what: Fault(fault, matches, times=-1, hang_s=1) for what, matches in REQUESTS[scheme].items()}
    if scheme == "gs":
        found |= {f"write {at}": Fault(fault, "^POST /upload/", at, times=-1, hang_s=1) for at in WRITES}
    left_out = {"write", *(() if fault == "503" else ALIKE)}
    return [(what, one) for what, one in found.items() if what not in left_out]


def check_that_fail(night: StoreNight, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Let one kind of request after the other fail for good; a try goes on where the one before stopped."""
    name, failed = next(_outputs), 0
    for what, wanted in targets(night.scheme, fault):
        night.way.proxy.reset()
        if what in SCORING and night.receipts(name) == SPLITS:
            check_afterwards(night, capfd, name)
            name = next(_outputs)
        night.way.proxy.set(faults=[wanted])
        start_s = time.monotonic()
        code, err = score(night, capfd, name)
        assert time.monotonic() - start_s < 15
        let_its_owner_be_dead(night, name)
        if "_SUCCESS" in night.files(name):
            assert what in MAY_PASS
            assert code == 0, (what, err)
            check_afterwards(night, capfd, name)
            name = next(_outputs)
            continue
        assert code == 1, (what, err)
        check_told(night, err)
        failed += 1
    assert failed >= len(targets(night.scheme, fault)) - len(MAY_PASS)
    check_afterwards(night, capfd, name)


@pytest.mark.parametrize("fault", ["503", "lost"])
def test_what_fails_for_good_publishes_nothing_by_halves(
    impatient: StoreNight, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check_that_fail(impatient, fault, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reset", "cut", "hang"])
def test_other_failures_for_good_publish_nothing_by_halves(
    hasty: None, impatient: StoreNight, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    check_that_fail(impatient, fault, capfd)


def check_told(night: StoreNight, err: str) -> None:
    """One line that says what could not be done to which object, and no traceback."""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{night.scheme}://bucket/" in line
    assert "Traceback" not in err


def test_what_is_not_allowed_is_told_at_once(night: StoreNight, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody waits 90 s for a permission."""
    name = next(_outputs)
    night.way.proxy.set(faults=[Fault("403", "^GET .*in/part-1", times=-1)])
    start_s = time.monotonic()
    code, err = score(night, capfd, name)
    assert time.monotonic() - start_s < buckets.BUDGET_S / 10
    assert code == 1
    check_told(night, err)
    assert f"{night.scheme}://bucket/in/part-1.parquet" in err
    assert len([one for one in night.way.proxy.counts().requests if one.fault]) == 1
    night.check_nothing_published(name)
    check_afterwards(night, capfd, name)


def test_a_lease_that_cannot_be_removed_spoils_no_night(
    impatient: StoreNight, capfd: pytest.CaptureFixture[str]
) -> None:
    name = next(_outputs)
    impatient.way.proxy.set(faults=[Fault("503", "^DELETE .*/lease", times=-1)])
    code, err = score(impatient, capfd, name)
    assert code == 0, err
    files = impatient.files(name)
    assert files.pop("_staging/lease")
    impatient.check(name, files)


def test_listings_that_know_nothing_new_change_nothing(
    night: StoreNight, capfd: pytest.CaptureFixture[str]
) -> None:
    """The night is right; only what is removed by a listing stays, until a listing shows it."""
    name = next(_outputs)
    night.way.proxy.set(hide_s=3600)
    night.score(name)
    files = night.files(name)
    assert any(path.startswith("_staging/") for path in files)
    night.check(name, {path: content for path, content in files.items() if not path.startswith("_staging/")})
    check_afterwards(night, capfd, name)


@pytest.mark.parametrize("fault", ["503", "reset", "lost", "cut"])
def test_an_object_in_parts_is_whole_though_every_other_request_fails(
    night: StoreNight, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_bytes = {"s3": 5 << 20, "gs": 256 << 10}[night.scheme]
    for module in (objects, gcs):
        monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    content = bytes(range(251)) * (5 * part_bytes // 502)
    path = night.path(f"{next(_outputs)}/large")
    pattern = "^(POST|PUT) "
    night.way.proxy.set(faults=[Fault(fault, pattern, at=at) for at in range(0, 20, 2)])
    sink = storage.create(path)
    for start in range(0, len(content), 100_000):
        sink.write(content[start : start + 100_000])
    sink.seal()
    assert [one.fault for one in night.way.proxy.counts().requests].count(fault) >= 4
    night.way.proxy.reset()
    assert storage.size_bytes(path) == len(content)
    assert storage.sha256(path) == hashlib.sha256(content).hexdigest()
