"""What a failed request to S3 means: for the one who sent it, and for a person."""

from __future__ import annotations

from typing import Final

from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from job import refusals
from job.errors import StorageError, one_line
from job.retrying import RefusedError, TransientError

PASSING: Final = frozenset(
    (
        *("SlowDown", "RequestTimeout", "InternalError"),
        *("ServiceUnavailable", "Throttling", "RequestLimitExceeded"),
    )
)
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
        operation: boto3's name for the request.
        error: what boto3 raised, or the system where a file with credentials cannot be read.
        signed: whether credentials were found.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"{where}: {operation}: {refusals.NO_CREDENTIALS['s3']}")
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
        return kind(f"{where}: {operation} is not allowed: {refusals.NO_CREDENTIALS['s3']}")
    if status == 403 and code in _DENIED:
        return kind(f"{where}: {refusals.denied(operation, error.operation_name)}: {one_line(error)}")
    return kind(f"{where}: {operation} failed: {one_line(error)}")
