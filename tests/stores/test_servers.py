"""The stores that other tests rely on: what S3 and Cloud Storage promise holds here, through the proxy."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.servers import stores
from tests.support.servers.clients import (
    BUCKET,
    RETRY,
    Way,
    gcs_bucket,
    gcs_way,
    race,
    refused,
    s3_client,
    s3_way,
)
from tests.support.servers.proxy import Fault, proxy

ROUNDS = 20
WRITERS = 4
PART_BYTES = 5 << 20
NAMES = ["a#1", "b?x=1&y=2", "c%25d", "100%", "ds=1/e f", "ü/é", "a+b", "~t", "x/rewriteTo/b/q/o/z", "a//b"]


@pytest.fixture(scope="module")
def s3_shared() -> Iterator[Way]:
    with s3_way() as way:
        yield way


@pytest.fixture
def s3(s3_shared: Way) -> Any:
    return functools.partial(_call, s3_shared.reset.client)


def _call(client: Any, method: str, key: str = "", **arguments: Any) -> Any:
    named = {"Bucket": BUCKET} | ({"Key": key} if key else {})
    return getattr(client, method)(**named, **arguments)


@pytest.fixture(scope="module")
def gcs_shared() -> Iterator[Way]:
    with gcs_way() as way:
        yield way


@pytest.fixture
def gcs(gcs_shared: Way) -> Any:
    return gcs_shared.reset.client


def test_one_of_many_writers_creates_an_object_in_s3(s3: Any) -> None:
    for number in range(ROUNDS):
        put = functools.partial(s3, "put_object", f"once/{number}", IfNoneMatch="*")
        assert race([functools.partial(put, Body=bytes([one])) for one in range(WRITERS)]) == [
            200,
            412,
            412,
            412,
        ]


def test_one_of_many_writers_replaces_an_object_in_s3(s3: Any) -> None:
    tag = s3("put_object", "lease", Body=b"free")["ETag"]
    for number in range(ROUNDS):
        put = functools.partial(s3, "put_object", "lease", IfMatch=tag)
        bodies = [b"%d %d" % (number, one) for one in range(WRITERS)]
        assert race([functools.partial(put, Body=body) for body in bodies]) == [200, 412, 412, 412]
        tag = s3("head_object", "lease")["ETag"]


def test_s3_answers_a_condition_that_does_not_hold(s3: Any) -> None:
    tag, other = s3("put_object", "there", Body=b"one")["ETag"], '"0123"'
    with refused(412):
        s3("put_object", "there", Body=b"two", IfMatch=other)
    with refused(404):
        s3("put_object", "missing", Body=b"two", IfMatch=tag)
    with refused(412):
        s3("delete_object", "there", IfMatch=other)
    with refused(404):
        s3("delete_object", "missing", IfMatch="*")
    source = {"Bucket": BUCKET, "Key": "there"}
    with refused(412):
        s3("copy_object", "copied", CopySource=source, CopySourceIfMatch=other)
    s3("copy_object", "copied", CopySource=source, CopySourceIfMatch=tag, IfNoneMatch="*")
    with refused(412):
        s3("copy_object", "copied", CopySource=source, IfNoneMatch="*")
    with refused(412):
        s3("copy_object", "copied", CopySource=source, IfMatch=other)
    with refused(501):
        s3("delete_objects", Delete={"Objects": [{"Key": "there", "ETag": other}]})
    with refused(412):
        s3("get_object", "there", Range="bytes=1-2", IfMatch=other)
    assert s3("get_object", "there", Range="bytes=1-2", IfMatch=tag)["Body"].read() == b"ne"
    s3("delete_object", "there", IfMatch=tag)
    with refused(404):
        s3("head_object", "there")


def test_an_upload_in_parts_is_left_by_one_client_and_completed_by_another(s3: Any, s3_shared: Way) -> None:
    upload = s3("create_multipart_upload", "parts")["UploadId"]
    bodies = [b"a" * PART_BYTES, b"b"]
    for number, body in enumerate(bodies, 1):
        s3("upload_part", "parts", UploadId=upload, PartNumber=number, Body=body)
    other = s3_client(s3_shared.store)
    found = other.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [(one["Key"], one["UploadId"]) for one in found] == [("parts", upload)]
    parts = other.list_parts(Bucket=BUCKET, Key="parts", UploadId=upload)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in parts] == [(1, PART_BYTES), (2, 1)]
    tags = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]
    complete = functools.partial(
        _call, other, "complete_multipart_upload", "parts", UploadId=upload, MultipartUpload={"Parts": tags}
    )
    with refused(404):
        complete(IfMatch='"0123"')
    there = s3("put_object", "parts", Body=b"first")["ETag"]
    with refused(412):
        complete(IfNoneMatch="*")
    with refused(412):
        complete(IfMatch='"0123"')
    complete(IfMatch=there)
    assert s3("get_object", "parts")["Body"].read() == b"".join(bodies)
    assert "Uploads" not in other.list_multipart_uploads(Bucket=BUCKET)
    other.close()


def test_s3_lists_in_pages_and_takes_any_name(s3: Any) -> None:
    for name in NAMES:
        s3("put_object", f"any/{name}", Body=name.encode())
    pages = []
    more: dict[str, str] = {}
    while True:
        page = s3("list_objects_v2", Prefix="any/", MaxKeys=3, **more)
        pages.append([one["Key"] for one in page["Contents"]])
        if not page["IsTruncated"]:
            break
        more = {"ContinuationToken": page["NextContinuationToken"]}
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert list(itertools.chain(*pages)) == sorted((f"any/{name}" for name in NAMES), key=str.encode)
    for name in NAMES:
        assert s3("get_object", f"any/{name}")["Body"].read() == name.encode()


def test_a_body_whose_sender_dies_changes_nothing(s3: Any, s3_shared: Way, gcs_shared: Way) -> None:
    upload = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=half"
    for way, line in ((s3_shared, f"PUT /{BUCKET}/half"), (gcs_shared, f"POST {upload}")):
        for endpoint in (way.store, way.proxy.endpoint):
            address, _, port = endpoint.removeprefix("http://").partition(":")
            with socket.create_connection((address, int(port)), 5) as sender:
                sender.sendall(
                    f"{line} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n\r\nhalf".encode()
                )
                sender.shutdown(socket.SHUT_WR)
                sender.recv(4096)
    with refused(404):
        s3("head_object", "half")
    assert not gcs_shared.client.blob("half").exists()


def test_s3_asks_iam_once_it_is_told_to() -> None:
    # Three requests go unasked: those that make the bucket, the user and its key.
    with stores.s3_server(INITIAL_NO_AUTH_ACTION_COUNT="3") as store, proxy(store) as way:
        maker = s3_client(store)
        maker.create_bucket(Bucket=BUCKET)
        iam = {"Action": "CreateUser", "UserName": "job", "Version": "2010-05-08"}
        keys = iam | {"Action": "CreateAccessKey"}
        for form in (iam, keys):
            data = "&".join(f"{name}={value}" for name, value in form.items()).encode()
            headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/iam/aws4_request"}
            with urllib.request.urlopen(urllib.request.Request(store, data, headers), timeout=10) as answer:
                text = answer.read().decode()
        key, secret = (text.split(f"<{tag}>")[1].split("<")[0] for tag in ("AccessKeyId", "SecretAccessKey"))
        user = s3_client(way.endpoint, aws_access_key_id=key, aws_secret_access_key=secret)
        with pytest.raises(Exception, match="AccessDenied"):
            user.put_object(Bucket=BUCKET, Key="mine", Body=b"1")
        wrong = s3_client(way.endpoint, aws_access_key_id=key, aws_secret_access_key="wrong")
        with pytest.raises(Exception, match="SignatureDoesNotMatch"):
            wrong.put_object(Bucket=BUCKET, Key="mine", Body=b"1")
        for client in (maker, user, wrong):
            client.close()


def test_one_of_many_writers_creates_an_object_in_gcs(gcs: Any) -> None:
    for number in range(ROUNDS):
        put = functools.partial(gcs.blob(f"once/{number}").upload_from_string, if_generation_match=0)
        assert race([functools.partial(put, bytes([one])) for one in range(WRITERS)]) == [200, 412, 412, 412]


def test_one_of_many_takes_a_generation_in_gcs(gcs: Any) -> None:
    for number in range(ROUNDS):
        lease = gcs.blob("lease")
        lease.upload_from_string(b"free")
        held = lease.generation
        takes: list[Any] = [
            functools.partial(gcs.blob("lease").upload_from_string, b"%d" % one, if_generation_match=held)
            for one in range(WRITERS - 1)
        ]
        takes.append(functools.partial(gcs.blob("lease").delete, if_generation_match=held))
        statuses = race(takes)
        # Who comes after the delete finds nothing, which an upload reports as 412 too.
        assert statuses == [200, 412, 412, 412], (number, statuses)


def test_gcs_answers_a_condition_that_does_not_hold(gcs: Any) -> None:
    blob = gcs.blob("there")
    blob.upload_from_string(b"one")
    old = blob.generation
    blob.upload_from_string(b"two", if_generation_match=old)
    with refused(412):
        blob.upload_from_string(b"three", if_generation_match=old)
    with refused(412):
        blob.delete(if_generation_match=old)
    with refused(412):
        blob.download_as_bytes(start=0, end=1, if_generation_match=old)
    with refused(404):
        gcs.blob("there", generation=old).download_as_bytes(start=0, end=1)
    with refused(412):
        gcs.copy_blob(blob, gcs, "copy", if_source_generation_match=old)
    gcs.copy_blob(blob, gcs, "copy", if_generation_match=0)
    with refused(412):
        gcs.copy_blob(blob, gcs, "copy", if_generation_match=0)
    with refused(412):
        gcs.blob("copy").rewrite(blob, if_generation_match=0)
    with refused(412):
        gcs.blob("copy").compose([blob], if_generation_match=0)
    with refused(412), gcs.client.batch():
        gcs.blob("there").delete(if_generation_match=old)
    whole = gcs.blob("there", generation=blob.generation)
    assert whole.download_as_bytes(start=1, end=2, if_generation_match=blob.generation) == b"wo"
    gcs.blob("there").delete(if_generation_match=blob.generation)
    with refused(404):
        gcs.blob("there").delete(if_generation_match=blob.generation)


def test_a_resumable_upload_keeps_its_condition_and_survives_lost_answers(gcs: Any, gcs_shared: Way) -> None:
    body = bytes(range(256)) * 2400
    blob = gcs.blob("resumable", chunk_size=256 * 1024)
    gcs_shared.proxy.set(faults=[Fault("lost", "^PUT ", at=1), Fault("lost", "^PUT ", at=3)])
    # What has no known size goes up in chunks, however small it is.
    blob.upload_from_file(io.BytesIO(body), if_generation_match=0, retry=RETRY)
    assert gcs.blob("resumable").download_as_bytes() == body
    sent = [one for one in gcs_shared.proxy.counts().requests if one.method == "PUT"]
    assert [(one.status, one.fault) for one in sent][1] == (308, "lost"), sent
    assert {one.key for one in sent} == {"bucket/resumable"}
    with refused(412):
        blob.upload_from_file(io.BytesIO(body), if_generation_match=0)


def test_gcs_lists_in_pages_and_takes_any_name(gcs: Any) -> None:
    for name in NAMES:
        gcs.blob(f"any/{name}").upload_from_string(name.encode())
    pages = [[blob.name for blob in page] for page in gcs.list_blobs(prefix="any/", page_size=3).pages]
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert list(itertools.chain(*pages)) == sorted((f"any/{name}" for name in NAMES), key=str.encode)
    for name in NAMES:
        assert gcs.get_blob(f"any/{name}").download_as_bytes() == name.encode()
        gcs.blob(f"any/{name}").delete()
    assert not list(gcs.list_blobs(prefix="any/"))


def test_gcsd_plays_the_metadata_server_and_the_proxy_does_not_count_it(gcs: Any, gcs_shared: Way) -> None:
    way = gcs_shared.proxy
    way.set(faults=[Fault("500", times=-1)])
    url = f"{way.endpoint}/computeMetadata/v1/instance/service-accounts/default/token"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["access_token"] == "fake"
    assert way.counts().requests == ()


def test_the_environment_leads_to_these_stores_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "elsewhere")
    env = stores.environment("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert "elsewhere" not in env.values()
    assert env["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert (env["STORAGE_EMULATOR_HOST"], env["GCE_METADATA_HOST"]) == ("http://127.0.0.1:2", "127.0.0.1:2")
    with pytest.MonkeyPatch.context() as patch:
        stores.apply(patch, env)
        assert dict(os.environ) == env
    assert os.environ["AWS_PROFILE"] == "elsewhere"
    assert gcs_bucket("http://127.0.0.1:2").client.project == stores.PROJECT


def test_without_go_a_test_is_skipped_by_name_and_fails_where_every_test_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(stores, "BINARY", tmp_path / "gcsd")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="gcsd needs Go, which is not installed"):
        stores.built()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="gcsd needs Go"):
        stores.built()
