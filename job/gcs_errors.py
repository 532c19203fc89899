"""What a failed request to Cloud Storage means: for the one who sent it, and for a person."""

from __future__ import annotations

from typing import Final

import requests
from google.api_core import exceptions as api
from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError
from google.cloud.exceptions import from_http_response
from google.cloud.storage.exceptions import InvalidResponse
from urllib3.exceptions import HTTPError

from job.errors import DeniedError, StorageError, one_line
from job.retrying import RefusedError, TransientError

ERRORS: Final = (
    *(api.GoogleAPICallError, GoogleAuthError, requests.RequestException, HTTPError, ConnectionError),
)
_CHAIN: Final = (
    "no credentials were found (tried GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, and the machine's "
    "service account), and the bucket is not public; set one of them up"
)
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})


def told(where: str, error: Exception, *, signed: bool) -> Exception:
    """Return what a failed request means.

    Args:
        where: the object.
        error: one of ``ERRORS``.
        signed: whether credentials were found.
    """
    if isinstance(error, InvalidResponse):
        # What an upload in parts is told, where every other request is told the error itself.
        error = from_http_response(error.response)
    if isinstance(error, api.NotFound):
        if "bucket does not exist" in str(error.message):
            return no_bucket(where.partition("://")[2])
        return FileNotFoundError(where)
    if isinstance(error, api.PreconditionFailed):
        return RefusedError(one_line(error))
    if isinstance(error, api.GoogleAPICallError) and error.code in _PASSING:
        return TransientError(one_line(error))
    # Where nobody is known, the client takes a 401 for a token that it should replace, and cannot.
    if isinstance(error, api.Forbidden | api.Unauthorized | InvalidOperation) and not signed:
        return StorageError(f"{where}: it is not allowed: {_CHAIN}")
    passing = (TransportError, requests.RequestException, HTTPError, ConnectionError)
    wrong = isinstance(error, requests.exceptions.InvalidURL)
    if getattr(error, "retryable", False) or (isinstance(error, passing) and not wrong):
        return TransientError(one_line(error))
    kind = DeniedError if isinstance(error, api.Forbidden) else StorageError
    return kind(f"{where}: it failed: {one_line(error)}")


def no_bucket(path: str) -> StorageError:
    """Return what to say where a bucket is not there."""
    return StorageError(f"gs://{path}: there is no such bucket; correct the name, or create it")
