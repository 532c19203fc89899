"""Which files an ``--input`` value names."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from job import storage
from job.errors import NoInputError, StorageError, UsageError


def listing(pattern: str) -> list[storage.FileInfo]:
    """Return the files that one ``--input`` value names, sorted by path.

    A value is a file, a folder (searched to any depth), a glob (``**`` crosses
    folders), or ``@list.txt`` with one of these per line. Names that begin with ``_`` or
    ``.`` below the folder or glob are skipped, as Spark, Hive and Arrow do.

    Raises:
        NoInputError: nothing matches.
        UsageError: the list or the path cannot be read.
    """
    if pattern.startswith("@"):
        return [info for line in _lines(pattern[1:]) for info in listing(line)]
    target = storage.local(pattern)
    # A name that exists is that name, even where it holds a glob's characters.
    literal = os.path.lexists(target) or not glob.has_magic(target)
    matches = [target] if literal else filter(_shown_by(target), glob.iglob(target, recursive=True))
    found = {info.path: info for match in matches for info in _walk(match)}
    if not found:
        raise NoInputError(f"--input={pattern}: no file matches; give a file, a folder, a glob or @list.txt")
    return [found[path] for path in sorted(found)]


def _shown_by(pattern: str) -> Callable[[str], bool]:
    """Return whether a glob's match has no hidden part but those that the glob itself spells out."""
    spelled = set(pattern.split("/"))
    return lambda match: not any(p.startswith(("_", ".")) and p not in spelled for p in match.split("/"))


def _lines(path: str) -> list[str]:
    try:
        text = Path(storage.local(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"--input=@{path}: the list cannot be read: {storage.reason(e)}") from e
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise NoInputError(f"--input=@{path}: the list names no file")
    return lines


def _walk(top: str) -> Iterator[storage.FileInfo]:
    try:
        status = os.stat(top)
    except FileNotFoundError:
        return
    except OSError as e:
        raise StorageError(f"{top}: cannot be read: {storage.reason(e)}") from e
    if not stat.S_ISDIR(status.st_mode):
        yield storage.FileInfo(os.path.normpath(top), status.st_size, str(status.st_mtime_ns), "")
        return
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as e:
            raise StorageError(f"{folder}: cannot be listed: {storage.reason(e)}") from e
        for entry in entries:
            if entry.name.startswith(("_", ".")):
                continue
            if entry.is_dir():
                pending.append(entry.path)
                continue
            status = entry.stat()
            yield storage.FileInfo(os.path.normpath(entry.path), status.st_size, str(status.st_mtime_ns), top)
