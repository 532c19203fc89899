"""Amazon S3 and compatible stores, through botocore; and what their errors mean.

Endpoint and credentials are found as AWS' tools find them. An unfinished upload outlives its process, and any
other process can finish it, by one request whatever its size. Until then nobody sees an object. So an attempt
is an open upload here, and finishing it publishes it: no copy, no rename.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.session import Session

from job.errors import DeniedError, StateUnknownError, StorageError, one_line
from job.spec import StoreOptions
from job.storage.buckets import Found, Page, RefusedError, TransientError, no_client, patiently

T = TypeVar("T")

_AT_ONCE: Final = 64
_KEYS_AT_ONCE: Final = 1000


class S3:
    """The requests of ``job.storage.buckets.Client``."""

    keeps_uploads = True

    def __init__(self, options: StoreOptions) -> None:
        try:
            session = Session()
            found = session.get_credentials()
            self._source, self._signed = str(getattr(found, "method", "")), found is not None
            # What Amazon's other tools ask first, and botocore not at all.
            region = os.environ.get("AWS_REGION") or None
            self._client: Any = session.create_client("s3", region_name=region, config=self._config())
        except (BotoCoreError, ValueError, OSError) as e:
            raise no_client("s3", one_line(e)) from e
        self._payer = {"RequestPayer": "requester"} if options.requester_pays else {}
        key = options.kms_key
        self._crypt = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def credentials(self) -> str:
        """Return the name of the source in which botocore found credentials."""
        return (self._source or "given by code") if self._signed else ""

    def _config(self) -> Config:
        return Config(
            # Repeated by us, the same way for every store.
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=_AT_ONCE,
            connect_timeout=10,
            read_timeout=30,
            tcp_keepalive=True,
            signature_version=None if self._signed else UNSIGNED,
        )

    def _call(self, operation: str, bucket: str, key: str, read: Callable[[Any], T], **kwargs: Any) -> T:
        """Send a request until it is answered, and return what ``read`` makes of the answer."""
        where = f"s3://{bucket}/{key}"

        def request() -> T:
            try:
                return read(getattr(self._client, operation)(Bucket=bucket, **kwargs))
            except (ClientError, BotoCoreError, OSError) as e:
                raise told(where, operation, e, signed=self._signed) from e

        return patiently(where, request)

    def head(self, bucket: str, key: str) -> Found | None:
        """Return an object's size and stamp, ``None`` where there is none."""
        try:
            return self._call("head_object", bucket, key, partial(_found, key), Key=key, **self._payer)
        except FileNotFoundError:
            return None
        except UnexplainedError:
            # A GET is refused for the same reason, and says which.
            with suppress(FileNotFoundError):
                self.get(bucket, key, 0, 1, "")
            raise

    def get(self, bucket: str, key: str, start: int, stop: int, stamp: str) -> bytes:
        """Return bytes ``start`` to ``stop`` of the object that has the stamp."""
        condition = {"IfMatch": stamp} if stamp else {}
        kwargs = {"Key": key, "Range": f"bytes={start}-{stop - 1}", **condition, **self._payer}
        return self._call("get_object", bucket, key, partial(_body, stop - start), **kwargs)

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object's content and stamp, ``None`` where there is none."""

        def content(answer: Any) -> tuple[bytes, str]:
            return _body(answer["ContentLength"], answer), answer["ETag"]

        try:
            return self._call("get_object", bucket, key, content, Key=key, **self._payer)
        except FileNotFoundError:
            return None

    def put(self, bucket: str, key: str, content: bytes, only_if: str | None) -> str | None:
        """Write an object and return its new stamp, ``None`` where the condition does not hold."""
        condition = {} if only_if is None else {"IfMatch": only_if} if only_if else {"IfNoneMatch": "*"}
        kwargs = {"Key": key, "Body": content, **condition, **self._crypt, **self._payer}
        try:
            return self._call("put_object", bucket, key, lambda answer: str(answer["ETag"]), **kwargs)
        except RefusedError:
            return None
        except FileNotFoundError as e:
            if only_if:
                # What was to be replaced is gone.
                return None
            raise StorageError(f"s3://{bucket}/{key}: put_object found no such place") from e

    def page(self, bucket: str, prefix: str, delimiter: str, token: str) -> Page:
        """Return up to a thousand of the objects whose keys begin with ``prefix``."""
        more = {"ContinuationToken": token} if token else {}
        kwargs = {"Prefix": prefix, "Delimiter": delimiter, **more, **self._payer}

        def read(answer: Any) -> Page:
            found = [
                Found(one["Key"], one["Size"], one["ETag"], one["LastModified"].timestamp())
                for one in answer.get("Contents", ())
            ]
            folders = [one["Prefix"] for one in answer.get("CommonPrefixes", ())]
            return Page(found, folders, str(answer.get("NextContinuationToken", "")))

        return self._call("list_objects_v2", bucket, prefix, read, **kwargs)

    def delete(self, bucket: str, keys: Sequence[str], only_if: str = "") -> None:
        """Delete objects; those that do not exist, or have another stamp, are left alone."""
        if only_if:
            for key in keys:
                with suppress(RefusedError, FileNotFoundError):
                    self._call("delete_object", bucket, key, bool, Key=key, IfMatch=only_if, **self._payer)
            return
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            told = {"Objects": [{"Key": key} for key in some], "Quiet": True}
            kwargs = {"Delete": told, **self._payer}
            self._call("delete_objects", bucket, some[0], partial(_all_gone, bucket), **kwargs)

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        """Copy an object of up to 5 GB; this job copies no larger ones."""
        source = {"Bucket": bucket, "Key": key}
        kwargs = {"Key": to_key, "CopySource": source, **self._crypt, **self._payer}
        self._call("copy_object", to_bucket, to_key, bool, **kwargs)

    def upload(self, bucket: str, key: str) -> S3Upload:
        """Begin an object that is sent in parts."""
        kwargs = {"Key": key, **self._crypt, **self._payer}
        upload_id = self._call("create_multipart_upload", bucket, key, lambda a: str(a["UploadId"]), **kwargs)
        return S3Upload(self, bucket, key, upload_id)

    def part(self, bucket: str, key: str, upload_id: str, number: int, content: bytes) -> str:
        """Send one part of an upload and return its ETag."""
        kwargs = {"Key": key, "UploadId": upload_id, "PartNumber": number, "Body": content, **self._payer}
        try:
            return self._call("upload_part", bucket, key, lambda answer: str(answer["ETag"]), **kwargs)
        except FileNotFoundError as e:
            raise _given_up(bucket, key) from e

    def held_bytes(self, bucket: str, key: str, token: str) -> int | None:
        """Return the bytes sent by an upload that is not finished, ``None`` where there is none."""
        upload_id, _ = _upload(token)
        total, marker = 0, 0
        try:
            while True:
                kwargs = {"Key": key, "UploadId": upload_id, "PartNumberMarker": marker, **self._payer}
                answer = self._call("list_parts", bucket, key, dict, **kwargs)
                total += sum(part["Size"] for part in answer.get("Parts", ()))
                if not answer.get("IsTruncated"):
                    return int(total)
                marker = answer["NextPartNumberMarker"]
        except FileNotFoundError:
            return None

    def finish(self, bucket: str, key: str, token: str) -> None:
        """Finish an upload.

        Raises:
            FileNotFoundError: there is none, for it was finished or given up before.
        """
        upload_id, etags = _upload(token)
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)]
        kwargs = {"Key": key, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}, **self._payer}
        self._call("complete_multipart_upload", bucket, key, bool, **kwargs)

    def open_uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """Return key and id of each upload that is not finished."""
        found: list[tuple[str, str]] = []
        markers: dict[str, str] = {}
        while True:
            kwargs = {"Prefix": prefix, **markers, **self._payer}
            answer = self._call("list_multipart_uploads", bucket, prefix, dict, **kwargs)
            found += [(one["Key"], one["UploadId"]) for one in answer.get("Uploads", ())]
            if not answer.get("IsTruncated"):
                return found
            markers = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload; nothing happens where there is none."""
        kwargs = {"Key": key, "UploadId": upload_id, **self._payer}
        with suppress(FileNotFoundError):
            self._call("abort_multipart_upload", bucket, key, bool, **kwargs)


class S3Upload:
    """An upload of this process."""

    def __init__(self, store: S3, bucket: str, key: str, upload_id: str) -> None:
        self._store, self._to, self._id = store, (bucket, key), upload_id
        self._etags: list[str] = []
        self._lock = threading.Lock()

    def part(self, content: bytes) -> None:
        """Send the next part."""
        with self._lock:
            self._etags.append(self._store.part(*self._to, self._id, len(self._etags) + 1, content))

    def finish(self) -> None:
        """Make the object visible."""
        try:
            self._store.finish(*self._to, self.token())
        except FileNotFoundError as e:
            # An earlier try may have been carried out, and its answer lost.
            if self._store.head(*self._to) is None:
                raise _given_up(*self._to) from e

    def abort(self) -> None:
        """Give the upload up."""
        self._store.abort(*self._to, self._id)

    def token(self) -> str:
        """Return the upload's id and the ETags of its parts."""
        return ",".join([self._id, *(etag.strip('"') for etag in self._etags)])


