"""Files in buckets, ``gs://bucket/key`` and ``s3://bucket/key``: a store's files, read and written.

A bucket has no folders: a folder is the part of a key before a ``/``. It has no rename either;
``job.commit.protocol`` says what is done instead.

An object is read as :class:`RangeFile`, a file for pyarrow that fetches exactly the bytes that are asked for.
Why not ``pyarrow.fs``: measured over loopback with three of twelve columns of four row groups (9.1 MB), its
Cloud Storage files moved 1.48 times the bytes in 7 requests, this 1.01 times in 5; a footer cost it 4.3 MB
and 3 requests, this one request. Its S3 files read as exactly, at the same speed, but know neither
conditions, generations nor requester pays, and find credentials by other rules than Amazon's own tools.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, Final

from job.errors import JobError, ShardChangedError, StorageError, UsageError
from job.spec import StoreOptions
from job.storage.buckets import (
    Client,
    Found,
    RefusedError,
    Upload,
    bucket_and_key,
    folder_prefix,
    handle_of,
    path_of,
    token_of,
)
from job.storage.disk import Copied, FileInfo, copy_to, reason

SCHEMES: Final = ("gs", "s3")
_lock = threading.RLock()
_options = StoreOptions()
_stores: dict[str, ObjectStore] = {}


def configure(options: StoreOptions) -> None:
    """Set how this process uses the stores; the same options again change nothing."""
    global _options
    with _lock:
        if options != _options:
            _options = options
            _stores.clear()


def forget() -> None:
    """Drop all clients, because the environment names other endpoints or credentials by now."""
    with _lock:
        _stores.clear()


def store(scheme: str) -> ObjectStore:
    """Return this process's only store of a scheme.

    Raises:
        UsageError: its client is not installed.
    """
    with _lock:
        if scheme not in _stores:
            _stores[scheme] = ObjectStore(scheme, client(scheme))
        return _stores[scheme]


def client(scheme: str) -> Client:
    """Return a new client of a scheme; see ``store``."""
    try:
        if scheme == "s3":
            from job.storage.s3 import S3

            return S3(_options)
        from job.storage.gcs import CloudStorage

        return CloudStorage(_options)
    except ImportError as e:
        extra = {"s3": "s3", "gs": "gcs"}[scheme]
        told = f"{scheme}:// needs a package that is not installed ({e.name})"
        raise UsageError(f"{told}: pip install 'scoring-job[{extra}]'") from e


def _state_of(every: Sequence[FileInfo]) -> str:
    return "\n".join(f"{info.path} {info.stamp}" for info in every)


def _shown(found: Found) -> tuple[int, str, str, float]:
    return found.size_bytes, found.stamp, "", found.modified_unix_s


class ObjectStore:
    """Files in the buckets of one scheme. Safe to use from several threads."""

    def __init__(self, scheme: str, client: Client) -> None:
        self._scheme, self._client = scheme, client

    def exists(self, path: str) -> bool:
        """Say whether an object or a folder is there."""
        return self._head(path) is not None or self.is_folder(path)

    def _head(self, path: str) -> Found | None:
        bucket, key = bucket_and_key(path)
        # No object has an empty name; the clients refuse to ask for one.
        return self._client.head(bucket, key) if key else None

    def is_folder(self, path: str) -> bool:
        """Say whether objects lie below ``path``."""
        bucket, key = bucket_and_key(path)
        page = self._client.page(bucket, folder_prefix(key), "/", "")
        return bool(page.found or page.folders)

    def describe(self, path: str) -> FileInfo | None:
        """Return an object as a listing would show it now, or ``None`` where there is none."""
        found = self._head(path)
        return None if found is None else FileInfo(path, *_shown(found))

    def tree(self, path: str) -> list[FileInfo]:
        """Return every object below a folder, sorted by path."""
        bucket, key = bucket_and_key(path)
        found = [
            FileInfo(
                f"{self._scheme}://{bucket}/{one.key}", one.size_bytes, one.stamp, path, one.modified_unix_s
            )
            for one in self.beginning(bucket, folder_prefix(key))
        ]
        return sorted(found, key=lambda info: info.path)

    def beginning(self, bucket: str, prefix: str) -> Iterator[Found]:
        """Yield the objects whose keys begin with ``prefix``; placeholders of folders are left out."""
        token = ""
        while True:
            page = self._client.page(bucket, prefix, "", token)
            yield from (one for one in page.found if not one.key.endswith("/"))
            if not (token := page.token):
                return

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a folder."""
        bucket, key = bucket_and_key(path)
        prefix, token, names = folder_prefix(key), "", set[str]()
        while True:
            page = self._client.page(bucket, prefix, "/", token)
            names.update(one.key.removeprefix(prefix) for one in page.found)
            names.update(folder.removeprefix(prefix).rstrip("/") for folder in page.folders)
            if not (token := page.token):
                return sorted(names - {""})

    def holds(self, path: str, names: Iterable[str]) -> list[str]:
        """Return those of some names that a folder contains."""
        bucket, key = bucket_and_key(path)
        prefix = folder_prefix(key)
        page = self._client.page(bucket, prefix, "/", "")
        if page.token:
            # The whole listing may take a thousand requests more.
            return [name for name in names if self.exists(f"{path}/{name}")]
        found = {one.key.removeprefix(prefix) for one in page.found}
        found.update(folder.removeprefix(prefix).rstrip("/") for folder in page.folders)
        return [name for name in names if name in found]

    def read_bytes(self, path: str) -> bytes | None:
        """Return a small object's content, or ``None`` where there is none."""
        found = self.read_stamped(path)
        return None if found is None else found[0]

    def read_stamped(self, path: str) -> tuple[bytes, str] | None:
        """Return a small object's content and stamp, or ``None`` where there is none."""
        bucket, key = bucket_and_key(path)
        return self._client.read(bucket, key) if key else None

    def write(self, path: str, content: bytes) -> None:
        """Write a small object, replacing what was there."""
        self._client.put(*bucket_and_key(path), content, None)

    def write_if(self, path: str, content: bytes, stamp: str) -> str | None:
        """Write a small object if it has this stamp, or, if the stamp is empty, if there is none.

        Returns:
            Its new stamp; ``None`` where the condition did not hold.
        """
        bucket, key = bucket_and_key(path)
        new = self._client.put(bucket, key, content, stamp)
        if new is None:
            # A request that was repeated because nobody answered it may have met what it wrote itself.
            found = self._client.read(bucket, key)
            if found is not None and found[0] == content:
                return found[1]
        return new

    def remove(self, paths: Sequence[str], stamp: str = "") -> None:
        """Remove objects; with ``stamp``, only if they still have it."""
        for bucket in dict.fromkeys(bucket_and_key(path)[0] for path in paths):
            keys = [key for of, key in map(bucket_and_key, paths) if of == bucket]
            self._client.delete(bucket, keys, stamp)

    def remove_tree(self, path: str) -> None:
        """Remove all objects below a folder."""
        self.remove([info.path for info in self.tree(path)])

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of an object's content, in hex."""
        found = self.describe(path)
        if found is None:
            raise StorageError(f"{path}: cannot be read: there is no such object")
        digest = hashlib.sha256()
        for piece in self._pieces(found):
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(self, found: FileInfo) -> Iterator[bytes]:
        file = RangeFile(self._getter(found.path, found.stamp), found.size_bytes)
        # As many at a time as the streams that a long read is cut into.
        while piece := file.read(4 * PIECE_BYTES):
            yield piece

    def _getter(self, path: str, stamp: str) -> Callable[[int, int], bytes]:
        bucket, key = bucket_and_key(path)

        def get(start: int, stop: int) -> bytes:
            try:
                return self._client.get(bucket, key, start, stop, stamp)
            except (RefusedError, FileNotFoundError) as e:
                if not stamp:
                    raise FileNotFoundError(path) from e
                raise ShardChangedError(
                    f"{path}: it was replaced or removed since it was listed; run again to plan anew"
                ) from e

        return get

    def _known(self, path: str, size_bytes: int | None, stamp: str) -> tuple[int, str]:
        if size_bytes is not None:
            return size_bytes, stamp
        found = self._head(path)
        if found is None:
            raise FileNotFoundError(path)
        return found.size_bytes, found.stamp

    def source(self, path: str, size_bytes: int | None, stamp: str) -> Any:
        """Return an object as a file for pyarrow."""
        size_bytes, stamp = self._known(path, size_bytes, stamp)
        return RangeFile(self._getter(path, stamp), size_bytes)

    def footer(self, path: str, size_bytes: int | None, stamp: str) -> Any:
        """Return the end of a Parquet object, which holds its footer, as a file for pyarrow."""
        # Only here: what reads no Parquet should not wait for Arrow.
        import pyarrow as pa

        size_bytes, stamp = self._known(path, size_bytes, stamp)
        return pa.BufferReader(read_footer(self._getter(path, stamp), size_bytes, stamp and path + stamp))

    def copied(self, path: str, target: str) -> Copied:
        """Copy an object, or all below a folder, to a local file or folder; see ``storage.copied``."""
        every = self._every(path)
        if not every:
            raise StorageError(f"{path}: cannot be read: there is no such object")
        digests = {}
        for info in every:
            name = info.path.removeprefix(path).lstrip("/")
            file = f"{target}/{name}" if name else target
            try:
                digests[name] = copy_to(file, self._pieces(info))
            except OSError as e:
                raise StorageError(f"{info.path}: cannot be copied to {file}: {reason(e)}") from e
        return Copied(digests, (), _state_of(every))

    def state(self, path: str) -> str:
        """Return a text that changes whenever an object, or an object below a folder, does."""
        return _state_of(self._every(path))

    def _every(self, path: str) -> list[FileInfo]:
        found = self.describe(path)
        return [found] if found else self.tree(path)

    def create(self, path: str, final: str) -> ObjectSink:
        """Begin an object, see ``storage.create``."""
        opened = bool(final) and self._client.keeps_uploads
        target = final if opened else path
        return ObjectSink(self._client, target, *bucket_and_key(target), stays_open=opened)

    def held_bytes(self, handle: str) -> int | None:
        """Return the size of a sealed object in bytes; ``None`` if it is gone."""
        bucket, key = bucket_and_key(handle)
        if token := token_of(handle):
            return self._client.held_bytes(bucket, key, token)
        found = self._client.head(bucket, key)
        return None if found is None else found.size_bytes

    def is_readable(self, handle: str) -> bool:
        """Say whether a sealed object can be read before it is released."""
        return not token_of(handle)

    def fits(self, handle: str, folder: str, final: str) -> bool:
        """Say whether a handle is that of an upload to ``final``, or of an object below ``folder``."""
        return path_of(handle) == final if token_of(handle) else handle.startswith(f"{folder}/")

    def release(self, handle: str, final: str) -> None:
        """Finish an upload, or copy an object to its final name; a copy's source goes with the staging."""
        if token := token_of(handle):
            self._client.finish(*bucket_and_key(final), token)
        else:
            self._client.copy(*bucket_and_key(handle), *bucket_and_key(final))

    def discard(self, handle: str) -> None:
        """Remove a sealed object or its upload."""
        if token := token_of(handle):
            self._client.abort(*bucket_and_key(handle), token.partition(",")[0])
        else:
            self.remove([handle])

    def sweep(self, folder: str, keep: Callable[[], Collection[str]]) -> None:
        """Give up the uploads below ``folder`` that nobody will finish."""
        bucket, key = bucket_and_key(folder)
        opened = self._client.open_uploads(bucket, folder_prefix(key))
        kept = {(bucket_and_key(handle)[1], token_of(handle)) for handle in (keep() if opened else ())}
        for of, upload_id in opened:
            if not any(of == other and token.startswith(upload_id) for other, token in kept):
                self._client.abort(bucket, of, upload_id)


