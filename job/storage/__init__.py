"""Files: local, ``gs://`` and ``s3://``. All other packages reach files through this package only.

Owns: paths, which are plain strings with ``/`` between the parts; reading and writing; ranges of objects,
retries, and requests sent in parallel. What a disk does is told in ``disk``, and what a bucket does in
``objects``; ``buckets`` is the interface of the stores behind it, with retries, and ``gcs`` and ``s3`` send
the requests.
Public: the functions below, as in ``storage.join(a, b)`` or ``storage.write_atomic(path, data)``;
``parallel`` makes one call for each of many files, ``together`` makes several different calls, and ``ahead``
begins one call and lets its caller go on. ``parallel`` uses threads for disks too, the others for buckets
only.
May import: ``errors``, ``spec``, ``secrets``. No Beam, no Keras.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from job.errors import UsageError
from job.storage import buckets, disk, objects
from job.storage.disk import Copied as Copied
from job.storage.disk import FileInfo as FileInfo
from job.storage.disk import boot_id as boot_id
from job.storage.disk import reason as reason

if TYPE_CHECKING:
    from job.storage.objects import ObjectStore
    from job.storage.sinks import Conditional, Sink

T = TypeVar("T")
R = TypeVar("R")


def is_remote(path: str) -> bool:
    """Say whether a path leads to an object store.

    Raises:
        UsageError: the path has a scheme that is not reached.
    """
    return _remote(path) is not None


def _remote(path: str) -> ObjectStore | None:
    scheme, separator, _ = path.partition("://")
    if not separator or scheme == "file":
        return None
    if scheme not in objects.SCHEMES:
        raise UsageError(
            f"{path}: the scheme {scheme}:// is not reached; use gs://, s3:// or a local path (a bucket that "
            f"is mounted is one)"
        )
    return objects.store(scheme)


def local(path: str) -> str:
    """Return a local path as the operating system wants it.

    Raises:
        UsageError: the path is not local.
    """
    if is_remote(path):
        raise UsageError(f"{path}: only a local path will do here")
    return disk.local(path)


def absolute(path: str) -> str:
    """Return a path that is the same file from every working directory, without ``/`` at its end."""
    if not is_remote(path):
        return os.path.abspath(disk.local(path))
    return buckets.normal(path)


def join(*parts: str) -> str:
    """Join path parts with ``/``; empty parts are left out."""
    scheme, separator, first = parts[0].rpartition("://")
    joined = "/".join([first.rstrip("/") or "/", *(part for part in parts[1:] if part)]).replace("//", "/")
    return f"{scheme}{separator}{joined}"


def parent(path: str) -> str:
    """Return the folder that a path is in."""
    return path.rpartition("/")[0]


def exists(path: str) -> bool:
    """Say whether a file or a folder is there."""
    store = _remote(path)
    return store.exists(path) if store else disk.exists(path)


def is_folder(path: str) -> bool:
    """Say whether ``path`` is a folder; in a bucket, whether objects lie below it."""
    store = _remote(path)
    return store.is_folder(path) if store else disk.is_folder(path)


def describe(path: str) -> FileInfo | None:
    """Return a file as a listing would show it now, or ``None`` where there is no such file."""
    store = _remote(path)
    return store.describe(path) if store else disk.describe(path)


def size_bytes(path: str) -> int | None:
    """Return a file's size, or ``None`` where there is no such file."""
    found = describe(path)
    return None if found is None else found.size_bytes


def tree(path: str) -> list[FileInfo]:
    """Return every file below a folder, hidden ones too, sorted by path; empty if it is absent."""
    store = _remote(path)
    return store.tree(path) if store else disk.tree(path)


def names(path: str) -> list[str]:
    """Return the sorted names in a folder; empty if it is absent."""
    store = _remote(path)
    return store.names(path) if store else disk.names(path)