def _given_up(bucket: str, key: str) -> StateUnknownError:
    return StateUnknownError(
        f"s3://{bucket}/{key}: what was sent of it is gone: its run was published or removed meanwhile, or a "
        f"rule of the bucket gave it up; run again to see which"
    )


def _upload(token: str) -> tuple[str, list[str]]:
    upload_id, *etags = token.split(",")
    return upload_id, etags


def _all_gone(bucket: str, answer: Any) -> None:
    for failed in answer.get("Errors", ()):
        told = denied("delete_objects") if failed["Code"] == "AccessDenied" else "cannot be removed"
        text = f"s3://{bucket}/{failed['Key']}: {told}: {failed['Code']}"
        raise TransientError(text) if failed["Code"] in PASSING else StorageError(text)


def _found(key: str, answer: Any) -> Found:
    return Found(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())


def _body(size_bytes: int, answer: Any) -> bytes:
    content = bytes(answer["Body"].read())
    if len(content) != size_bytes:
        raise TransientError(f"{len(content)} of {size_bytes} bytes arrived")
    return content


# Errors. ``told`` makes one of ours of an error of botocore: it says whether the request is to be sent again,
# and tells a person what is wrong.

PASSING: Final = frozenset(
    (
        *("SlowDown", "RequestTimeout", "InternalError"),
        *("ServiceUnavailable", "Throttling", "RequestLimitExceeded"),
    )
)
_CHAIN: Final = (
    "no credentials were found (tried the environment's AWS_*, ~/.aws, single sign-on, the container's "
    "and the machine's role), and the bucket is not public; configure one of them"
)
# S3 does not always say which permission a request takes.
_ACTIONS: Final[Mapping[str, str]] = {
    "head_object": "s3:GetObject, and s3:ListBucket where there may be no such object",
    "get_object": "s3:GetObject, and s3:ListBucket where there may be no such object",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "copy_object": "s3:PutObject, and s3:GetObject on what is copied",
}
_CONFLICT: Final = frozenset({"PreconditionFailed", "412"})
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchUpload", "NotFound", "404"})
_DENIED: Final = frozenset({"AccessDenied", "403"})
_BROKEN: Final = (BotoConnectionError, HTTPClientError, ResponseStreamingError, ConnectionError)


