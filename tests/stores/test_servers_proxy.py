"""The proxy in front of both stores: it waits, spoils and counts as it is told, and nothing else."""

from __future__ import annotations

import functools
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.servers.clients import BUCKET, Way, botocore, gcs_way, race, refused, s3_way
from tests.support.servers.faults import Plan
from tests.support.servers.proxy import Entry, Fault

BODY = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def s3_shared() -> Iterator[Way]:
    with s3_way() as way:
        way.client.put_object(Bucket=BUCKET, Key="there", Body=BODY)
        yield way


@pytest.fixture
def s3(s3_shared: Way) -> Way:
    return s3_shared.reset


@pytest.fixture(scope="module")
def gcs_shared() -> Iterator[Way]:
    with gcs_way() as way:
        way.client.blob("there").upload_from_string(BODY)
        yield way


@pytest.fixture
def gcs(gcs_shared: Way) -> Way:
    return gcs_shared.reset


def read(way: Way) -> bytes:
    return bytes(way.client.get_object(Bucket=BUCKET, Key="there")["Body"].read())


def put(way: Way, key: str) -> None:
    way.client.put_object(Bucket=BUCKET, Key=key, Body=b"new")


def there(way: Way, key: str) -> bool:
    way.proxy.reset()
    return "Contents" in way.client.list_objects_v2(Bucket=BUCKET, Prefix=key)


def timed(act: Callable[[], object]) -> float:
    start_s = time.monotonic()
    act()
    return time.monotonic() - start_s


@pytest.mark.parametrize(
    ("fault", "happens"),
    [
        (Fault("500"), [1, 0, 0, 0]),
        (Fault("500", at=1, times=2), [0, 1, 1, 0]),
        (Fault("500", at=2, times=-1), [0, 0, 1, 1]),
        (Fault("500", "^GET"), [0, 1, 0, 0]),
        (Fault("500", "a b", times=-1), [0, 0, 1, 1]),
        (Fault("500", "a%20b", times=-1), [0, 0, 1, 1]),
    ],
)
def test_a_fault_begins_and_ends_where_it_says(fault: Fault, happens: list[int]) -> None:
    plan = Plan([fault])
    requests = [("PUT", "/b/1"), ("GET", "/b/1"), ("GET", "/b/a%20b"), ("DELETE", "/b/a%20b")]
    assert [int(plan.due(*request) is not None) for request in requests] == happens


def test_the_first_fault_that_is_due_happens_and_each_counts_every_request() -> None:
    plan = Plan([Fault("500", at=1), Fault("503", times=3)])
    assert [fault and fault.kind for fault in (plan.due("GET", "/") for _ in range(4))] == [
        "503",
        "500",
        "503",
        None,
    ]


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'504' is no kind of fault; there are 401, 403, 429"):
        Fault("504")


def test_requests_wait_side_by_side(s3: Way, gcs: Way) -> None:
    reads: list[tuple[Way, Callable[[], object]]] = [
        (s3, functools.partial(read, s3)),
        (gcs, gcs.client.blob("there").download_as_bytes),
    ]
    for way, one in reads:
        one()
        way.proxy.set(delay_s=0.3)
        assert 0.3 <= timed(one) < 0.6
        assert 0.3 <= timed(functools.partial(race, [one] * 8)) < 1.2


def test_everything_that_s3_is_asked_is_counted(s3: Way) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="a b#%", Body=b"12345")
    assert s3.client.get_object(Bucket=BUCKET, Key="a b#%", Range="bytes=1-3")["Body"].read() == b"234"
    s3.client.list_objects_v2(Bucket=BUCKET, Prefix="a")
    counts = s3.proxy.counts()
    assert counts.by_method == {"PUT": 1, "GET": 2}
    assert counts.by_key == {("PUT", "bucket/a b#%"): 1, ("GET", "bucket/a b#%"): 1, ("GET", "bucket"): 1}
    assert counts.requests[:2] == (
        Entry("PUT", "/bucket/a%20b%23%25", "bucket/a b#%", "", 200, 5, 0),
        Entry("GET", "/bucket/a%20b%23%25", "bucket/a b#%", "bytes=1-3", 206, 0, 3),
    )
    assert (counts.request_bytes, counts.response_bytes > 100) == (5, True)
    s3.proxy.reset()
    assert s3.proxy.counts().requests == ()


def test_everything_that_gcs_is_asked_is_counted_by_object(gcs: Way) -> None:
    blob = gcs.client.blob("a b#%")
    blob.upload_from_string(b"12345")
    with gcs.client.blob("by chunks").open("wb", chunk_size=256 * 1024) as chunks:
        chunks.write(b"1" * 300_000)
    blob.download_as_bytes(start=1, end=3)
    gcs.client.blob("copy").rewrite(blob)
    blob.delete()
    list(gcs.client.list_blobs(prefix="nothing"))
    gcs.client.exists()
    counts = gcs.proxy.counts()
    assert counts.by_key == {
        ("POST", "bucket/a b#%"): 1,
        ("POST", "bucket/by chunks"): 1,
        ("PUT", "bucket/by chunks"): 2,
        ("GET", "bucket/a b#%"): 1,
        ("POST", "bucket/copy"): 1,
        ("DELETE", "bucket/a b#%"): 1,
        ("GET", "bucket"): 2,
    }
    assert [(one.range, one.status, one.response_bytes) for one in counts.requests if one.range] == [
        ("bytes=1-3", 206, 3)
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [("403", "AccessDenied"), ("429", "SlowDown"), ("500", "InternalError"), ("503", "SlowDown")],
)
def test_a_refused_request_never_reaches_the_store(s3: Way, gcs: Way, kind: str, code: str) -> None:
    s3.proxy.set(faults=[Fault(kind, "^PUT /bucket/refused", at=1)])
    put(s3, f"refused{kind}0")
    with pytest.raises(botocore.ClientError, match=code):
        put(s3, f"refused{kind}1")
    put(s3, f"refused{kind}2")
    assert [one.status for one in s3.proxy.counts().requests] == [200, int(kind), 200]
    assert s3.proxy.counts().requests[1].key == f"bucket/refused{kind}1"
    assert not there(s3, f"refused{kind}1")
    gcs.proxy.set(faults=[Fault(kind)])
    with refused(int(kind)):
        gcs.client.blob(f"refused{kind}").upload_from_string(b"new", retry=None)
    assert gcs.proxy.counts().by_key == {("POST", f"bucket/refused{kind}"): 1}
    assert not gcs.client.blob(f"refused{kind}").exists()


