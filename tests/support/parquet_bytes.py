"""Which bytes of a Parquet file must be read, as pyarrow's own metadata tells, and which a job fetched."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.scoring.reader import SplitReader
from job.spec import Shard, Split
from tests.support.remote_store import Remote

_names = (f"shard{number}.parquet" for number in itertools.count())
Range = tuple[int, int]
# The footer's length and PAR1.
END_BYTES = 8
# Arrow reads over what is smaller than this rather than ask twice.
HOLE_BYTES = 8 << 10


@dataclass(frozen=True)
class Needed:
    """What reading these columns of these row groups takes."""

    path: Path
    groups: tuple[int, ...]
    columns: frozenset[str]

    @property
    def metadata(self) -> pq.FileMetaData:
        return pq.read_metadata(self.path)

    @property
    def rows(self) -> int:
        return sum(self.metadata.row_group(group).num_rows for group in self.groups)

    @property
    def footer_bytes(self) -> int:
        return int(self.metadata.serialized_size) + END_BYTES

    @property
    def ranges(self) -> list[Range]:
        """The column chunks, dictionaries included, in the order of the file; those that touch are one."""
        return joined(range_ for group in self.groups for range_ in self._chunks(group))

    def _chunks(self, number: int) -> list[Range]:
        group, found = self.metadata.row_group(number), []
        for column in (group.column(i) for i in range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in self.columns:
                start = column.dictionary_page_offset or column.data_page_offset
                found.append((start, start + column.total_compressed_size))
        return found

    @property
    def data_bytes(self) -> int:
        return length(self.ranges)

    @property
    def allowed(self) -> list[Range]:
        """The same with what is not worth a request of its own."""
        return joined(self.ranges, HOLE_BYTES)


def length(ranges: Iterable[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def joined(ranges: Iterable[Range], hole_bytes: int = 0) -> list[Range]:
    """The ranges in order, those as one between which there is no more than this."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start - found[-1][1] <= hole_bytes:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def overlaps(ranges: Sequence[Range]) -> int:
    """How many bytes are in these more than once."""
    return length(ranges) - length(joined(ranges))


def within(inner: Iterable[Range], outer: Sequence[Range]) -> bool:
    """Whether no byte of the inner ones is outside of the outer ones, which touch nowhere."""
    return all(
        any(first <= start and stop <= last for first, last in outer) for start, stop in inner if start < stop
    )


@dataclass(frozen=True)
class Placed:
    """A shard on the disk, as the oracle reads it, and in the bucket."""

    bucket: Remote
    path: Path
    shard: Shard

    def split(self, groups: Sequence[int] | None = None) -> Split:
        every = tuple(range(pq.read_metadata(self.path).num_row_groups))
        some = every if groups is None else tuple(groups)
        return Split("a", self.shard, some, 0, self.needed(some, ()).rows)

    def needed(self, groups: Sequence[int], columns: Sequence[str]) -> Needed:
        return Needed(self.path, tuple(groups), frozenset(columns))

    @property
    def asked(self) -> list[Range]:
        """The ranges that were asked for, in the order of arrival, and fetched."""
        found = []
        for one in self.bucket.settled(self.path.name):
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", one.range)
            assert match, one
            found.append((int(match[1]), int(match[2]) + 1))
            assert (one.status, one.response_bytes) == (206, found[-1][1] - found[-1][0])
        return found

    def values(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return pq.ParquetFile(self.path).read_row_groups(list(groups), list(columns))


def place(bucket: Remote, folder: Path, table: pa.Table, **layout: Any) -> Placed:
    path = folder / next(_names)
    pq.write_table(table, path, **layout)
    bucket.bucket.put(path.name, path.read_bytes())
    found = storage.describe(bucket.path(path.name))
    assert found is not None
    bucket.way.proxy.reset()
    return Placed(bucket, path, Shard(found.path, found.size_bytes, found.stamp))


def read(split: Split, columns: Sequence[str], keys: Sequence[str] = (), chunk_rows: int = 8192) -> pa.Table:
    with SplitReader(split) as reader, closing(reader.chunks(columns, keys, chunk_rows)) as chunks:
        return pa.Table.from_batches(list(chunks))
