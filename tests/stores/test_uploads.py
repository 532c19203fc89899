"""Objects that are written: whole at every border, seen in time, given up without a trace."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from job import storage
from job.errors import StateUnknownError, StorageError
from job.storage import gcs, objects, s3
from job.storage import objects as storage_objects
from tests.support.remote_store import Remote
from tests.support.servers.clients import BUCKET, s3_client
from tests.support.servers.proxy import Fault

# The smallest that each store takes.
PART_BYTES = {"s3": 5 << 20, "gs": 256 << 10}
_names = (f"file{number}" for number in itertools.count())


@pytest.fixture
def bucket(bucket: Remote, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A store whose parts are as small as it takes them."""
    for module in (storage_objects, gcs):
        monkeypatch.setattr(module, "PART_BYTES", PART_BYTES[bucket.scheme])
    return bucket


# Where an upload that is not finished can be seen, and be given up by others.
only_s3 = pytest.mark.parametrize("empty_store", ["s3"], indirect=True)


def content(size_bytes: int, seed: int = 0) -> bytes:
    """No two parts are alike."""
    block = hashlib.sha256(bytes([seed])).digest()
    return (b"%8d" % seed + block * (size_bytes // len(block) + 1))[:size_bytes]


def seen(bucket: Remote, key: str) -> bytes | None:
    """What the store has by this name."""
    return bucket.bucket.files(key).get("")


def etag_of(parts: Sequence[bytes]) -> str:
    """How S3 names what was sent in parts: a digest of their digests, and their number."""
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts))
    return f'"{digest.hexdigest()}-{len(parts)}"'


