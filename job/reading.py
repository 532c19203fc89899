"""One split's rows as record batches: only the columns that are needed, a chunk at a time, one ahead."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job import fetching, planning, ranges, sizing, storage
from job.errors import DataError, ShardChangedError, ShardError, check_not_passing, one_line
from job.sizing import CHUNK_BYTES, data_bytes
from job.spec import Split

# Held per column while a row group is read.
COLUMN_BUFFER_BYTES = 128 << 10

# Of a row as it is read, unless the file holds at least a part of that.
MOST_ROW_BYTES = CHUNK_BYTES
MOST_EXPANSION = 1000
_LEAF_BYTES = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}

# What Arrow says of things that the format allows and Arrow cannot read back, and what a person can do.
_UNREADABLE = {
    "Nested data conversions not implemented": "Arrow cannot read this form of dictionary within a list or "
    "struct; write that column from a type without a dictionary, or with smaller row groups",
    "Expected all lists to be of size": "Arrow cannot read a fixed-size list column that holds a null list; "
    "write it as a list column of variable size",
}


class SplitReader:
    """Reads one split. ``read_s`` is seconds spent reading and decoding so far.

    When it is closed, the shard must still be what it was when it was opened: one that is written again
    meanwhile, in its place, gives rows of both, or looks damaged.

    Raises:
        ShardChangedError: it is not; instead of what such rows led to.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self.path = split.shard.path
        self.read_s = 0.0

    def __enter__(self) -> SplitReader:
        self._samples: dict[tuple[str, ...], sizing.Sample] = {}
        self._kept: ranges.RangeFile | None = None
        self._file = self._open()
        self._opened = [self._file]
        self.schema: pa.Schema = self._file.schema_arrow
        self._types = {field.name: field.type for field in self.schema}
        return self

    @functools.cached_property
    def whole_schema(self) -> pa.Schema:
        """Return the schema of :meth:`everything`: of columns of one name the later ones are numbered.

        Two columns ``n`` are ``n`` and ``n.2``, and so can be told apart by whoever reads them again.
        """
        taken = set(self.schema.names)
        seen: set[str] = set()
        fields = []
        for field in self.schema:
            name, number = field.name, 1
            while name in seen or (number > 1 and name in taken):
                number += 1
                name = f"{field.name}.{number}"
            seen.add(name)
            fields.append(field.with_name(name))
        return pa.schema(fields)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._opened:
            file.close()
        # What else may end the reading says nothing of the rows.
        if error is None or isinstance(error, ShardError | DataError):
            self._check_unchanged(error)

    def _check_unchanged(self, error: BaseException | None) -> None:
        shard = self._split.shard
        # A bucket compares the state with each request.
        if not storage.is_remote(shard.path) and self._state() != self._opened_in:
            raise ShardChangedError(
                f"{shard.path}: it was written again or removed while it was read; run again to plan anew"
            ) from error

    def _state(self) -> tuple[int, str, tuple[int, int] | None] | None:
        found = storage.describe(self._split.shard.path)
        return None if found is None else (found.size_bytes, found.stamp, found.file_id)

    def chunks(
        self, features: Sequence[str], keys: Sequence[str], chunk_rows: int
    ) -> Generator[pa.RecordBatch]:
        """Yield the split's rows in order, ``chunk_rows`` at a time, reading one chunk ahead in a thread.

        A feature that is a Hive folder's name is a column of one value. A key that is one is left out: the
        output lies below the same folder.

        Raises:
            ShardError: the shard is damaged.
            StorageError: reading it failed.
        """
        # Keys are left alone: they are published as the shard has them.
        repeating = self._sample(features, keys).repeating([name for name in features if name not in keys])
        yield from self._ahead(self._read(repeating, features, keys, chunk_rows), chunk_rows)

    def _ahead(self, chunks: Iterator[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.RecordBatch]:
        if self._split.rows <= chunk_rows:
            # There is nothing to read ahead, and a thread costs more than it could save.
            yield from chunks
            return
        with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
            pending = pool.submit(next, chunks, None)
            while (chunk := pending.result()) is not None:
                pending = pool.submit(next, chunks, None)
                yield chunk

    def everything(self) -> Iterator[pa.RecordBatch]:
        """Yield the split's rows again, in order, with every column of the file: :attr:`whole_schema`."""
        names = self.schema.names
        for batch in self._read((), (), names, sizing.chunk_rows((), 0, self.row_bytes((), names))):
            # Arrow finds columns by their leaves, and a struct without fields has none.
            found, fields = iter(batch.columns), list(self.whole_schema)
            columns = [next(found) if _has_leaf(f.type) else pa.nulls(batch.num_rows, f.type) for f in fields]
            yield pa.RecordBatch.from_arrays(columns, names=self.whole_schema.names)

    def row_bytes(self, features: Sequence[str], keys: Sequence[str]) -> int:
        """Return about how many bytes a row of these columns takes up once it is read; 0 of no rows."""
        return self._sample(features, keys).row_bytes()

    def _open(self) -> pq.ParquetFile:
        shard = self._split.shard
        try:
            if storage.is_remote(shard.path):
                # Each request says which state of the object it means.
                footer = pq.read_metadata(storage.footer_source(shard.path, shard.size_bytes, shard.stamp))
                self._kept = storage.parquet_source(shard.path, shard.size_bytes, shard.stamp)
                self._kept.keep(True)
                first_bytes = _group_bytes(footer, self._split.row_groups[:1])
                return self._file_of(footer, source=self._kept, fetched_bytes=first_bytes)
            self._opened_in = self._state()
            if self._opened_in is None or self._opened_in[:2] != (shard.size_bytes, shard.stamp):
                raise ShardChangedError(
                    f"{shard.path}: it is not the file that was planned ({shard.size_bytes} bytes of time "
                    f"{shard.stamp}); run again to plan anew"
                )
            return self._file_of()
        except (pa.ArrowException, OSError) as e:
            check_not_passing(e, shard.path)
            self._check_unchanged(e)
            raise ShardError(f"{shard.path}: cannot be opened ({one_line(e)})") from e

    def _file_of(
        self,
        metadata: pq.FileMetaData | None = None,
        as_dictionary: Sequence[str] = (),
        *,
        source: Any = None,
        fetched_bytes: int = 0,
    ) -> pq.ParquetFile:
        """Open the shard; with ``fetched_bytes``, what is read of it at once, it is in a bucket."""
        shard = self._split.shard
        # Without coalescing a whole row group's compressed columns are not held at once: 840 MB for a row
        # group of 300,000 images of 28 × 28, where this way 30 MB are. Local reading is no slower.
        coalesced = 0 < fetched_bytes <= fetching.MOST_FETCHED_BYTES
        buffer_bytes = fetching.FETCHED_COLUMN_BYTES if fetched_bytes else COLUMN_BUFFER_BYTES
        return pq.ParquetFile(
            source or storage.parquet_source(shard.path, shard.size_bytes, shard.stamp),
            metadata=metadata,
            read_dictionary=list(as_dictionary),
            pre_buffer=coalesced,
            buffer_size=0 if coalesced else buffer_bytes,
            # Costs nothing where the writer left no checksums.
            page_checksum_verification=True,
        )

    def _sample(self, features: Sequence[str], keys: Sequence[str]) -> sizing.Sample:
        names = (*features, *keys)
        if names not in self._samples:
            self._check_claims(names)
            self._samples[names] = sizing.Sample(self._file, self._split, names)
        return self._samples[names]

    def _check_claims(self, names: Sequence[str]) -> None:
        """Refuse lists of which a row would take up more memory than the file can have in it.

        A few bytes can stand for as many equal values as a page may claim, all of them in one row; flat
        columns have one value a row, and are read some rows at a time.
        """
        wanted = {*names}
        of_many = (field.name for field in self.schema if pa.types.is_nested(field.type))
        nested = [f"{name}." for name in of_many if name in wanted]
        leaves = self._file.schema if nested else ()
        for number, leaf in enumerate(leaves):
            if not leaf.max_repetition_level or not leaf.path.startswith(tuple(nested)):
                continue
            width = _LEAF_BYTES.get(leaf.physical_type, 1)
            for group in map(self._file.metadata.row_group, self._split.row_groups):
                chunk = group.column(number)
                row_bytes = chunk.num_values * width / max(1, group.num_rows)
                if row_bytes > max(MOST_ROW_BYTES, MOST_EXPANSION * chunk.total_compressed_size):
                    raise ShardError(
                        f"{self.path}: column {leaf.path} claims {chunk.num_values} values in "
                        f"{group.num_rows} row(s), out of {chunk.total_compressed_size} bytes; write the "
                        f"shard again"
                    )

    def _read(
        self, repeating: Sequence[str], features: Sequence[str], keys: Sequence[str], chunk_rows: int
    ) -> Iterator[pa.RecordBatch]:
        split, present = self._split, set(self.schema.names)
        wanted = [name for name in dict.fromkeys((*features, *keys)) if name in present]
        folders = [
            (name, planning.partition_scalar(value))
            for name, value in split.shard.partition
            if name in features and name not in present
        ]
        begin = time.perf_counter()
        try:
            batches = self._batches(self._read_at_once(wanted), wanted, repeating, chunk_rows)
            rows = 0
            for batch in _whole(batches, chunk_rows):
                rows += batch.num_rows
                for column in batch.columns:
                    # Arrow trusts the codes in a file; those of a damaged one lead out of the dictionary.
                    if _holds_dictionary(pa.struct([("", column.type)])):
                        column.validate(full=True)
                for name, scalar in folders:
                    batch = batch.append_column(name, pa.repeat(scalar, batch.num_rows))
                self.read_s += time.perf_counter() - begin
                yield batch
                begin = time.perf_counter()
            if rows != split.rows:
                raise ShardError(
                    f"{split.shard.path}: row groups {split.row_groups[0]} to {split.row_groups[-1]} hold "
                    f"{rows} rows, and the footer says {split.rows}; write the shard again"
                )
        except (pa.ArrowException, OSError) as e:
            check_not_passing(e, split.shard.path)
            known = next((advice for says, advice in _UNREADABLE.items() if says in str(e)), "")
            raise ShardError(
                f"{split.shard.path}: row groups {split.row_groups[0]} to {split.row_groups[-1]} cannot be "
                f"read ({one_line(e)}); {known or 'write the shard again'}"
            ) from e

    def _batches(
        self, runs: list[list[int]], wanted: Sequence[str], repeating: Sequence[str], chunk_rows: int
    ) -> Iterator[pa.RecordBatch]:
        # By name, ``n`` would be the column ``n.2`` as well, which Arrow takes for a part of it.
        is_all = {*wanted} == {*self.schema.names}
        columns = None if is_all else list(wanted)
        # Threads of Arrow's own would compete with the scoring threads for the same cores.
        if self._kept is None:
            file = self._file
            if repeating:
                file = self._file_of(self._file.metadata, repeating)
                self._opened.append(file)
            for run in runs:
                yield from file.iter_batches(chunk_rows, run, columns, use_threads=False)
            return

        kept = self._kept
        # What was read for a sample is part of the first of them, and is not asked for again.
        kept.keep(False)
        alone = {"side_by_side": is_all, "first_alone": kept.keeps}
        bytes_of = functools.partial(_group_bytes, self._file.metadata)
        pieces = [piece for run in runs for piece in fetching.runs(run, bytes_of, **alone)]

        def begin(piece: list[int]) -> fetching.Begun:
            # A file of its own for each: one has what it fetched until it is closed.
            is_first = piece is pieces[0]
            file = self._file_of(
                self._file.metadata,
                repeating,
                source=kept if is_first else None,
                fetched_bytes=bytes_of(piece),
            )
            batches = file.iter_batches(chunk_rows, piece, columns, use_threads=False)
            return file, _then(batches, kept.forget) if is_first else batches

        yield from fetching.fetched(pieces, bytes_of, begin)

    def _read_at_once(self, wanted: Sequence[str]) -> list[list[int]]:
        """Return the split's row groups: one by one, where a dictionary lies within a list or a struct.

        Arrow has no way of reading those across the border of two row groups.
        """
        groups = list(self._split.row_groups)
        nested = any(_holds_dictionary(self._types[name]) for name in wanted)
        return [[group] for group in groups] if nested else [groups]


def _group_bytes(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return the bytes of row groups, all columns and as encoded: more than what is fetched of them."""
    return sum(metadata.row_group(group).total_byte_size for group in groups)


def _then(batches: Iterator[pa.RecordBatch], end: Callable[[], None]) -> Iterator[pa.RecordBatch]:
    yield from batches
    end()


def _has_leaf(kind: pa.DataType) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return any(map(_has_leaf, inner)) if inner else not pa.types.is_struct(kind)


def _holds_dictionary(kind: pa.DataType) -> bool:
    return any(
        pa.types.is_dictionary(inner) or _holds_dictionary(inner)
        for inner in (kind.field(i).type for i in range(kind.num_fields))
    )


def _whole(batches: Iterator[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """Put together what Arrow cuts where a row group ends, as it does with dictionary-encoded columns.

    Only the last chunk has fewer than ``chunk_rows``, unless more would not fit into twice ``CHUNK_BYTES``.
    """
    held: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in batches:
        more_bytes = data_bytes(batch)
        if held and size_bytes + more_bytes > 2 * CHUNK_BYTES:
            yield _joined(held)
            held, rows, size_bytes = [], 0, 0
        held.append(batch)
        rows += batch.num_rows
        size_bytes += more_bytes
        if rows >= chunk_rows:
            whole = _joined(held)
            yield whole.slice(0, chunk_rows)
            rest = whole.slice(chunk_rows)
            held, rows, size_bytes = [rest] if rest.num_rows else [], rest.num_rows, data_bytes(rest)
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
