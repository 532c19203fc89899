"""Reads the files of a published night: some columns of them, and which row of a shard each row was."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from job import storage
from job.commit import manifest, output
from job.errors import DataError, StateUnknownError, StorageError, UsageError, check_not_passing, one_line
from job.scoring.rejects import EXTRA_COLUMNS

_BATCH_ROWS: Final = 262_144
# Of a bucket, whose every answer takes a while; each is held whole, in the columns that are wanted.
_FILES_AHEAD: Final = 4

Entry = Mapping[str, Any]


def night_of(folder: str) -> dict[str, Any]:
    """Return the manifest of a published night, with all that scoring its rows again needs.

    Raises:
        UsageError: nothing is published there, or by a version that noted too little.
        OutputConflictError: the manifest is none of this job's.
    """
    night = output.published(folder)
    if night is None:
        raise UsageError(f"{folder}: it holds no published night; without _SUCCESS there is nothing to read")
    if "feeds" not in (night.get("scoring") or {}):
        raise UsageError(f"{folder}: an older version of this job wrote it, whose manifest tells too little")
    manifest.check_shape(night, storage.join(folder, output.MANIFEST))
    return night


@dataclass(frozen=True)
class NightFiles:
    """A published night: its ``folder``, and its ``manifest``."""

    folder: str
    manifest: Mapping[str, Any]

    @classmethod
    def of(cls, folder: str) -> NightFiles:
        """Open what is published in a folder.

        Raises:
            UsageError: nothing is, or no rows, or by a version of the job that noted too little.
            OutputConflictError: the manifest is none of this job's.
        """
        night = night_of(folder)
        if not any(entry["rows"] for entry in night["files"]):
            raise UsageError(f"{folder}: the night that it holds has no rows")
        return cls(folder, night)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that were carried along."""
        return tuple(self.manifest["scoring"]["keys"])

    @property
    def predictions(self) -> tuple[str, ...]:
        """The columns that were predicted."""
        return tuple(self.manifest["scoring"]["predictions"])

    @property
    def entries(self) -> list[Entry]:
        """What the manifest tells of each file that holds rows."""
        return [entry for entry in self.manifest["files"] if entry["rows"]]

    @property
    def rows(self) -> int:
        """How many rows are published."""
        return sum(entry["rows"] for entry in self.entries)

    def schema(self) -> pa.Schema:
        """Return the columns of the first file, those of its Hive folders among them."""
        entry = self.entries[0]
        path = storage.join(self.folder, entry["path"])
        with _named(path):
            found = pq.read_schema(storage.footer_source(path)).remove_metadata()
        for name in entry["partition"]:
            if name not in found.names:
                found = found.append(pa.field(name, pa.string()))
        return found

    def tables(self, entry: Entry, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns of a file, about a row group at a time."""
        path = storage.join(self.folder, entry["path"])
        with _named(path), pq.ParquetFile(storage.parquet_source(path)) as file:
            names = file.schema_arrow.names
            absent = [name for name in columns if name not in names and name not in entry["partition"]]
            if absent:
                raise DataError(f"{path}: it lacks column {absent[0]}, which other files of this night have")
            for batch in file.iter_batches(_BATCH_ROWS, columns=[name for name in columns if name in names]):
                here = dict(zip(batch.schema.names, batch.columns, strict=True))
                for name in columns:
                    if name not in here:
                        here[name] = pa.repeat(pa.scalar(entry["partition"][name]), batch.num_rows)
                yield pa.table({name: here[name] for name in columns})

    def ahead(self, columns: Sequence[str]) -> Iterator[tuple[Entry, Iterable[pa.Table]]]:
        """Yield every file and these columns of it; of a bucket, the next ones are on their way meanwhile."""
        if not storage.is_remote(self.folder):
            for entry in self.entries:
                yield entry, self.tables(entry, columns)
            return
        left = iter(self.entries)
        with ThreadPoolExecutor(_FILES_AHEAD, thread_name_prefix="ahead") as pool:

            def begin(entries: Iterable[Entry]) -> list[tuple[Entry, Future[list[pa.Table]]]]:
                return [
                    (one, pool.submit(lambda one: list(self.tables(one, columns)), one)) for one in entries
                ]

            coming = deque(begin(islice(left, _FILES_AHEAD)))
            while coming:
                entry, reading = coming.popleft()
                tables = reading.result()
                coming += begin(islice(left, 1))
                yield entry, tables

    def shard_rows(self, entry: Entry) -> NDArray[np.int64]:
        """Return the shard's row number of each row of a file, ``(rows,) int64``."""
        first, rows = entry["first_row"], entry["split_rows"]
        every = np.arange(first, first + rows)
        if path := self._rejected.get(entry["path"]):
            with pq.ParquetFile(storage.parquet_source(storage.join(self.folder, path))) as file:
                # The extra columns come last; a shard may have columns of their names.
                extras = file.schema_arrow.names[-len(EXTRA_COLUMNS) :]
                column = file.read(columns=extras).column(extras[1])
            every = np.setdiff1d(every, column.to_numpy(), assume_unique=True)
        if len(every) != entry["rows"]:
            raise DataError(f"{entry['path']}: {entry['rows']} rows are published, {len(every)} were scored")
        return every

    @cached_property
    def _rejected(self) -> dict[str, str]:
        """By the name of a file of scored rows, that of those which its split rejected."""
        return {
            f"{one['path'].partition('/')[2].rpartition('.')[0]}.parquet": one["path"]
            for one in self.manifest["rejected_files"]
        }

    def check_same(self) -> None:
        """Check that it was not replaced while it was read.

        Raises:
            StateUnknownError: another night is there now, or none.
        """
        now = output.published(self.folder)
        if now is None or now["run_id"] != self.manifest["run_id"]:
            raise StateUnknownError(f"{self.folder}: the night was replaced while it was read; run again")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Raise what goes wrong in the body as an error that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as e:
        check_not_passing(e, path)
        raise StorageError(f"{path}: it cannot be read: {one_line(e)}") from e
