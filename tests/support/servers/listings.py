"""Which object a request is about, which requests make and remove objects, and listings that come late."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import unescape

_GCS = re.compile(r"/(?:upload/|download/)?storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?")
_COPY = re.compile(r".*/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)")
_NAME = re.compile(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")')
_CONTENTS = re.compile(r"\s*<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(r"<Key>(.*?)</Key>", re.DOTALL)
_KEY_COUNT = re.compile(r"<KeyCount>(\d+)</KeyCount>")
_QUOTES = {"&quot;": '"', "&apos;": "'", "&#34;": '"', "&#39;": "'"}
# What S3's two listings may ask; anything else asks about the bucket itself.
_LIST_WORDS = {"list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after"}
_LIST_WORDS |= {"encoding-type", "fetch-owner", "marker", "x-id"}
# Sub-resources of an S3 object: to change one neither makes the object nor removes it.
_ASIDE = {"acl", "tagging", "retention", "legal-hold", "partNumber"}


def _words(target: str) -> tuple[str, dict[str, str]]:
    path, _, query = target.partition("?")
    return path, {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}


def key(target: str, body: bytes) -> str:
    """``bucket/name`` of the object that is read or changed; ``bucket`` alone for what is about all of it.

    An upload to Cloud Storage may tell the name only in its body, of which ``body`` is the first piece.
    """
    path, words = _words(target)
    match = _GCS.fullmatch(path)
    if match is None:
        return unquote(path).removeprefix("/").removesuffix("/" if path.count("/") == 2 else "")
    bucket, name = match.groups()
    if path.startswith("/upload/"):
        told = _NAME.search(body) if "name" not in words else None
        return f"{bucket}/{json.loads(told[1]) if told else words.get('name', '')}"
    if copied := _COPY.fullmatch(path):
        bucket, name = copied.groups()
    return f"{bucket}/{unquote(name.removesuffix('/compose'))}" if name else bucket


def lists(method: str, target: str) -> bool:
    """Whether objects are listed."""
    path, words = _words(target)
    if match := _GCS.fullmatch(path):
        return method == "GET" and not match[2] and path.rstrip("/").endswith("/o")
    one_segment = path != "/" and "/" not in path.strip("/")
    return method == "GET" and one_segment and words.keys() <= _LIST_WORDS


def _makes(method: str, target: str) -> bool:
    path, words = _words(target)
    if _GCS.fullmatch(path):
        if path.startswith("/upload/"):
            # A session that is begun makes nothing; its last part does.
            return words.get("uploadType") != "resumable" or "upload_id" in words
        return method == "POST" and (_COPY.fullmatch(path) is not None or path.endswith("/compose"))
    if "/" not in path.strip("/"):
        return False
    return (method == "PUT" and not words.keys() & _ASIDE) or (method == "POST" and "uploadId" in words)


def _removes(method: str, target: str) -> bool:
    _, words = _words(target)
    return method == "DELETE" and not words.keys() & (_ASIDE | {"uploadId", "upload_id"})


class Recent:
    """Objects by when they were made through the proxy (deletes of many in one request are not noticed)."""

    def __init__(self) -> None:
        self._made_s: dict[str, float] = {}

    def saw(self, method: str, target: str, name: str, status: int) -> None:
        """Take note of what a request that was answered with ``status`` has changed."""
        if method in ("GET", "HEAD") or not 200 <= status < 300:
            return
        if _removes(method, target):
            self._made_s.pop(name, None)
        elif _makes(method, target):
            # An object that is replaced does not leave the listings.
            self._made_s.setdefault(name, time.monotonic())

    def hidden(self, bucket: str, younger_s: float) -> set[str]:
        """Names in a bucket that a listing does not know yet."""
        since_s, start = time.monotonic() - younger_s, f"{bucket}/"
        young = (one for one, made_s in self._made_s.items() if made_s > since_s)
        return {one.removeprefix(start) for one in young if one.startswith(start)}


def without(target: str, body: bytes, hidden: set[str]) -> bytes:
    """A listing that leaves out these objects. A page may get short or empty; common prefixes all stay."""
    if _GCS.fullmatch(_words(target)[0]):
        listing = json.loads(body)
        listing["items"] = [item for item in listing.get("items", ()) if item["name"] not in hidden]
        return json.dumps(listing).encode()
    text = body.decode()
    encoded = "<EncodingType>url</EncodingType>" in text

    def name(contents: str) -> str:
        found = _KEY.search(contents)
        plain = unescape(found[1], _QUOTES) if found else ""
        return unquote(plain) if encoded else plain

    left_out = sum(name(match.group()) in hidden for match in _CONTENTS.finditer(text))
    text = _CONTENTS.sub(lambda match: "" if name(match.group()) in hidden else match.group(), text)
    return _KEY_COUNT.sub(lambda match: f"<KeyCount>{int(match[1]) - left_out}</KeyCount>", text).encode()