def holds(path: str, names: Iterable[str]) -> list[str]:
    """Return which of these names a folder has in it; a bucket is asked once, or once for each name."""
    store = _remote(path)
    return store.holds(path, names) if store else disk.holds(path, names)


def read_bytes(path: str) -> bytes | None:
    """Return a small file's content, or ``None`` where there is no such file."""
    store = _remote(path)
    return store.read_bytes(path) if store else disk.read_bytes(path)


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    store = _remote(path)
    return store.sha256(path) if store else disk.sha256(path)


def parquet_source(path: str, size_bytes: int | None = None, stamp: str = "") -> Any:
    """Return a file in the form that pyarrow's Parquet readers take.

    Given ``size_bytes`` and ``stamp`` from a listing, an object is not asked for them again, and reading
    fails if it was replaced since.

    Raises:
        FileNotFoundError: there is no such object; a local file is not looked at yet.
    """
    store = _remote(path)
    return store.source(path, size_bytes, stamp) if store else disk.local(path)


def footer_source(path: str, size_bytes: int | None = None, stamp: str = "") -> Any:
    """Return a file in the form that pyarrow's readers of metadata take; an object costs one request.

    Raises:
        FileNotFoundError: there is no such object; a local file is not looked at yet.
    """
    store = _remote(path)
    return store.footer(path, size_bytes, stamp) if store else disk.local(path)


def copied(path: str, target: str) -> Copied:
    """Copy a file, or every file below a folder, to a local file or folder that is not there yet.

    Raises:
        StorageError: something cannot be read or written, or there is nothing to read in a bucket.
    """
    store = _remote(path)
    return store.copied(path, target) if store else disk.copied(path, target)


def state(path: str) -> str:
    """Return a text that changes whenever a file, or one below a folder, does; empty where nothing is."""
    store = _remote(path)
    return store.state(path) if store else disk.state(path)


def make_folder(path: str) -> None:
    """Make a folder and those above it; a bucket needs none.

    Raises:
        StorageError: the place cannot be written.
    """
    if not is_remote(path):
        disk.make_folder(path)


def create(path: str, final: str = "") -> Sink:
    """Begin a new file that nobody else has begun.

    Args:
        path: where it lies until it is published.
        final: the name that ``release`` publishes it under; without it, ``path`` is readable at once.

    Raises:
        StorageError: it cannot be written.
    """
    store = _remote(path)
    return store.create(path, final) if store else disk.LocalSink(path)


def held_bytes(handle: str) -> int | None:
    """Return the size of a sealed file in bytes; ``None`` if it is gone, perhaps released."""
    store = _remote(handle)
    return store.held_bytes(handle) if store else size_bytes(handle)


def is_readable(handle: str) -> bool:
    """Say whether a sealed file can be read before it is released."""
    store = _remote(handle)
    return store is None or store.is_readable(handle)


def fits(handle: str, folder: str, final: str) -> bool:
    """Say whether a handle can belong to a file that was written below ``folder`` to become ``final``."""
    store = _remote(handle)
    return store.fits(handle, folder, final) if store else handle.startswith(f"{folder}/")


def release(handle: str, final: str) -> None:
    """Give a sealed file its final name, replacing what had that name.

    Raises:
        StorageError: it failed; it can be repeated.
        FileNotFoundError: there is nothing (any more) to release.
    """
    store = _remote(final)
    if store:
        store.release(handle, final)
    else:
        disk.rename(handle, final)


def sweep(folder: str, keep: Callable[[], Collection[str]]) -> None:
    """Remove the invisible rest of files that were begun below ``folder`` and never released.

    ``keep`` returns the handles that somebody may still release.
    """
    store = _remote(folder)
    if store:
        store.sweep(folder, keep)


def write_atomic(path: str, content: bytes, *, durable: bool = True, aside: str | None = None) -> None:
    """Write a small file so that a reader sees all of it or none.

    ``durable`` and ``aside`` are for local files, see ``disk.write_atomic``; an object is always durable.
    """
    store = _remote(path)
    if store:
        store.write(path, content)
    else:
        disk.write_atomic(path, content, durable=durable, aside=aside)