class UnexplainedError(StorageError):
    """A request was refused without a reason, since the answer to a HEAD has no body."""


def told(where: str, operation: str, error: Exception, *, signed: bool) -> Exception:
    """Return the error that a failed request stands for.

    Args:
        where: the object.
        operation: botocore's name for the request.
        error: what botocore raised, or an ``OSError`` for a file of credentials that cannot be read.
        signed: whether credentials were found.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"{where}: {operation}: {_CHAIN}")
    if isinstance(error, _BROKEN):
        return TransientError(one_line(error))
    if not isinstance(error, ClientError):
        return StorageError(f"{where}: {operation}: {one_line(error)}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "ConditionalRequestConflict" or code in PASSING or status == 429 or status >= 500:
        return TransientError(one_line(error))
    if code in _CONFLICT:
        return RefusedError(one_line(error))
    if code in _ABSENT:
        return FileNotFoundError(where)
    if code == "NoSuchBucket":
        return StorageError(f"{where}: there is no such bucket; correct the name, or create it")
    return _refused(where, operation, error, code, status, signed)


def _refused(
    where: str, operation: str, error: ClientError, code: str, status: int, signed: bool
) -> StorageError:
    kind = UnexplainedError if operation == "head_object" and code == str(status) else StorageError
    if status in (401, 403) and not signed:
        return kind(f"{where}: {operation} is not allowed: {_CHAIN}")
    if status == 403 and code in _DENIED:
        kind = DeniedError if kind is StorageError else kind
        return kind(f"{where}: {denied(operation, error.operation_name)}: {one_line(error)}")
    return kind(f"{where}: {operation} failed: {one_line(error)}")


def denied(operation: str, asked: str = "") -> str:
    """Say that a request is not allowed, and which permission it takes.

    ``operation`` is botocore's name for it. ``asked`` is the request that was refused: with a role's
    credentials, other requests are sent first, which take other permissions.
    """
    if asked and asked.lower() != operation.replace("_", ""):
        return f"{operation} needs credentials, and {asked} is not allowed"
    return f"{operation} is not allowed: it takes {_ACTIONS.get(operation, 's3:PutObject')}"
