"""Refuses input folders that belong to a table format: Delta, Iceberg, Hudi, or a Spark stream's output.

A table's log says which of its files hold live rows. Files with deleted or replaced rows stay in the folder
for readers of older versions. Scoring all files would score deleted rows, and some rows twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from job import storage
from job.errors import DeniedError, UsageError
from job.storage.disk import FileInfo

_ICEBERG: Final = "metadata"
# What a table of each kind has in its folder. An Iceberg table's is a common word: see ``_is_iceberg``.
_MARKS: Final[Mapping[str, str]] = {
    "_delta_log": "a Delta table",
    ".hoodie": "a Hudi table",
    "_spark_metadata": "what a Spark stream writes",
    _ICEBERG: "an Iceberg table",
}
_ICEBERG_ENDINGS: Final = (".metadata.json", ".metadata.json.gz")


class SeenFolders:
    """What listings of buckets have shown of folders, so that these are not listed again."""

    def __init__(self) -> None:
        self._listed: list[str] = []
        self._tables: dict[str, str] = {}

    def add(self, path: str) -> None:
        """Note an object; its name may show that it is part of a table's log."""
        for mark in _MARKS:
            folder, found, rest = path.partition(f"/{mark}/")
            if found and (mark != _ICEBERG or _is_iceberg([rest])):
                self._tables.setdefault(folder, _MARKS[mark])

    def has_all(self, start: str) -> None:
        """Note that all objects whose paths begin with ``start`` were added."""
        self._listed.append(start)

    def kind(self, folder: str) -> str | None:
        """Return the kind of table that a folder is, empty if it is none; ``None`` if it was not listed."""
        if folder in self._tables:
            return self._tables[folder]
        return "" if any(f"{folder}/".startswith(start) for start in self._listed) else None


def check(files: Iterable[FileInfo], real: Mapping[str, str], seen: SeenFolders) -> None:
    """Refuse files that lie in a table, at any depth.

    Files that were named one by one are accepted: somebody may have asked the table which ones are live. Each
    folder around the others is looked at once.

    Args:
        files: those that the inputs name.
        real: their paths without links.
        seen: what the listings have shown.

    Raises:
        UsageError: a folder around one of them is a table.
        StorageError: a folder cannot be looked at.
    """
    found = [info.path for info in files if not info.named]
    folders = sorted(_around({*found, *(real[path] for path in found)}))
    unknown = [folder for folder in folders if seen.kind(folder) is None]
    kinds = {folder: seen.kind(folder) or "" for folder in folders}
    far = [folder for folder in unknown if storage.is_remote(folder)]
    kinds |= zip(far, storage.parallel(_kind, far, name="tables"), strict=True)
    kinds |= {folder: _kind(folder) for folder in {*unknown}.difference(far)}
    table = next((folder for folder in folders if kinds[folder]), None)
    if table is not None:
        raise UsageError(
            f"--input: {table} is {kinds[table]}, whose files hold deleted and replaced rows too, and these "
            f"would be scored; export its live rows to a folder of their own, or name its live files in "
            f"--input=@list.txt"
        )


def _around(paths: Iterable[str]) -> set[str]:
    """Return every folder around some files; in a bucket, the bucket is the outermost."""
    found: set[str] = set()
    for path in paths:
        folder = storage.parent(path)
        while folder and not folder.endswith(":/") and folder not in found:
            found.add(folder)
            folder = storage.parent(folder)
    return found


def _kind(folder: str) -> str:
    try:
        for mark in storage.holds(folder, _MARKS):
            if mark != _ICEBERG or _is_iceberg(storage.names(storage.join(folder, mark))):
                return _MARKS[mark]
    except DeniedError:
        # Without permission to see more than the input's own folder, that folder was granted, and no table.
        return ""
    return ""


def _is_iceberg(names: Iterable[str]) -> bool:
    """Say whether a folder called ``metadata`` that holds these names is part of an Iceberg table."""
    return any(name.endswith(_ICEBERG_ENDINGS) for name in names)
