"""Which files an ``--input`` value names."""

from __future__ import annotations

import glob
import heapq
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from job import storage
from job.errors import NoInputError, ShardError, StorageError, UsageError
from job.shards.tables import SeenFolders
from job.storage import matching


def listing(pattern: str, seen: SeenFolders | None = None) -> list[storage.FileInfo]:
    """Return the files that one ``--input`` value names, sorted by path.

    A value is a file, a folder (searched to any depth), a glob (``**`` crosses folders), or ``@list.txt``
    with one of these per line. Relative paths, those in a list too, start at the working directory. Names
    that begin with ``_`` or ``.`` below the folder or glob are skipped, as Spark, Hive and Arrow do. ``seen``
    notes what else a bucket's listing shows of their folders.

    Raises:
        NoInputError: nothing matches.
        UsageError: the list cannot be read, or names a list.
        StorageError: a folder cannot be searched.
        ShardError: a link leads nowhere.
    """
    if pattern.startswith("@"):
        return [info for line in _lines(pattern[1:]) for info in listing(line, seen)]
    if storage.is_remote(pattern):
        found = {info.path: info for info in matching.matches(pattern, seen)}
        return _some(found, pattern)
    target = storage.local(pattern)
    # A name that exists is that name, even where it holds a glob's characters.
    literal = os.path.lexists(target) or not glob.has_magic(target)
    matches = [target] if literal else filter(_shown_by(target), glob.iglob(target, recursive=True))
    found = {info.path: info for match in matches for info in _walk(match)}
    if literal and target in found:
        found[target] = replace(found[target], named=True)
    return _some(found, pattern)


def _some(found: dict[str, storage.FileInfo], pattern: str) -> list[storage.FileInfo]:
    if not found:
        raise NoInputError(f"--input={pattern}: no file matches; give a file, a folder, a glob or @list.txt")
    return [found[path] for path in sorted(found)]


def _shown_by(pattern: str) -> Callable[[str], bool]:
    """Return a test whether all hidden names in a match are spelled out by the glob itself."""
    spelled = set(pattern.split("/"))
    return lambda match: not any(p.startswith(("_", ".")) and p not in spelled for p in match.split("/"))


def _lines(path: str) -> list[str]:
    try:
        content = storage.read_bytes(path)
        text = (content or b"").decode()
    except (StorageError, UnicodeDecodeError) as e:
        raise UsageError(f"--input=@{path}: the list cannot be read: {e}") from e
    if content is None:
        raise UsageError(f"--input=@{path}: the list cannot be read: No such file")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise NoInputError(f"--input=@{path}: the list names no file")
    if within := next((line for line in lines if line.startswith("@")), None):
        raise UsageError(f"--input=@{path}: it names the list {within}; give that as another --input")
    return [storage.absolute(line) for line in lines]


def _walk(top: str) -> Iterator[storage.FileInfo]:
    try:
        status = os.stat(top)
    except FileNotFoundError:
        if os.path.islink(top):
            raise _dangling(top) from None
        return
    except OSError as e:
        raise StorageError(f"{top}: cannot be read: {storage.reason(e)}") from e
    if stat.S_ISDIR(status.st_mode):
        yield from _walk_folder(top)
    else:
        yield _info(top, status, "")


def _walk_folder(top: str) -> Iterator[storage.FileInfo]:
    """Yield the files below a folder. A folder that several paths lead to is searched once.

    Linked folders come last, in the order of their names. So a folder is found by its own path first, and the
    paths, which shape the run's id, are the same each time.
    """
    folders, links = [top], list[str]()
    seen: dict[tuple[int, int], str] = {}
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            status = os.stat(folder)
            # A link may lead back to a folder around it.
            first = seen.setdefault((status.st_dev, status.st_ino), folder)
            if first != folder:
                _check_same_hive_folders(first, folder)
                continue
            entries = list(os.scandir(folder))
        except OSError as e:
            raise StorageError(f"{folder}: cannot be listed: {storage.reason(e)}") from e
        for entry in entries:
            if entry.name.startswith(("_", ".")):
                continue
            status = _status(entry)
            if not stat.S_ISDIR(status.st_mode):
                yield _info(entry.path, status, top)
            elif entry.is_symlink():
                heapq.heappush(links, entry.path)
            else:
                folders.append(entry.path)


def _check_same_hive_folders(first: str, second: str) -> None:
    """Refuse a folder with two Hive values: its rows would be scored with only one of them."""
    of_first, of_second = ([part for part in path.split("/") if "=" in part] for path in (first, second))
    if of_second and of_first != of_second:
        raise UsageError(
            f"--input: {second} and {first} are one folder under two Hive names; take one out of the input"
        )


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except FileNotFoundError as e:
        if entry.is_symlink():
            raise _dangling(entry.path) from e
        raise StorageError(f"{entry.path}: went away while it was listed; run again") from e
    except OSError as e:
        raise StorageError(f"{entry.path}: cannot be read: {storage.reason(e)}") from e


def _dangling(path: str) -> ShardError:
    return ShardError(f"{path}: a link to {os.readlink(path)}, which is not there; mend or remove the link")


def _info(path: str, status: os.stat_result, root: str) -> storage.FileInfo:
    return storage.FileInfo(
        os.path.normpath(path),
        status.st_size,
        str(status.st_mtime_ns),
        root,
        status.st_mtime_ns / 1e9,
        file_id=(status.st_dev, status.st_ino),
    )
