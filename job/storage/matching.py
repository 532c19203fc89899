"""Which objects of a bucket an ``--input`` value names, by the rules of ``job.shards.listing``."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from job import storage
from job.errors import ShardError, UsageError
from job.storage import buckets, objects
from job.storage.disk import FileInfo

_HIDDEN = ("_", ".")


class Seen(Protocol):
    """Notes what a listing shows."""

    def add(self, path: str) -> None:
        """Note an object."""

    def has_all(self, start: str) -> None:
        """Note that all objects whose paths begin with ``start`` were added."""


def matches(pattern: str, seen: Seen | None = None) -> list[FileInfo]:
    """Return the objects that a value names: one object, all below a folder, or what a glob matches.

    ``seen`` notes what else is listed of their folders.

    Raises:
        UsageError: the bucket's name is a glob.
        ShardError: an object is named that no path leads to.
    """
    path = storage.absolute(pattern)
    if glob.has_magic(buckets.bucket_and_key(path)[0]):
        raise UsageError(
            f"{pattern}: the bucket's name is a glob; name each bucket with an --input of its own"
        )
    if (found := storage.describe(path)) is not None:
        # A name that exists is that name, even where it holds a glob's characters.
        return [replace(found, named=True)]
    inside = list(_beginning(f"{path}/", seen))
    if inside or not glob.has_magic(path):
        shown = [info for info in inside if not _hides(info.path.removeprefix(f"{path}/").split("/"))]
        return [_reachable(replace(info, root=path)) for info in shown]
    wanted = _Glob(path)
    named = [(info, wanted.root(info.path)) for info in _beginning(_literal(path), seen)]
    return [_reachable(replace(info, root=root)) for info, root in named if root is not None]


def _literal(path: str) -> str:
    """Return the beginning that all matches of a glob share."""
    return re.split(r"[*?[]", path, maxsplit=1)[0]


def _beginning(start: str, seen: Seen | None) -> Iterator[FileInfo]:
    bucket, prefix = buckets.bucket_and_key(start)
    scheme = start.partition("://")[0]
    for one in objects.store(scheme).beginning(bucket, prefix):
        path = f"{scheme}://{bucket}/{one.key}"
        if seen is not None:
            seen.add(path)
        yield FileInfo(path, one.size_bytes, one.stamp, "", one.modified_unix_s)
    if seen is not None:
        seen.has_all(start)


def _hides(names: Sequence[str]) -> bool:
    return any(name.startswith(_HIDDEN) for name in names)


def _reachable(info: FileInfo) -> FileInfo:
    """Refuse an object with an empty name in its path; left out, its rows would be missing unnoticed."""
    if storage.absolute(info.path) != info.path:
        raise ShardError(
            f"{info.path}: a name in its path is empty, which no folder can have; rename the object"
        )
    return info


class _Glob:
    """A glob, with the rules of ``glob.iglob(recursive=True)``. Names are compared one by one."""

    def __init__(self, path: str) -> None:
        self._parts = path.partition("://")[2].split("/")
        self._spelled = set(self._parts)
        self._names = [re.compile(fnmatch.translate(part)) for part in self._literally(self._parts)]
        self._end = len(self._parts)

    @staticmethod
    def _literally(parts: Sequence[str]) -> Iterator[str]:
        return (part if glob.has_magic(part) else glob.escape(part) for part in parts)

    def root(self, path: str) -> str | None:
        """Return the folder that the glob matches and that ``path`` lies below; "" if it matches ``path``.

        Return ``None`` if neither is so. Hidden names match only where the glob spells them out, and below a
        matched folder they never do. Of several folders it is the innermost, as on a disk.
        """
        names = path.partition("://")[2].split("/")
        for length in sorted(self._lengths(names), reverse=True):
            matched, below = names[:length], names[length:]
            if not _hides([name for name in matched if name not in self._spelled]) and not _hides(below):
                return f"{path.partition('://')[0]}://{'/'.join(matched)}" if below else ""
        return None

    def _lengths(self, names: Sequence[str]) -> Iterator[int]:
        """Yield how many of the names, from the first on, are a match: all of a file, some of a folder."""
        # Parts of the glob that may be next; ``**`` may be nothing, so that the one behind it may be as well.
        ready = self._passing({0})
        for length, name in enumerate(names, 1):
            reached = {after for part in ready if part < self._end for after in self._after(part, name)}
            ready = self._passing(reached)
            # Only a folder is matched by a ``**`` that is nothing.
            if self._end in (reached if length == len(names) else ready):
                yield length

    def _passing(self, ready: set[int]) -> set[int]:
        found = set(ready)
        for part in range(self._end):
            if part in found and self._parts[part] == "**":
                found.add(part + 1)
        return found

    def _after(self, part: int, name: str) -> tuple[int, ...]:
        pattern = self._parts[part]
        if glob.has_magic(pattern) and name.startswith(".") and not pattern.startswith("."):
            return ()
        if pattern == "**":
            return (part, part + 1)
        return (part + 1,) if self._names[part].match(name) else ()