# By parts, and bytes beside them.
BORDERS = [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(("parts", "beside"), BORDERS)
def test_an_object_of_any_size_is_seen_whole_once_it_is_sealed(
    bucket: Remote, parts: int, beside: int
) -> None:
    key, size_bytes = next(_names), PART_BYTES[bucket.scheme] * parts + beside
    sink = storage.create(bucket.path(key))
    whole = content(size_bytes)
    for start in range(0, size_bytes, 300_001):
        sink.write(whole[start : start + 300_001])
    assert seen(bucket, key) is None
    handle = sink.seal()
    assert handle == bucket.path(key)
    assert storage.is_readable(handle)
    assert storage.held_bytes(handle) == size_bytes
    assert seen(bucket, key) == whole
    assert bucket.bucket.uploads(key) == []


@pytest.mark.parametrize(("parts", "beside"), BORDERS)
def test_an_attempt_of_any_size_is_seen_under_its_final_name_once_it_is_released(
    bucket: Remote, parts: int, beside: int
) -> None:
    name, unit = next(_names), PART_BYTES[bucket.scheme]
    path, final = bucket.path(f"{name}/attempt"), bucket.path(f"{name}/final")
    whole = content(unit * parts + beside)
    sink = storage.create(path, final)
    sink.write(whole)
    handle = sink.seal()
    assert storage.held_bytes(handle) == len(whole)
    assert storage.fits(handle, bucket.path(name), final)
    assert storage.is_readable(handle) == (not bucket.is_s3)
    assert bucket.bucket.files(f"{name}/") == ({} if bucket.is_s3 else {"attempt": whole})
    storage.release(handle, final)
    assert seen(bucket, f"{name}/final") == whole
    assert bucket.bucket.uploads(name) == []
    # An upload that is finished is no more; an object that was copied goes with the staging.
    assert storage.held_bytes(handle) == (None if bucket.is_s3 else len(whole))
    if bucket.is_s3:
        cut = [whole[start : start + unit] for start in range(0, len(whole), unit)] or [b""]
        found = storage.describe(final)
        assert found is not None
        assert found.stamp == etag_of(cut)
        assert handle.split(",")[1:] == [hashlib.md5(part).hexdigest() for part in cut]


@pytest.mark.parametrize("final", ["", "final"])
@pytest.mark.parametrize(("parts", "beside"), [(0, 0), (0, 3), (1, 0), (1, 3)])
def test_sealing_twice_is_sealing_once(bucket: Remote, parts: int, beside: int, final: str) -> None:
    """Another part would double what is left; another request could not succeed."""
    key = f"{next(_names)}/x"
    sink = storage.create(bucket.path(key), final and bucket.path(f"{key}/{final}"))
    whole = content(PART_BYTES[bucket.scheme] * parts + beside)
    sink.write(whole)
    handle = sink.seal()
    bucket.way.proxy.reset()
    assert sink.seal() == handle
    sink.abandon()
    assert bucket.settled() == ()
    assert storage.held_bytes(handle) == len(whole)
    storage.release(handle, bucket.path("released"))
    assert seen(bucket, "released") == whole
    storage.remove(handle)


@pytest.mark.parametrize("final", ["", "final"])
@pytest.mark.parametrize("parts", [0, 1])
def test_what_is_abandoned_leaves_nothing(bucket: Remote, parts: int, final: str) -> None:
    name = next(_names)
    sink = storage.create(bucket.path(f"{name}/x"), final and bucket.path(f"{name}/{final}"))
    sink.write(content(PART_BYTES[bucket.scheme] * parts + 3))
    # Only what can be seen of it before: S3 shows uploads, Cloud Storage none.
    assert len(bucket.bucket.uploads(name)) == (parts if bucket.is_s3 else 0)
    sink.abandon()
    assert bucket.bucket.uploads(name) == []
    assert bucket.bucket.files(name) == {}
    if not parts:
        assert bucket.settled() == ()


def test_what_is_abandoned_while_the_store_refuses_is_no_error(bucket: Remote) -> None:
    """The error that led there is the one that is told."""
    name = next(_names)
    sink = storage.create(bucket.path(f"{name}/x"))
    sink.write(content(PART_BYTES[bucket.scheme]))
    bucket.way.proxy.reset()
    bucket.way.proxy.set(faults=[Fault("403", times=-1)])
    sink.abandon()
    (asked,) = bucket.settled()
    assert (asked.method, asked.status) == ("DELETE", 403)
    assert bucket.bucket.files(name) == {}
    bucket.way.proxy.reset()
    sink.abandon()
    assert bucket.bucket.uploads(name) == []


def test_a_part_that_is_refused_is_told_with_the_objects_name_and_leaves_nothing(bucket: Remote) -> None:
    name, unit = next(_names), PART_BYTES[bucket.scheme]
    bucket.way.proxy.set(faults=[Fault("403", "^PUT ", at=1, times=-1)])
    sink = storage.create(bucket.path(f"{name}/x"))
    with pytest.raises(StorageError, match=rf"^{bucket.path(name)}/x: .*(not allowed|AccessDenied)"):
        sink.write(content(4 * unit))
    # The second was refused, and was not sent again.
    assert [one.status for one in bucket.settled() if one.method == "PUT"][1:] == [403]
    sink.abandon()
    assert bucket.bucket.uploads(name) == []
    assert bucket.bucket.files(name) == {}


def test_many_are_written_at_once_and_none_has_a_part_of_another(bucket: Remote) -> None:
    """Each of its own size and content, all by one client."""
    name, unit = next(_names), PART_BYTES["gs"]
    if bucket.is_s3:
        unit = PART_BYTES["s3"]
    wholes = [content(unit + 1000 * number, seed=number) for number in range(4)]

    def write(number: int) -> str:
        sink = storage.create(bucket.path(f"{name}/{number}"), bucket.path(f"{name}-final/{number}"))
        for start in range(0, len(wholes[number]), 100_000):
            sink.write(wholes[number][start : start + 100_000])
        return sink.seal()

    handles = storage.parallel(write, range(4), name="write")
    for number, handle in enumerate(handles):
        storage.release(handle, bucket.path(f"{name}-final/{number}"))
    found = bucket.bucket.files(f"{name}-final/")
    assert found == {str(number): whole for number, whole in enumerate(wholes)}


def test_of_two_attempts_at_one_name_the_one_that_is_released_is_seen(bucket: Remote) -> None:
    name = next(_names)
    final, handles = bucket.path(f"{name}/final"), []
    for number in range(2):
        sink = storage.create(bucket.path(f"{name}/attempt{number}"), final)
        sink.write(content(100, seed=number))
        handles.append(sink.seal())
    assert len(bucket.bucket.uploads(name)) == (2 if bucket.is_s3 else 0)
    storage.release(handles[1], final)
    assert seen(bucket, f"{name}/final") == content(100, seed=1)
    # What is left of the other goes by its handle; it was nobody's final name.
    storage.remove(handles[0])
    storage.remove(handles[0])
    assert storage.held_bytes(handles[0]) is None
    assert bucket.bucket.uploads(name) == []
    assert seen(bucket, f"{name}/final") == content(100, seed=1)


@only_s3
def test_the_store_tells_the_parts_that_another_process_will_finish(bucket: Remote) -> None:
    """What one process sent, a client that knows nothing but the handle can finish."""
    name, unit = next(_names), PART_BYTES["s3"]
    sink = storage.create(bucket.path(f"{name}/attempt"), bucket.path(f"{name}/final"))
    whole = content(unit + 7)
    sink.write(whole)
    upload_id, *etags = sink.seal().partition("#upload=")[2].split(",")
    client: Any = s3_client(bucket.way.store)
    told = client.list_parts(Bucket=BUCKET, Key=f"{name}/final", UploadId=upload_id)["Parts"]
    assert [(one["PartNumber"], one["Size"], one["ETag"].strip('"')) for one in told] == [
        (1, unit, etags[0]),
        (2, 7, etags[1]),
    ]
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    client.complete_multipart_upload(
        Bucket=BUCKET, Key=f"{name}/final", UploadId=upload_id, MultipartUpload={"Parts": parts}
    )
    client.close()
    assert seen(bucket, f"{name}/final") == whole


def test_what_cannot_be_finished_any_more_says_so(bucket: Remote) -> None:
    """Given up by another, or never begun."""
    name = next(_names)
    final = bucket.path(f"{name}/final")
    sink = storage.create(bucket.path(f"{name}/attempt"), final)
    sink.write(b"rows")
    handle = sink.seal()
    storage.remove(handle)
    with pytest.raises(FileNotFoundError):
        storage.release(handle, final)
    assert seen(bucket, f"{name}/final") is None
    assert objects.store(bucket.scheme).exists(final) is False


@only_s3
@pytest.mark.parametrize("more", [b"", b"rest"])
def test_an_upload_that_another_command_gave_up_is_not_taken_for_written(bucket: Remote, more: bytes) -> None:
    """Whose process stood still for too long finds its attempts gone."""
    name, unit = next(_names), PART_BYTES["s3"]
    sink = storage.create(bucket.path(f"{name}/x"))
    sink.write(content(unit))
    storage.sweep(bucket.path(name), keep=list)
    sink.write(more)
    with pytest.raises(StateUnknownError, match=rf"^{bucket.path(name)}/x: what was sent of it is gone"):
        sink.seal()
    assert seen(bucket, f"{name}/x") is None
    sink.abandon()


@only_s3
def test_an_upload_whose_end_was_carried_out_unheard_is_written(
    bucket: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 may not know an upload any more that it has finished; moto does."""
    real, name = s3.S3.finish, next(_names)

    def finish(self: s3.S3, *upload: str) -> None:
        real(self, *upload)
        raise FileNotFoundError("no such upload, when asked again")

    monkeypatch.setattr(s3.S3, "finish", finish)
    sink = storage.create(bucket.path(f"{name}/x"))
    sink.write(content(PART_BYTES["s3"]))
    assert sink.seal() == bucket.path(f"{name}/x")
    assert seen(bucket, f"{name}/x") == content(PART_BYTES["s3"])
