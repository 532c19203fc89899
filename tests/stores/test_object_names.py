"""Objects of both stores by any name: odd ones, empty ones, folders that are none, and a thousand of them."""

from __future__ import annotations

import hashlib
import http.client
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.errors import UsageError
from job.storage import objects
from tests.support.remote_store import Remote
from tests.support.servers.clients import BUCKET

# More than either store lists at once.
MANY = 1010
ODD = [
    "a#1",
    "b?x=1&y=2",
    "c%25d",
    "100%",
    "ds=1/e f",
    "ü/é",
    "a+b",
    "~t",
    "x/rewriteTo/b/q/o/z",
    "-",
    "[x]*?",
]
ODD += ["quote\"'<&>", "back\\slash", "tab\there", "n" * 200, "..x/.y", "日本/語", "e\u0301"]


def test_any_name_is_written_listed_read_copied_and_removed(bucket: Remote, top: str) -> None:
    for name in ODD:
        storage.write_atomic(f"{top}/in/{name}", name.encode())
    assert bucket.files(f"{top}/in") == {name: name.encode() for name in ODD}
    shown = {info.path: info for info in storage.tree(f"{top}/in")}
    assert list(shown) == sorted(f"{top}/in/{name}" for name in ODD)
    assert storage.names(f"{top}/in") == sorted({name.partition("/")[0] for name in ODD})
    for name in ODD:
        path, content = f"{top}/in/{name}", name.encode()
        info = storage.describe(path)
        assert info is not None
        assert (info.path, info.size_bytes, info.stamp) == (path, len(content), shown[path].stamp)
        assert storage.read_bytes(path) == content
        assert storage.sha256(path) == hashlib.sha256(content).hexdigest()
        assert storage.parquet_source(path, info.size_bytes, info.stamp).read() == content
        storage.release(path, f"{top}/out/{name}")
        assert not storage.write_first(path, b"another")
    for one in bucket.settled():
        if one.target.startswith("/download/"):
            # Cloud Storage takes a name for one part of the path, the test's server for any.
            assert "/" not in one.target.partition("/o/")[2].partition("?")[0]
    assert bucket.files(f"{top}/out") == bucket.files(f"{top}/in")
    storage.remove_tree(f"{top}/in")
    assert bucket.files(f"{top}/in") == {}
    assert len(bucket.files(f"{top}/out")) == len(ODD)


def test_an_attempt_may_have_any_name(bucket: Remote, top: str) -> None:
    for name in ODD:
        sink = storage.create(f"{top}/attempt", f"{top}/{name}")
        sink.write(name.encode())
        handle = sink.seal()
        assert storage.held_bytes(handle) == len(name.encode())
        storage.release(handle, f"{top}/{name}")
    storage.remove(f"{top}/attempt")
    assert bucket.files(top) == {name: name.encode() for name in ODD}


def test_a_name_that_would_be_taken_for_an_uploads_is_refused(bucket: Remote) -> None:
    with pytest.raises(UsageError, match="#upload="):
        storage.absolute(bucket.path("in/a#upload=b/c.parquet"))


def test_empty_objects_are_files_like_others(bucket: Remote, top: str, tmp_path: Path) -> None:
    path = f"{top}/empty"
    storage.write_atomic(path, b"")
    info = storage.describe(path)
    assert info is not None
    assert info.size_bytes == 0
    assert storage.exists(path)
    assert storage.read_bytes(path) == b""
    assert storage.sha256(path) == hashlib.sha256().hexdigest()
    assert storage.copied(path, str(tmp_path / "copy")).digests == {"": hashlib.sha256().hexdigest()}
    assert (tmp_path / "copy").read_bytes() == b""
    assert not storage.write_first(path, b"x")
    bucket.way.proxy.reset()
    assert storage.parquet_source(path, 0, info.stamp).read() == b""
    with pytest.raises(pa.ArrowInvalid):
        pq.read_metadata(storage.footer_source(path, 0, info.stamp))
    # Of nothing nothing can be asked for.
    assert bucket.settled() == ()
    storage.release(path, f"{top}/copy")
    assert bucket.files(top) == {"copy": b"", "empty": b""}