# Reading an object.

# One stream of a store gives some 50 to 100 MB/s; longer reads are cut into several.
PIECE_BYTES: Final = 8 << 20
_STREAMS: Final = 16
# Holds the footer of most shards, in one request.
FOOTER_BYTES: Final = 16 << 10
_FOOTER_END_BYTES: Final = 8


@cache
def _range_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_STREAMS, thread_name_prefix="range")


class RangeFile(io.RawIOBase):
    """A file of ``size_bytes`` bytes; ``get(start, stop)`` returns those from ``start`` to ``stop``."""

    def __init__(self, get: Callable[[int, int], bytes], size_bytes: int) -> None:
        super().__init__()
        self._get, self._size, self._at = get, size_bytes, 0
        self._keeping = False
        self._kept: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte and return its number."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        """Return the number of the next byte."""
        return self._at

    def size(self) -> int:
        """Return the file's size in bytes."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, several pieces at a time where they are many."""
        stop = self._size if size < 0 else min(self._at + size, self._size)
        start, self._at = self._at, max(self._at, stop)
        if stop <= start:
            return b""
        for at, piece in self._kept:
            if at <= start and stop <= at + len(piece):
                return piece[start - at : stop - at]
        content = self._fetched(start, stop)
        if self._keeping:
            self._kept.append((start, content))
        return content

    def _fetched(self, start: int, stop: int) -> bytes:
        if stop - start <= PIECE_BYTES:
            return self._get(start, stop)
        starts = range(start, stop, PIECE_BYTES)
        return b"".join(_range_pool().map(lambda at: self._get(at, min(at + PIECE_BYTES, stop)), starts))

    def keep(self, keeping: bool) -> None:
        """Choose whether what is read from now on is kept in memory, so that it is not fetched again."""
        self._keeping = keeping

    @property
    def keeps(self) -> bool:
        """Say whether something is kept."""
        return bool(self._kept)

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept = []


