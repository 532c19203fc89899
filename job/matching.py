"""Which objects of a bucket an ``--input`` value names: the rules of ``job.listing``, of keys."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator

from job import buckets, objects, storage
from job.files import FileInfo

_MAGIC = re.compile(r"[*?[]")


def matches(pattern: str) -> list[FileInfo]:
    """Return the objects that a value names: an object, a folder (to any depth), or a glob of either."""
    path = storage.absolute(pattern)
    if (found := storage.describe(path)) is not None:
        # A name that exists is that name, even where it holds a glob's characters.
        return [found]
    if inside := list(_shown(path, re.escape(path), path)):
        return inside
    return list(_shown(_literal(path), _expression(path), "")) if glob.has_magic(path) else []


def _literal(path: str) -> str:
    """Return what all paths that a glob matches begin with."""
    magic = _MAGIC.search(path)
    return path[: magic.start()] if magic else path


def _shown(start: str, expression: str, root: str) -> Iterator[FileInfo]:
    """Yield the objects that begin with ``start`` and match, or lie below what matches.

    What comes behind the match must not be hidden: no part of it begins with ``_`` or ``.``.
    """
    bucket, prefix = buckets.bucket_and_key(start)
    store = objects.store(start.partition("://")[0])
    matching = re.compile(f"(?:{expression})(?P<below>(?:/[^_./][^/]*)*)", re.DOTALL)
    for one in store.beginning(bucket, f"{prefix}/" if root and prefix else prefix):
        path = f"{start.partition('://')[0]}://{bucket}/{one.key}"
        found = matching.fullmatch(path)
        if found:
            top = root or (path[: found.start("below")] if found["below"] else "")
            yield FileInfo(path, one.size_bytes, one.stamp, top, one.modified_unix_s)


def _expression(path: str) -> str:
    """Return a regular expression for the paths that a glob matches; only ``**`` crosses a ``/``.

    A wildcard at the beginning of a name matches no hidden one, as in a shell.
    """
    scheme, _, rest = path.partition("://")
    parts = [_part(part) for part in rest.split("/")]
    return re.escape(f"{scheme}://") + "/".join(parts).replace(f"{_ANY}/", f"(?:{_ANY}/)?").replace("\0", "")


_ANY = "\0(?:[^_./][^/]*(?:/[^_./][^/]*)*)"


def _part(part: str) -> str:
    if part == "**":
        return _ANY
    found, at = "", 0
    while at < len(part):
        char = part[at]
        closing = part.find("]", at + 2) if char == "[" else -1
        if char == "*":
            found += "[^/]*"
        elif char == "?":
            found += "[^/]"
        elif closing > 0:
            inner = part[at + 1 : closing].replace("\\", "\\\\")
            found += f"[{'^' + inner[1:] if inner.startswith('!') else inner}]"
            at = closing
        else:
            found += re.escape(char)
        at += 1
    return f"(?![_.]){found}" if part[:1] in ("*", "?", "[") else found
