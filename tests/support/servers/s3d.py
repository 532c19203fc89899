"""S3 on a free port of the loopback: moto, with what it lacks of S3's documented conditions.

moto checks ``If-None-Match: *`` and ``If-Match`` on PutObject, ``If-None-Match: *`` on
CompleteMultipartUpload and ``If-Match`` on DeleteObject, but check and change are not one step: with threads
switched every microsecond, in 9 of 300 rounds two of four writers won, and in 14 one was answered with 500.
Here requests run one at a time, their bodies read beforehand.

moto ignores these, which are checked here: ``If-Match`` on CompleteMultipartUpload, both on CopyObject,
``x-amz-copy-source-if-match``, and ``If-Match: *`` on DeleteObject (it would compare the star with the ETag).
DeleteObjects with an ETag, ignored as well, is answered with 501; a part of an upload that is not there, and
its end, with 404, where moto would fail. These checks come before IAM's.

Of permissions, moto asks for that of DeleteObjects on the bucket instead of its objects, does not ask whether
the source of a copy may be read, falls over a request without a signature, and tells everybody that an object
is not there, where S3 tells only who may list the bucket. All of this is put right here.

Still lacking: 409 ConditionalRequestConflict, and ``If-Match`` on HeadObject without quotes. Completing an
upload that is the object already succeeds whatever the conditions. Signatures and permissions are checked
only with ``INITIAL_NO_AUTH_ACTION_COUNT``.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import unescape

from moto import backends, settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.exceptions import BucketAccessDeniedError, S3ClientError
from moto.s3.models import FakeKey, s3_backends
from moto.s3.responses import S3Response
from werkzeug.serving import make_server

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]

_STATUS = {
    "IncompleteBody": "400 Bad Request",
    "NoSuchKey": "404 Not Found",
    "NoSuchUpload": "404 Not Found",
    "PreconditionFailed": "412 Precondition Failed",
    "NotImplemented": "501 Not Implemented",
}


class Handler(MotoRequestHandler):
    """Keeps connections open, and is silent."""

    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; without this, each answer waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True

    def handle_expect_100(self) -> bool:
        """Leave it to werkzeug, which says it as well."""
        return True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


class Conditions:
    """One request at a time, after the conditions that moto does not know."""

    def __init__(self, app: Callable[[Environ, StartResponse], Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not _read_body(environ):
            return _refuse("IncompleteBody", start_response)
        with self._lock:
            code = _refusal(environ)
            return _refuse(code, start_response) if code else self._app(environ, start_response)


def _read_body(environ: Environ) -> bool:
    """Take the whole body off the connection; False if its sender died meanwhile."""
    length = environ.get("CONTENT_LENGTH")
    chunked = "chunked" in environ.pop("HTTP_TRANSFER_ENCODING", "").lower()
    try:
        body = environ["wsgi.input"].read(-1 if chunked else int(length or 0))
    except OSError:
        return False
    environ.pop("wsgi.input_terminated", None)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    return chunked or len(body) == int(length or 0)


def _refuse(code: str, start_response: StartResponse) -> list[bytes]:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>".encode()
    start_response(_STATUS[code], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _refusal(environ: Environ) -> str:
    """The code of the error that S3 would answer with where moto would not; else an empty string."""
    bucket, _, key = (
        environ["PATH_INFO"].encode("latin-1").decode(errors="replace").lstrip("/").partition("/")
    )
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    method = environ["REQUEST_METHOD"]
    match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
    if method == "POST" and "delete" in query and not key:
        return "NotImplemented" if b"<ETag>" in environ["wsgi.input"].getvalue() else ""
    if method in ("POST", "PUT") and "uploadId" in query:
        upload = query["uploadId"][0]
        if not _is_open(bucket, upload):
            return "" if method == "POST" and _completed(bucket, key, upload) else "NoSuchUpload"
    if method == "POST" and "uploadId" in query:
        return _unmet(bucket, key, match, none_match)
    if method == "DELETE" and match == "*":
        # moto would compare the star with the ETag.
        del environ["HTTP_IF_MATCH"]
        return _unmet(bucket, key, match, None)
    source = environ.get("HTTP_X_AMZ_COPY_SOURCE")
    if method != "PUT" or not source:
        return ""
    source_match = environ.get("HTTP_X_AMZ_COPY_SOURCE_IF_MATCH")
    from_bucket, _, from_key = unquote(source.partition("?")[0]).lstrip("/").partition("/")
    unmet = _unmet(from_bucket, from_key, source_match, None)
    # A part is copied into an upload, not onto an object.
    return unmet or ("" if "uploadId" in query else _unmet(bucket, key, match, none_match))


def _object(bucket: str, key: str) -> Any:
    try:
        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, key)
    except S3ClientError:
        return None


def _is_open(bucket: str, upload: str) -> bool:
    try:
        return upload in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_bucket(bucket).multiparts
    except S3ClientError:
        return True  # What moto says of the bucket is right.


def _completed(bucket: str, key: str, upload: str) -> bool:
    """Whether this upload is the object already: completing it once more changes nothing."""
    there = _object(bucket, key)
    return bool(there is not None and there.multipart and there.multipart.id == upload)


def _unmet(bucket: str, key: str, match: str | None, none_match: str | None) -> str:
    there = _object(bucket, key)
    if match and there is None:
        return "NoSuchKey"
    if match and match != "*" and match.strip('"') != there.etag.strip('"'):
        return "PreconditionFailed"
    return "PreconditionFailed" if none_match == "*" and there is not None else ""


_ask = S3Response._authenticate_and_authorize_s3_action


def _permitted(response: S3Response, bucket_name: str | None = None, key_name: str | None = None) -> None:
    """Ask for what S3 would in the place of moto's one question."""
    if ActionAuthenticatorMixin.request_count < settings.INITIAL_NO_AUTH_ACTION_COUNT:
        _ask(response, bucket_name, key_name)
        return
    if "Authorization" not in response.headers:
        raise BucketAccessDeniedError(bucket_name or "")
    action, keys = response.data["Action"], [key_name]
    if action == "DeleteObject" and key_name is None:
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", response.body.decode())]
    for key in keys:
        _ask(response, bucket_name, key)
    if action == "GetObject" and _object(bucket_name or "", key_name or "") is None:
        response.data["Action"] = "ListBucket"
        _ask(response, bucket_name)
    if source := response.headers.get("x-amz-copy-source"):
        response.data["Action"] = "GetObject"
        _ask(response, *unquote(source).lstrip("/").split("/", 1))
    response.data["Action"] = action


_stored: Any = FakeKey.value


def _whole(key: Any) -> bytes:
    """An object's content in one piece, which moto would copy out of a file for every range of it."""
    content: bytes | None = key.__dict__.get("_whole")
    if content is None:
        content = key._whole = _stored.fget(key)
    return content


def _set_whole(key: Any, content: bytes) -> None:
    key.__dict__.pop("_whole", None)
    _stored.fset(key, content)


def main() -> None:
    """Serve until standard input ends, so that a killed test leaves nothing behind."""
    # moto looks into the folder of its modules for each request.
    modules = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    FakeKey.value = property(_whole, _set_whole)  # type: ignore[assignment,method-assign]
    S3Response._authenticate_and_authorize_s3_action = _permitted  # type: ignore[assignment,method-assign]
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, Conditions(app), threaded=True, request_handler=Handler)
    print(f"http://127.0.0.1:{server.port}", flush=True)

    def watch() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