# Footers that this process has read. Where the launcher scores as well, a split begins with the footer that
# was read for the plan. Each has up to ``FOOTER_BYTES``; larger ones are not kept.
_MOST_FOOTERS: Final = 256
_footers: OrderedDict[str, bytes] = OrderedDict()
_footers_lock = threading.Lock()


def read_footer(get: Callable[[int, int], bytes], size_bytes: int, state: str = "") -> bytes:
    """Return the end of a Parquet file, from its footer on; less if it is no Parquet file.

    Parquet ends with its footer, the footer's length in 4 bytes, and ``PAR1``
    (https://parquet.apache.org/docs/file-format). ``state`` names the file in one state: the footers of the
    last ``_MOST_FOOTERS`` states are not fetched again.
    """
    with _footers_lock:
        if state in _footers:
            _footers.move_to_end(state)
            return _footers[state]
    end = _fetch_footer(get, size_bytes)
    if state and len(end) <= FOOTER_BYTES:
        with _footers_lock:
            _footers[state] = end
            while len(_footers) > _MOST_FOOTERS:
                _footers.popitem(last=False)
    return end


def _fetch_footer(get: Callable[[int, int], bytes], size_bytes: int) -> bytes:
    start = max(0, size_bytes - FOOTER_BYTES)
    end = get(start, size_bytes) if size_bytes else b""
    length = int.from_bytes(end[-_FOOTER_END_BYTES:-4], "little") + _FOOTER_END_BYTES
    if end[-4:] == b"PAR1" and len(end) < length <= size_bytes:
        end = get(size_bytes - length, start) + end
    return end


