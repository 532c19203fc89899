"""What an object store must be able to do, whoever runs it; and the words for it. No I/O.

``stamp`` identifies one state of an object: its generation in Cloud Storage, its ETag in S3.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from job.errors import StorageError, UsageError

# In front of the token of an upload that is still open, in a handle.
_MARK: Final = "#upload="


def normal(path: str) -> str:
    """Return a path with no ``/`` at its end, and none that is doubled."""
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.strip("/").partition("/")
    if not bucket:
        raise UsageError(f"{path}: it names no bucket; give {scheme}://BUCKET/NAME")
    if "@" in bucket:
        # Nor would it be kept secret: paths stand in plans, manifests and logs.
        raise UsageError(f"{path}: it names a user; credentials are found as the store's own tools find them")
    if _MARK in key:
        raise UsageError(f"{path}: {_MARK} in a name stands for an upload that is not finished; rename it")
    return f"{scheme}://{posixpath.join(bucket, *(part for part in key.split('/') if part))}"


def no_client(scheme: str, error: str) -> StorageError:
    """Return what to say where what is configured for a store's client cannot be used."""
    return StorageError(
        f"{scheme}://: what the environment or a file configures for it cannot be used: {error}; correct it"
    )


def bucket_and_key(path: str) -> tuple[str, str]:
    """Return the bucket and the key of a path."""
    bucket, _, key = path_of(path).partition("://")[2].partition("/")
    return bucket, key


def folder_prefix(key: str) -> str:
    """Return what the keys below a folder begin with."""
    return f"{key}/" if key else ""


def handle_of(path: str, token: str) -> str:
    """Return the handle of an open upload to ``path``."""
    return f"{path}{_MARK}{token}"


def token_of(handle: str) -> str:
    """Return an open upload's token, empty where the handle is that of an object."""
    return handle.partition(_MARK)[2]


def path_of(handle: str) -> str:
    """Return the path that a handle's object has or will have."""
    return handle.partition(_MARK)[0]


@dataclass(frozen=True, slots=True)
class Found:
    """An object, as a listing or a look at it tells."""

    key: str
    size_bytes: int
    stamp: str
    modified_unix_s: float


@dataclass(frozen=True)
class Page:
    """A part of a listing. ``token`` asks for the next one, empty after the last."""

    found: Sequence[Found]
    folders: Sequence[str]
    token: str


class Upload(Protocol):
    """An object that is sent in parts, and that nobody sees before it is finished."""

    def part(self, content: bytes) -> None:
        """Send the next part; only the last may be smaller than 5 MiB."""
        ...

    def finish(self) -> None:
        """Make the object visible."""
        ...

    def abort(self) -> None:
        """Give it up."""
        ...

    def token(self) -> str:
        """Return what another process needs to finish it; empty where that cannot be."""
        ...


class Client(Protocol):
    """A store's requests. Each is repeated by itself where that may help.

    Raises:
        StorageError: it failed for good.
        FileNotFoundError: there is no such object (``get``, ``copy``, ``finish``).
        RefusedError: the object is not the one with the ``stamp`` (``get``).
    """

    # Uploads that are not finished outlive their process, and any process can finish them.
    keeps_uploads: bool

    def credentials(self) -> str:
        """Return where the credentials come from, and whose they are if that is told; empty without any."""
        ...

    def head(self, bucket: str, key: str) -> Found | None:
        """Return an object's size and stamp, ``None`` where there is none."""
        ...

    def get(self, bucket: str, key: str, start: int, stop: int, stamp: str) -> bytes:
        """Return bytes ``start`` to ``stop`` of the object that has the stamp; any, if that is empty."""
        ...

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object's content and stamp, ``None`` where there is none."""
        ...

    def put(self, bucket: str, key: str, content: bytes, only_if: str | None) -> str | None:
        """Write an object and return its new stamp.

        ``only_if`` is the stamp that it must have now, empty if it must not exist; where that does not
        hold, ``None`` is returned.
        """
        ...

    def page(self, bucket: str, prefix: str, delimiter: str, token: str) -> Page:
        """Return some of the objects whose keys begin with ``prefix``."""
        ...

    def delete(self, bucket: str, keys: Sequence[str], only_if: str = "") -> None:
        """Delete objects; those that do not exist, or have another stamp than ``only_if``, are left alone."""
        ...

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        """Copy an object within the store."""
        ...

    def upload(self, bucket: str, key: str) -> Upload:
        """Begin an object that is sent in parts."""
        ...

    def held_bytes(self, bucket: str, key: str, token: str) -> int | None:
        """Return the bytes sent by an upload that is not finished, ``None`` where there is none."""
        ...

    def finish(self, bucket: str, key: str, token: str) -> None:
        """Finish an upload that perhaps another process began."""
        ...

    def open_uploads(self, bucket: str, prefix: str) -> Sequence[tuple[str, str]]:
        """Return key and id of each upload that is not finished; a token begins with the id."""
        ...

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload that perhaps another process began; nothing happens where there is none."""
        ...
