"""The interface of an object store: its requests, their retries, and the names of objects.

:class:`Client` is what each store implements. It sends its requests by :func:`patiently`, which retries them.
Every request can be repeated, since it writes the same each time. A conditional request that got no answer
checks afterwards whether it took effect. Pauses grow and are random ("full jitter":
https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter), so that a thousand workers
do not come back at once.

``stamp`` identifies one state of an object: its generation in Cloud Storage, its ETag in S3. A **handle**
names a sealed object: its path, or for an open upload its future path and the upload's token.
"""

from __future__ import annotations

import posixpath
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from job.errors import StorageError, UsageError, one_line

T = TypeVar("T")

# In a handle, this stands between the path and the token of an open upload.
_MARK: Final = "#upload="


def normal(path: str) -> str:
    """Return a path without ``/`` at its end and without doubled ones.

    Raises:
        UsageError: it names no bucket, or a user, or looks like a handle.
    """
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
    """Return the error for a client whose configuration cannot be used."""
    return StorageError(
        f"{scheme}://: what the environment or a file configures for it cannot be used: {error}; correct it"
    )


def bucket_and_key(path: str) -> tuple[str, str]:
    """Return the bucket and the key of a path."""
    bucket, _, key = path_of(path).partition("://")[2].partition("/")
    return bucket, key


def folder_prefix(key: str) -> str:
    """Return the beginning of all keys below a folder."""
    return f"{key}/" if key else ""


def handle_of(path: str, token: str) -> str:
    """Return the handle of an open upload to ``path``."""
    return f"{path}{_MARK}{token}"


def token_of(handle: str) -> str:
    """Return the token of an open upload; empty if the handle is an object's."""
    return handle.partition(_MARK)[2]


def path_of(handle: str) -> str:
    """Return the path that an object has, or will have once its upload is finished."""
    return handle.partition(_MARK)[0]


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a listing or a single look shows it."""

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
    """An object that is sent in parts. Nobody sees it before it is finished."""

    def part(self, content: bytes) -> None:
        """Send the next part; only the last may be smaller than 5 MiB."""
        ...

    def finish(self) -> None:
        """Make the object visible."""
        ...

    def abort(self) -> None:
        """Give the upload up."""
        ...

    def token(self) -> str:
        """Return what another process needs to finish the upload; empty if no other process can."""
        ...


class Client(Protocol):
    """The requests of a store. Each is repeated where that may help.

    Raises:
        StorageError: it failed for good.
        FileNotFoundError: there is no such object (``get``, ``copy``, ``finish``).
        RefusedError: the object is not the one with the ``stamp`` (``get``).
    """

    # Whether an unfinished upload outlives its process, so that any process can finish it.
    keeps_uploads: bool

    def credentials(self) -> str:
        """Return where the credentials come from, and whose they are if known; empty if there are none."""
        ...

    def head(self, bucket: str, key: str) -> Found | None:
        """Return an object's size and stamp, ``None`` where there is none."""
        ...

    def get(self, bucket: str, key: str, start: int, stop: int, stamp: str) -> bytes:
        """Return bytes ``start`` to ``stop`` of the object with this stamp; of any object if it is empty."""
        ...

    def read(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        """Return a small object's content and stamp, ``None`` where there is none."""
        ...

    def put(self, bucket: str, key: str, content: bytes, only_if: str | None) -> str | None:
        """Write an object and return its new stamp.

        ``only_if`` is the stamp that the object must have now, empty if it must not exist. If that does not
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
        """Return the bytes that an unfinished upload has sent; ``None`` if there is no such upload."""
        ...

    def finish(self, bucket: str, key: str, token: str) -> None:
        """Finish an upload, which another process may have begun."""
        ...

    def open_uploads(self, bucket: str, prefix: str) -> Sequence[tuple[str, str]]:
        """Return key and id of each unfinished upload; a token begins with the id."""
        ...

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give up an upload, which another process may have begun; nothing happens if there is none."""
        ...


# Retries.

# An overloaded or restarted store is back within this time. If it is not, a person should know.
BUDGET_S: Final = 90.0
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 8.0

# Not the default generator: if a model seeds that, all workers would come back at the same time.
_RANDOM: Final = random.SystemRandom()

_guards: dict[object, tuple[str, str, Callable[[bool], None]]] = {}


class TransientError(Exception):
    """A request failed in a way that may pass."""


class RefusedError(Exception):
    """The condition of a request does not hold: the object exists already, or was replaced."""


def guarded(start: str, but: str, guard: Callable[[bool], None]) -> Callable[[], None]:
    """Call ``guard`` before each try of a request about a path that begins with ``start``, in any thread.

    Requests about the path ``but`` are not guarded. ``guard`` is told whether the request is sent again. If
    it raises, the request ends: a process that was suspended in between may no longer be allowed to send it.

    Returns:
        A function that ends this.
    """
    key = object()
    _guards[key] = (start, but, guard)

    def end() -> None:
        del _guards[key]

    return end


def patiently(
    where: str,
    request: Callable[[], T],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Send a request, and retry it until it succeeds, fails for good, or ``BUDGET_S`` are spent.

    Raises:
        StorageError: the budget is spent; the message names ``where``.
    """
    give_up_s = clock() + BUDGET_S
    ceiling_s, tries = FIRST_PAUSE_S, 0
    while True:
        tries += 1
        for start, but, guard in tuple(_guards.values()):
            if where.startswith(start) and where != but:
                guard(tries > 1)
        try:
            return request()
        except TransientError as e:
            pause_s = _RANDOM.uniform(0.0, ceiling_s)
            if clock() + pause_s > give_up_s:
                raise StorageError(
                    f"{where}: no good answer in {tries} tries within {BUDGET_S:.0f} s, last "
                    f"{one_line(e.__cause__ or e)}; run again when the store answers"
                ) from e
            sleep(pause_s)
            ceiling_s = min(LONGEST_PAUSE_S, 2 * ceiling_s)