def test_a_request_whose_answer_is_lost_has_taken_effect(s3: Way, gcs: Way) -> None:
    s3.proxy.set(faults=[Fault("lost")])
    with pytest.raises(botocore.ConnectionClosedError):
        put(s3, "lost")
    assert s3.proxy.counts().requests[0].fault == "lost"
    assert there(s3, "lost")
    gcs.proxy.set(faults=[Fault("lost", "^POST /upload")])
    with pytest.raises(OSError, match="Connection aborted"):
        gcs.client.blob("lost").upload_from_string(b"new", retry=None)
    assert gcs.client.blob("lost").exists()


def test_a_request_that_is_reset_or_hangs_has_not_taken_effect(s3: Way) -> None:
    s3.proxy.set(faults=[Fault("reset"), Fault("hang", at=1, hang_s=0.4)])
    with pytest.raises((botocore.ConnectionClosedError, botocore.EndpointConnectionError)):
        put(s3, "reset")

    def hangs() -> None:
        with pytest.raises(botocore.ConnectionClosedError):
            put(s3, "reset")

    assert 0.4 <= timed(hangs) < 2
    assert [one.status for one in s3.proxy.counts().requests] == [0, 0]
    assert not there(s3, "reset")


def test_a_reset_is_one_and_not_an_orderly_end(s3: Way) -> None:
    s3.proxy.set(faults=[Fault("reset")])
    address = s3.proxy.endpoint.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.request("GET", "/bucket/there")
    with pytest.raises(ConnectionResetError):
        connection.getresponse()
    connection.close()


def test_an_answer_is_cut_in_the_middle(s3: Way, gcs: Way) -> None:
    s3.proxy.set(faults=[Fault("cut")])
    with pytest.raises((botocore.ResponseStreamingError, botocore.IncompleteReadError)):
        read(s3)
    assert s3.proxy.counts().response_bytes == len(BODY) // 2
    assert read(s3) == BODY
    s3.proxy.set(faults=[Fault("cut", "^PUT")])
    with pytest.raises(botocore.HTTPClientError):
        put(s3, "cut")
    gcs.proxy.set(faults=[Fault("cut", "^GET")])
    with pytest.raises(Exception, match=r"IncompleteRead|Connection broken"):
        gcs.client.blob("there").download_as_bytes(retry=None)


def test_a_slow_answer_arrives_whole(s3: Way) -> None:
    s3.proxy.set(faults=[Fault("slow", step_bytes=len(BODY) // 5)])
    assert 0.25 <= timed(lambda: read(s3)) < 1
    assert s3.proxy.counts().response_bytes == len(BODY)


def test_s3_lists_new_objects_late(s3: Way) -> None:
    s3.proxy.set(hide_s=0.6)
    for name in ("late/<&> é", "late/2", "late/2"):
        put(s3, name)

    def listed() -> Any:
        return s3.client.list_objects_v2(Bucket=BUCKET, Prefix="late/")

    assert (listed()["KeyCount"], "Contents" in listed()) == (0, False)
    assert s3.client.head_object(Bucket=BUCKET, Key="late/2")["ContentLength"] == 3
    time.sleep(0.6)
    put(s3, "late/3")
    assert [one["Key"] for one in listed()["Contents"]] == ["late/2", "late/<&> é"]
    # One that is replaced is not new.
    put(s3, "late/2")
    assert listed()["KeyCount"] == 2
    s3.proxy.set(hide_s=0)
    assert listed()["KeyCount"] == 3


def test_gcs_lists_new_objects_late(gcs: Way) -> None:
    gcs.proxy.set(hide_s=0.6)
    blob = gcs.client.blob('late/"1" é')
    blob.upload_from_string(b"new")
    with gcs.client.blob("late/2").open("wb", chunk_size=256 * 1024) as chunks:
        chunks.write(b"1")
    gcs.client.copy_blob(blob, gcs.client, "late/3")

    def listed() -> list[str]:
        return [one.name for one in gcs.client.list_blobs(prefix="late/")]

    assert listed() == []
    assert blob.exists()
    time.sleep(0.6)
    assert listed() == ['late/"1" é', "late/2", "late/3"]


def test_many_connections_are_carried_at_once(gcs: Way) -> None:
    address = gcs.proxy.endpoint.removeprefix("http://")
    failed: list[int] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        for _ in range(50):
            connection.request("GET", "/storage/v1/b/bucket/o/there")
            answer = connection.getresponse()
            if json.load(answer)["name"] != "there":
                failed.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert gcs.proxy.counts().by_key == {("GET", "bucket/there"): 1600}