# Writing an object. S3 takes at most 10,000 parts of an upload, and only the last may be below 5 MiB.
PART_BYTES: Final = 8 << 20
_PARTS_OF_A_SIZE: Final = 1000


class ObjectSink:
    """A new object: sent in one request if it is small, else in parts.

    It holds up to two parts in memory, and nobody sees it before it is sealed. With ``stays_open`` nobody
    sees it before somebody finishes its upload: that publishes it, by one request whatever its size.
    """

    def __init__(self, client: Client, path: str, bucket: str, key: str, *, stays_open: bool) -> None:
        self._client, self._path, self._bucket, self._key = client, path, bucket, key
        self._stays_open = stays_open
        self._buffer = bytearray()
        self._upload: Upload | None = None
        self._parts = 0
        self._handle = ""

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes."""
        self._buffer += data
        while len(self._buffer) >= (size := self._part_bytes()):
            with memoryview(self._buffer) as view:
                content = bytes(view[:size])
            del self._buffer[:size]
            self._send(content)
        return len(data)

    def flush(self) -> None:
        """Do nothing: a part is sent when it is large enough."""

    def seal(self) -> str:
        """Send the rest and return the handle: the path, or the handle of an upload that stays open."""
        # Once: of an upload that stays open, what is left would be sent as one more part.
        self._handle = self._handle or self._send_rest()
        return self._handle

    def _send_rest(self) -> str:
        content = bytes(self._buffer)
        if self._upload is None and not self._stays_open:
            self._client.put(self._bucket, self._key, content, None)
            return self._path
        if content or not self._parts:
            self._send(content)
        if self._upload is not None and self._stays_open:
            return handle_of(self._path, self._upload.token())
        if self._upload is not None:
            self._upload.finish()
        return self._path

    def abandon(self) -> None:
        """Give the object up; a sealed one stays."""
        if self._upload is not None and not self._handle:
            # The error that led here says more; `job clean` removes what stays behind.
            with suppress(JobError):
                self._upload.abort()

    def _part_bytes(self) -> int:
        return PART_BYTES << (self._parts // _PARTS_OF_A_SIZE)

    def _send(self, content: bytes) -> None:
        if self._upload is None:
            self._upload = self._client.upload(self._bucket, self._key)
        self._upload.part(content)
        self._parts += 1