def conditional(path: str) -> Conditional:
    """Return the writer of small JSON files on condition for the storage that ``path`` is on."""
    return _remote(path) or disk.ConditionalFiles()


def write_first(path: str, content: bytes) -> bool:
    """Write a small file, and say whether nobody else had written it before.

    In a bucket the first one stays and ``False`` is returned; a local file is replaced.
    """
    store = _remote(path)
    if store:
        return store.write_if(path, content, "") is not None
    disk.write_atomic(path, content, durable=False)
    return True


def sync_files(paths: Iterable[str]) -> None:
    """Flush files' contents to the disk, several at a time; objects are durable by themselves.

    Raises:
        StorageError: a file cannot be flushed.
    """
    disk.sync_files(path for path in paths if not is_remote(path))


def sync_folder(path: str) -> None:
    """Flush a folder's names to the disk, where the file system can."""
    if not is_remote(path):
        disk.sync_folder(path)


def sync_way(path: str) -> None:
    """Flush a folder's names to the disk, and the names of the folders above it.

    Raises:
        StorageError: one cannot be flushed.
    """
    if not is_remote(path):
        disk.sync_way(path)


def remove(path: str) -> None:
    """Remove a file, or a sealed file by its handle; nothing happens if there is none."""
    store = _remote(path)
    if store:
        store.discard(path)
    else:
        disk.remove(path)


def withdraw(paths: Sequence[str], folder: str) -> None:
    """Move files into ``folder``, to be removed with it; in a bucket remove them.

    The files are all on one kind of storage. Local files are moved in one step each, and only while
    ``folder`` is there.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: it failed.
    """
    if paths and (store := _remote(paths[0])):
        store.remove(paths)
    else:
        for path in paths:
            disk.withdraw(path, folder)


def remove_all(paths: Sequence[str]) -> None:
    """Remove files of one kind of storage, as ``remove`` does; objects many at a time."""
    if paths and (store := _remote(paths[0])):
        store.remove(paths)
    else:
        for path in paths:
            disk.remove(path)


def remove_tree(path: str) -> None:
    """Remove a folder and all below it; nothing happens where there is none."""
    store = _remote(path)
    if store:
        store.remove_tree(path)
    else:
        disk.remove_tree(path)


def remove_empty_folder(path: str) -> None:
    """Remove a folder if it is there and empty; a bucket has none."""
    if not is_remote(path):
        disk.remove_empty_folder(path)


def remove_empty_parents(path: str, top: str) -> None:
    """Remove the empty folders above ``path``, up to ``top``, which stays."""
    if not is_remote(path):
        disk.remove_empty_parents(path, top)


# Calls about several files are made at the same time, since each waits for its answer.

REQUESTS_AT_ONCE: Final = 32


def parallel(function: Callable[[T], R], items: Iterable[T], *, name: str) -> list[R]:
    """Call ``function`` for many files, several at a time, and return the results in order."""
    every = list(items)
    if len(every) < 2:
        # A thread takes longer to start than a small file to be read.
        return [function(one) for one in every]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix=name) as pool:
        return list(pool.map(function, every))


def ahead(path: str, call: Callable[[], T]) -> Callable[[], T]:
    """Begin a call in a thread if ``path`` is in a bucket; return a function that waits for its result.

    On a disk the call is made when that function is called.
    """
    if not is_remote(path):
        return call
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    result = pool.submit(call)
    pool.shutdown(wait=False)
    return result.result


def together(path: str, *calls: Callable[[], Any]) -> list[Any]:
    """Make all calls and return their results in order; in threads if ``path`` is in a bucket.

    On a disk the calls are made one after the other, and the first error ends them. In a bucket all are made,
    and the error of the first one that failed, in their order, is raised.
    """
    if not is_remote(path):
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls), thread_name_prefix="together") as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