def test_what_stands_for_a_folder_is_no_file(bucket: Remote, top: str) -> None:
    """Consoles make such objects, empty and with a name that ends so."""
    key = top.partition(f"{BUCKET}/")[2]
    for name in ("", "marked/", "marked/deep/", "full/"):
        bucket.bucket.put(f"{key}/{name}", b"")
    storage.write_atomic(f"{top}/full/a", b"a")
    assert [info.path for info in storage.tree(top)] == [f"{top}/full/a"]
    assert storage.names(top) == ["full", "marked"]
    assert storage.names(f"{top}/full") == ["a"]
    assert storage.names(f"{top}/marked/deep") == []
    for name in ("", "/marked", "/marked/deep", "/full"):
        assert storage.is_folder(f"{top}{name}")
        assert storage.exists(f"{top}{name}")
        assert storage.describe(f"{top}{name}") is None
    assert not storage.is_folder(f"{top}/full/a")
    assert not storage.exists(f"{top}/mark")
    storage.remove_tree(top)
    assert storage.tree(top) == []


def put_many(bucket: Remote, key: str) -> None:
    """By plain requests, which a client of either store would take seconds for."""
    address = bucket.way.store.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"}
    for number in range(MANY):
        name = f"{key}/ds={number % 3}/{number:05d}"
        if bucket.is_s3:
            connection.request("PUT", f"/{BUCKET}/{name}", b"x", signed)
        else:
            sent = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, safe='')}"
            connection.request("POST", sent, b"x")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()


def test_what_is_listed_in_pages_is_listed_whole_and_removed(bucket: Remote, top: str) -> None:
    put_many(bucket, top.partition(f"{BUCKET}/")[2])
    wanted = sorted(f"{top}/ds={number % 3}/{number:05d}" for number in range(MANY))
    assert [info.path for info in storage.tree(top)] == wanted
    asked = bucket.settled()
    assert {(one.method, one.key) for one in asked} == {("GET", BUCKET)}
    # The store's pages, and not one request for each object.
    assert 2 <= len(asked) <= 3
    assert storage.names(top) == ["ds=0", "ds=1", "ds=2"]
    assert storage.is_folder(top)
    bucket.way.proxy.reset()
    storage.remove_tree(top)
    assert storage.tree(top) == []
    if bucket.is_s3:
        # A thousand at a time: S3 takes no more, moto any number.
        assert sum(one.method == "POST" for one in bucket.settled()) == 2


def test_a_local_copy_has_the_digests_of_what_was_written(bucket: Remote, top: str, tmp_path: Path) -> None:
    for name in ("m/a", "m/deep/b"):
        storage.write_atomic(f"{top}/{name}", name.encode())
    copied = storage.copied(f"{top}/m", str(tmp_path / "m"))
    found = {str(path.relative_to(tmp_path / "m")): path.read_bytes() for path in tmp_path.rglob("[ab]")}
    assert found == {"a": b"m/a", "deep/b": b"m/deep/b"}
    assert copied.digests == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    bodies = [one for one in bucket.settled() if one.range]
    assert len(bodies) == 2
    assert storage.state(f"{top}/m") == copied.state != ""
    storage.write_atomic(f"{top}/m/a", b"new")
    assert storage.state(f"{top}/m") != copied.state


def test_objects_of_several_buckets_go_in_one_call(bucket: Remote, top: str) -> None:
    other = "other-bucket"
    client = bucket.way.client
    if bucket.is_s3:
        client.create_bucket(Bucket=other)
    else:
        client.client.bucket(other).create()
    paths = [f"{top}/a", f"{bucket.scheme}://{other}/a", f"{top}/b"]
    for path in paths:
        storage.write_atomic(path, b"x")
    storage.release(paths[0], f"{bucket.scheme}://{other}/copied")
    objects.store(bucket.scheme).remove(paths)
    assert [storage.exists(path) for path in paths] == [False] * 3
    assert storage.read_bytes(f"{bucket.scheme}://{other}/copied") == b"x"
