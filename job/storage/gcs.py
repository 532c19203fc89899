"""Google Cloud Storage, through its own client; and what its errors mean.

Endpoint and credentials are found as Google's tools find them. An unfinished upload can be continued only by
a secret address, which must not be written down. So an attempt is an object in staging, and publishing copies
it. Within one bucket the store copies no bytes for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import quote

import requests
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, InvalidOperation, TransportError
from google.cloud import storage
from google.cloud.exceptions import from_http_response
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from urllib3.exceptions import HTTPError

from job.errors import DeniedError, StorageError, one_line
from job.spec import StoreOptions
from job.storage import buckets
from job.storage.buckets import Found, Page, RefusedError, TransientError, no_client, patiently
from job.storage.objects import PART_BYTES

T = TypeVar("T")

_TIMEOUT_S: Final = (10.0, 30.0)
_AT_ONCE: Final = 64
_DELETES_AT_ONCE: Final = 16


class CloudStorage:
    """The requests of ``job.storage.buckets.Client``."""

    keeps_uploads = False

    def __init__(self, options: StoreOptions) -> None:
        host = os.environ.get("STORAGE_EMULATOR_HOST", "")
        # Google's other clients take it without a scheme, this one takes it for one.
        endpoint = {"api_endpoint": f"http://{host}"} if host and "://" not in host else None
        try:
            # No request here is about a project; who is known by credentials alone must not go unsigned.
            self._client: Any = storage.Client(project=None, client_options=endpoint)
        except (GoogleAuthError, ValueError, OSError) as e:
            if not isinstance(e, DefaultCredentialsError) or "credentials were not found" not in str(e):
                raise no_client("gs", one_line(e)) from e
            self._client = storage.Client(project=None, credentials=AnonymousCredentials())
        # It asks about every bucket, which takes a permission and is not paid, for traces that nobody keeps.
        self._client._bucket_metadata_cache = None
        self._host = self._client._connection.API_BASE_URL
        self._signed = not isinstance(self._client._credentials, AnonymousCredentials)
        # One session for all threads: as many connections as there may be requests at once.
        adapter = requests.adapters.HTTPAdapter(pool_connections=_AT_ONCE, pool_maxsize=_AT_ONCE)
        self._session: Any = self._client._http
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._payer = options.requester_pays or None
        self._kms_key = options.kms_key or None

    def credentials(self) -> str:
        """Return the kind of the credentials, and their account if they tell it."""
        if not self._signed:
            return ""
        found = self._client._credentials
        kind = type(found).__module__.removeprefix("google.").removesuffix(".credentials")
        return f"{kind} {getattr(found, 'service_account_email', '')}".strip()

    def _bucket(self, bucket: str) -> Any:
        return self._client.bucket(bucket, user_project=self._payer)

    def _blob(self, bucket: str, key: str) -> Any:
        return self._bucket(bucket).blob(key, kms_key_name=self._kms_key)

    def _call(self, bucket: str, key: str, request: Callable[[], T]) -> T:
        where = f"gs://{bucket}/{key}"

        def once() -> T:
            try:
                return request()
            except ERRORS as e:
                raise self._told(where, e) from e

        return patiently(where, once)

    def _told(self, where: str, error: Exception) -> Exception:
        return told(where, error, signed=self._signed)

    def head(self, bucket: str, key: str) -> Found | None:
        """Return an object's size and stamp, ``None`` where there is none."""
        blob = self._bucket(bucket).blob(key)
        try:
            # Not get_blob, which takes a bucket that is not there for an object that is not.
            self._call(bucket, key, lambda: blob.reload(retry=None, timeout=_TIMEOUT_S))
        except FileNotFoundError:
            return None
        return _found(blob)

    def get(self, bucket: str, key: str, start: int, stop: int, stamp: str) -> bytes:
        """Return bytes ``start`` to ``stop`` of the object that has the stamp."""
        return self._call(bucket, key, lambda: self._media(bucket, key, stamp, start, stop)[0])

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object's content and stamp, ``None`` where there is none."""
        try:
            return self._call(bucket, key, lambda: self._media(bucket, key, "", None, None))
        except FileNotFoundError:
            return None

    def _media(
        self, bucket: str, key: str, stamp: str, start: int | None, stop: int | None
    ) -> tuple[bytes, str]:
        """Return content and generation; the client's own download takes three times the processor time."""
        params = {"alt": "media"}
        if stamp:
            params["generation"] = stamp
        if self._payer:
            params["userProject"] = self._payer
        headers = {"Accept-Encoding": "identity"}
        if start is not None and stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        url = f"{self._host}/download/storage/v1/b/{bucket}/o/{quote(key, safe='')}"
        # Read in one go: in the pieces of 10 kB that a session reads by itself it takes the lock for longer.
        with self._session.get(
            url, params=params, headers=headers, timeout=_TIMEOUT_S, stream=True
        ) as answer:
            if answer.status_code not in (200, 206):
                raise from_http_response(answer)
            content = bytes(answer.raw.read())
        expected = int(answer.headers.get("Content-Length", len(content)))
        if start is not None and stop is not None:
            expected = stop - start
        if len(content) != expected:
            raise TransientError(f"{len(content)} of {expected} bytes arrived")
        return content, str(answer.headers.get("X-Goog-Generation", ""))

    def put(self, bucket: str, key: str, content: bytes, only_if: str | None) -> str | None:
        """Write an object and return its new stamp, ``None`` where the condition does not hold."""
        condition = {} if only_if is None else {"if_generation_match": int(only_if or 0)}

        def send() -> str:
            blob, kind = self._blob(bucket, key), "application/octet-stream"
            blob.upload_from_string(content, kind, retry=None, timeout=_TIMEOUT_S, **condition)
            return str(blob.generation)

        try:
            return self._call(bucket, key, send)
        except RefusedError:
            return None
        except FileNotFoundError as e:
            if only_if:
                return None
            raise no_bucket(bucket) from e

    def page(self, bucket: str, prefix: str, delimiter: str, token: str) -> Page:
        """Return up to a thousand of the objects whose keys begin with ``prefix``."""

        def send() -> Page:
            listed = self._client.list_blobs(
                self._bucket(bucket),
                prefix=prefix,
                delimiter=delimiter or None,
                page_token=token or None,
                fields="items(name,size,generation,updated),prefixes,nextPageToken",
                retry=None,
                timeout=_TIMEOUT_S,
            )
            page = next(listed.pages, ())
            found = [_found(blob) for blob in page]
            return Page(found, sorted(listed.prefixes), listed.next_page_token or "")

        try:
            return self._call(bucket, prefix, send)
        except FileNotFoundError as e:
            raise no_bucket(bucket) from e

    def delete(self, bucket: str, keys: Sequence[str], only_if: str = "") -> None:
        """Delete objects; those that do not exist, or have another stamp, are left alone."""
        condition = {"if_generation_match": int(only_if)} if only_if else {}

        def one(key: str) -> None:
            try:
                blob = self._blob(bucket, key)
                self._call(bucket, key, lambda: blob.delete(retry=None, timeout=_TIMEOUT_S, **condition))
            except (FileNotFoundError, RefusedError):
                return

        if len(keys) == 1:
            one(keys[0])
            return
        with ThreadPoolExecutor(_DELETES_AT_ONCE, thread_name_prefix="delete") as pool:
            list(pool.map(one, keys))

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        """Copy an object within the store."""
        token: str | None = None
        while (
            token := self._copied(self._blob(bucket, key), self._blob(to_bucket, to_key), token)
        ) is not None:
            pass

    def _copied(self, source: Any, target: Any, token: str | None) -> str | None:
        """Copy all or some of an object; return how to continue, ``None`` when it is done."""

        def send() -> str | None:
            going_on: str | None = target.rewrite(source, token=token, retry=None, timeout=_TIMEOUT_S)[0]
            return going_on

        return self._call(source.bucket.name, source.name, send)

    def upload(self, bucket: str, key: str) -> CloudUpload:
        """Begin an object that is sent in parts."""
        return CloudUpload(self, bucket, key)

    def held_bytes(self, bucket: str, key: str, token: str) -> int | None:  # noqa: ARG002
        """Return ``None``: here no upload is left open."""
        return None

    def finish(self, bucket: str, key: str, token: str) -> None:  # noqa: ARG002
        """Raise ``FileNotFoundError``: here no upload is left open."""
        raise FileNotFoundError(f"gs://{bucket}/{key}")

    def open_uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:  # noqa: ARG002
        """Return nothing: unfinished uploads belong to nobody, and the store removes them after a week."""
        return []

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Do nothing: here no upload is left open."""


class CloudUpload:
    """An upload of this process; the client repeats a part that the store has not answered."""

    def __init__(self, store: CloudStorage, bucket: str, key: str) -> None:
        self._store, self._where = store, (bucket, key)
        patient = Retry(
            predicate=lambda e: isinstance(store._told("", e), TransientError),
            initial=buckets.FIRST_PAUSE_S,
            maximum=buckets.LONGEST_PAUSE_S,
            timeout=buckets.BUDGET_S,
        )
        blob = store._blob(bucket, key)
        self._writer: Any = blob.open(
            "wb", chunk_size=PART_BYTES, retry=patient, ignore_flush=True, timeout=_TIMEOUT_S
        )

    def _tell(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (*ERRORS, api.GoogleAPIError, DataCorruption, InvalidResponse) as e:
            where = f"gs://{'/'.join(self._where)}"
            told = self._store._told(where, e)
            if isinstance(told, FileNotFoundError):
                raise no_bucket(self._where[0]) from e
            if isinstance(told, TransientError):
                raise StorageError(f"{where}: cannot be written: {one_line(e)}") from e
            raise told from e

    def part(self, content: bytes) -> None:
        """Send the next part."""
        self._tell(lambda: self._writer.write(content))

    def finish(self) -> None:
        """Make the object visible."""
        self._tell(self._writer.close)

    def abort(self) -> None:
        """Give the upload up."""
        self._tell(self._writer.terminate)

    def token(self) -> str:
        """Return an empty token: no other process can finish this upload."""
        return ""


def _found(blob: Any) -> Found:
    return Found(blob.name, blob.size, str(blob.generation), blob.updated.timestamp())


# Errors. ``told`` makes one of ours of an error of the client: it says whether the request is to be sent
# again, and tells a person what is wrong.

ERRORS: Final = (
    *(api.GoogleAPICallError, GoogleAuthError, requests.RequestException, HTTPError, ConnectionError),
)
_CHAIN: Final = (
    "no credentials were found (tried GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, and the machine's "
    "service account), and the bucket is not public; set one of them up"
)
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})


def told(where: str, error: Exception, *, signed: bool) -> Exception:
    """Return the error that a failed request stands for.

    Args:
        where: the object.
        error: one of ``ERRORS``.
        signed: whether credentials were found.
    """
    if isinstance(error, InvalidResponse):
        # An upload in parts gets the answer itself where every other request gets an error.
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
    """Return the error for a bucket that does not exist."""
    return StorageError(f"gs://{path}: there is no such bucket; correct the name, or create it")
