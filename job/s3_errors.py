"""What a failed request to S3 means: for the one who sent it, and for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from job.errors import DeniedError, StorageError, one_line
from job.retrying import RefusedError, TransientError

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
    """A request was refused, and its answer cannot say why: that to a HEAD has no body."""


def told(where: str, operation: str, error: Exception, *, signed: bool) -> Exception:
    """Return what a failed request means.

    Args:
        where: the object.
        operation: botocore's name for the request.
        error: what botocore raised, or the system where a file with credentials cannot be read.
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
    """Return what to say of a request that is not allowed, and the permission that it takes.

    ``operation`` is botocore's name for it, ``asked`` that of the request which was refused: for credentials
    of a role others are sent first, and take other permissions.
    """
    if asked and asked.lower() != operation.replace("_", ""):
        return f"{operation} needs credentials, and {asked} is not allowed"
    return f"{operation} is not allowed: it takes {_ACTIONS.get(operation, 's3:PutObject')}"
