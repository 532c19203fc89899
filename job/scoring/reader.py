"""Reading a split: record batches of the columns that are needed, one chunk ahead."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.binding.columns import cast_views, nested_type, nested_values, without_views
from job.errors import DataError, ShardChangedError, ShardError, check_not_passing, one_line
from job.scoring.batches import CHUNK_BYTES, Sample, chunk_rows, data_bytes
from job.shards import pages, planner
from job.spec import Split
from job.storage import objects

Unit = Literal["ns", "us", "s"]

# INT96 timestamps that are compared at once in several units.
_INT96_ROWS = 1 << 16

# Held per column while a row group is read.
COLUMN_BUFFER_BYTES = 128 << 10

# What Arrow says of things that the format allows and Arrow cannot read back, and what a person can do.
_UNREADABLE = {
    "Nested data conversions not implemented": "Arrow cannot read this form of dictionary within a list or "
    "struct; write that column from a type without a dictionary, or with smaller row groups",
    "Expected all lists to be of size": "Arrow cannot read a fixed-size list column that holds a null list; "
    "write it as a list column of variable size",
}


class SplitReader:
    """Reads one split. ``read_s`` is seconds spent reading and decoding so far.

    When it is closed, the shard must still be the file that was opened. A file that is overwritten meanwhile
    gives rows of both versions, or looks damaged.

    Raises:
        ShardChangedError: the shard was overwritten. It replaces any error that came of that.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self.path = split.shard.path
        self.read_s = 0.0

    def __enter__(self) -> SplitReader:
        self._samples: dict[tuple[str, ...], Sample] = {}
        self._kept: objects.RangeFile | None = None
        # How many rows with these columns may be read at once, where not any number.
        self._most_rows: dict[tuple[str, ...], int] = {}
        self._file = self._open()
        self._opened = [self._file]
        # Keys are published as the file has them.
        self._in_file = self._file.schema_arrow
        self.schema = _without_views(self._in_file)
        self._types = {field.name: field.type for field in self.schema}
        self._int96 = frozenset(planner.int96_columns(self._file, self.schema))
        return self

    def type_of(self, name: str, features: Sequence[str]) -> pa.DataType | None:
        """Return the type of a key if these features are read too; ``None`` if there is no such column."""
        kind = self._in_file.field(name).type if name in self._types else None
        if name not in self._int96 or self._unit([name], features) == "ns":
            return kind
        return self._file_of(self._file.metadata, unit="us").schema_arrow.field(name).type

    @functools.cached_property
    def whole_schema(self) -> pa.Schema:
        """Return the schema of :meth:`everything`, in which each column has a name of its own.

        Two columns that are both called ``n`` become ``n`` and ``n.2``, so that others can read the file.
        """
        schema, unit = self.schema, self._whole_unit[0]
        if unit != "ns":
            schema = _without_views(self._file_of(self._file.metadata, unit=unit).schema_arrow)
        taken = set(schema.names)
        seen: set[str] = set()
        fields = []
        for field in schema:
            name, number = field.name, 1
            while name in seen or (number > 1 and name in taken):
                number += 1
                name = f"{field.name}.{number}"
            seen.add(name)
            fields.append(field.with_name(name))
        return pa.schema(fields)

    @functools.cached_property
    def _whole_unit(self) -> tuple[Unit, frozenset[str]]:
        """Return the unit for INT96 that holds all values of the split, and columns that no unit holds."""
        faults = list(self._int96_faults(self.schema.names))
        if any(fault.is_far for fault in faults):
            return "us", frozenset(fault.column for fault in faults if not fault.is_far or fault.is_lost)
        return ("ns" if faults or not self._int96 else "us"), frozenset()

    @property
    def inexact(self) -> frozenset[str]:
        """Return the INT96 columns that :meth:`everything` cannot give exactly: no unit holds all values."""
        return self._whole_unit[1]

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

        A feature that is a Hive folder becomes a column of one value. A key that is a Hive folder is left
        out, since the output lies below the same folder.

        Raises:
            ShardError: the shard is damaged.
            StorageError: reading it failed.
        """
        # Keys are left alone: they are published as the shard has them.
        repeating = self._sample(features, keys).repeating([name for name in features if name not in keys])
        unit = self._unit(keys, features)
        self._check_int96(keys, features)
        yield from self._ahead(self._read(repeating, features, keys, chunk_rows, unit), chunk_rows)

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
        """Yield the split's rows again, in order, with all columns of the file, by :attr:`whole_schema`."""
        names, unit = self.schema.names, self._whole_unit[0]
        for batch in self._read((), (), names, chunk_rows((), 0, self.row_bytes((), names)), unit):
            # Arrow finds columns by their leaves, and a struct without fields has none.
            found, fields = iter(batch.columns), list(self.whole_schema)
            columns = [next(found) if _has_leaf(f.type) else pa.nulls(batch.num_rows, f.type) for f in fields]
            yield pa.RecordBatch.from_arrays(columns, names=self.whole_schema.names)

    def row_bytes(self, features: Sequence[str], keys: Sequence[str]) -> int:
        """Return about how many bytes a row of these columns takes in memory; 0 if there are no rows."""
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
        unit: Unit = "ns",
    ) -> pq.ParquetFile:
        """Open the shard. ``unit`` is for INT96 timestamps.

        ``fetched_bytes`` are those of one read; they are given only for a file in a bucket.
        """
        shard = self._split.shard
        # Without coalescing a whole row group's compressed columns are not held at once: 840 MB for a row
        # group of 300,000 images of 28 × 28, where this way 30 MB are. Local reading is no slower.
        coalesced = 0 < fetched_bytes <= MOST_FETCHED_BYTES
        buffer_bytes = FETCHED_COLUMN_BYTES if fetched_bytes else COLUMN_BUFFER_BYTES
        return pq.ParquetFile(
            source or storage.parquet_source(shard.path, shard.size_bytes, shard.stamp),
            metadata=metadata,
            read_dictionary=list(as_dictionary),
            pre_buffer=coalesced,
            buffer_size=0 if coalesced else buffer_bytes,
            # Costs nothing where the writer left no checksums.
            page_checksum_verification=True,
            coerce_int96_timestamp_unit=None if unit == "ns" else unit,
        )

    def _unit(self, keys: Iterable[str], features: Iterable[str]) -> Unit:
        """Return the unit in which INT96 is read: microseconds if there are only keys of it."""
        fed = {name.partition(".")[0] if name not in self._types else name for name in features}
        return "us" if self._int96.intersection(keys) and self._int96.isdisjoint(fed) else "ns"

    def _check_int96(self, keys: Sequence[str], features: Sequence[str]) -> None:
        """Check that the unit holds all INT96 timestamps: their years and their digits.

        Raises:
            ShardError: one would be read as another time.
        """
        if not self._int96:
            return
        unit = self._unit(keys, features)
        names = [name if name in self._types else name.partition(".")[0] for name in (*keys, *features)]
        for fault in self._int96_faults(names):
            if fault.is_lost or fault.is_far == (unit == "ns"):
                reason = (
                    "lies beyond the 290,000 years that microseconds reach"
                    if fault.is_lost
                    else "lies beyond the years 1677 to 2262 that nanoseconds reach"
                    if fault.is_far
                    else "has digits below a microsecond, in which such keys are written"
                )
                raise ShardError(
                    f"{self.path}: column {fault.column!r}, row group {fault.group}: INT96 timestamp "
                    f"{fault.value} {reason}; write the column as a timestamp of microseconds (INT64)"
                )

    def _int96_faults(self, names: Iterable[str]) -> Iterator[_Unlike]:
        """Yield the first values of each INT96 column and batch that one of the two units cannot hold.

        A value that neither holds is recognised when it is read in seconds, which reach all days of INT96.

        Raises:
            ShardError: they cannot be read.
        """
        wanted = sorted(self._int96.intersection(names))
        if not wanted:
            return
        with self._told(), contextlib.ExitStack() as opened:
            files = [
                opened.enter_context(self._file_of(self._file.metadata, unit=unit))
                for unit in ("ns", "us", "s")
            ]
            rows = min(_INT96_ROWS, self._check_lists(wanted) or _INT96_ROWS)
            for group in self._split.row_groups:
                read = [f.iter_batches(rows, [group], wanted, use_threads=False) for f in files]
                for batches in zip(*read, strict=True):
                    for name in wanted:
                        yield from _unlike(name, group, *(batch.column(name) for batch in batches))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raise Arrow's errors as ``ShardError``, and those of the disk or the store as ``StorageError``."""
        split = self._split
        try:
            yield
        except (pa.ArrowException, OSError) as e:
            check_not_passing(e, split.shard.path)
            known = next((advice for says, advice in _UNREADABLE.items() if says in str(e)), "")
            raise ShardError(
                f"{split.shard.path}: row groups {split.row_groups[0]} to {split.row_groups[-1]} cannot be "
                f"read ({one_line(e)}); {known or 'write the shard again'}"
            ) from e

    def _sample(self, features: Sequence[str], keys: Sequence[str]) -> Sample:
        names = (*features, *keys)
        if names not in self._samples:
            most_rows = self._check_lists(names)
            self._samples[names] = Sample(self._file, self._split, names, most_rows)
        return self._samples[names]

    def _check_lists(self, names: Iterable[str]) -> int:
        """Refuse lists that would not fit the memory: what a sample reads of them may be all that there is.

        Not in a bucket, where each page's header would be a request.

        Returns:
            How many rows may be read at once, 0 for any number.
        """
        wanted = {name if name in self._types else name.partition(".")[0] for name in names}
        nested = tuple(sorted(name for name in wanted & self._types.keys() if _is_nested(self._types[name])))
        if not nested or storage.is_remote(self.path):
            return 0
        if nested not in self._most_rows:
            with self._told(), open(storage.local(self.path), "rb") as file:
                self._most_rows[nested] = pages.check_lists(
                    self.path, self._file.metadata, file, self._split.row_groups, nested
                )
        return self._most_rows[nested]

    def _read(
        self,
        repeating: Sequence[str],
        features: Sequence[str],
        keys: Sequence[str],
        chunk_rows: int,
        unit: Unit = "ns",
    ) -> Iterator[pa.RecordBatch]:
        split, present = self._split, set(self.schema.names)
        names = tuple(dict.fromkeys((*features, *keys)))
        fields = [name for name in features if name not in present and nested_type(self.schema, name)]
        wanted = [name for name in names if name in present or name in fields]
        folders = [
            (name, planner.partition_scalar(value))
            for name, value in split.shard.partition
            if name in features and name not in present
        ]
        begin = time.perf_counter()
        # Fewer, where rows that no sample has seen are larger; they are put together as far as they fit.
        read_rows = min(chunk_rows, self._check_lists(wanted) or chunk_rows)
        with self._told():
            batches = self._batches(self._read_at_once(wanted), wanted, repeating, read_rows, unit)
            rows = 0
            for batch in _whole(batches, chunk_rows):
                rows += batch.num_rows
                batch = cast_views(batch)
                for column in batch.columns:
                    # Arrow trusts the codes in a file; those of a damaged one lead out of the dictionary.
                    if _holds_dictionary(pa.struct([("", column.type)])):
                        column.validate(full=True)
                for name in fields:
                    of = batch.column(name.partition(".")[0])
                    batch = batch.append_column(name, nested_values(of, name))
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

    def _batches(
        self,
        runs: list[list[int]],
        wanted: Sequence[str],
        repeating: Sequence[str],
        chunk_rows: int,
        unit: Unit,
    ) -> Iterator[pa.RecordBatch]:
        # By name, ``n`` would be the column ``n.2`` as well, which Arrow takes for a part of it.
        is_all = {*wanted} == {*self.schema.names}
        columns = None if is_all else list(wanted)
        # Threads of Arrow's own would compete with the scoring threads for the same cores.
        if self._kept is None:
            file = self._file
            if repeating or unit != "ns":
                file = self._file_of(self._file.metadata, repeating, unit=unit)
                self._opened.append(file)
            for run in runs:
                yield from file.iter_batches(chunk_rows, run, columns, use_threads=False)
            return

        kept = self._kept
        # What was read for a sample is part of the first of them, and is not asked for again.
        kept.keep(False)
        alone = {"side_by_side": is_all, "first_alone": kept.keeps}
        bytes_of = functools.partial(_group_bytes, self._file.metadata)
        pieces = [piece for run in runs for piece in group_runs(run, bytes_of, **alone)]

        def begin(piece: list[int]) -> Begun:
            # A file of its own for each: one has what it fetched until it is closed.
            is_first = piece is pieces[0]
            file = self._file_of(
                self._file.metadata,
                repeating,
                source=kept if is_first else None,
                fetched_bytes=bytes_of(piece),
                unit=unit,
            )
            batches = file.iter_batches(chunk_rows, piece, columns, use_threads=False)
            return file, _then(batches, kept.forget) if is_first else batches

        yield from fetched(pieces, bytes_of, begin)

    def _read_at_once(self, wanted: Sequence[str]) -> list[list[int]]:
        """Return runs of row groups that are read at once.

        Each is one row group if a dictionary lies within a list or a struct: Arrow cannot read that across
        row groups.
        """
        groups = list(self._split.row_groups)
        kinds = [self._types[n] if n in self._types else nested_type(self.schema, n) for n in wanted]
        nested = any(map(_holds_dictionary, kinds))
        return [[group] for group in groups] if nested else [groups]


def _without_views(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(without_views(field.type)) for field in schema], schema.metadata)


@dataclass(frozen=True)
class _Unlike:
    """An INT96 timestamp that one unit cannot hold.

    If it ``is_far``, it is beyond the years of nanoseconds; else it is too fine for microseconds. If it
    ``is_lost``, it is beyond the years of microseconds too.
    """

    column: str
    group: int
    is_far: bool
    value: str
    is_lost: bool = False


def _unlike(name: str, group: int, fine: pa.Array, coarse: pa.Array, whole: pa.Array) -> Iterator[_Unlike]:
    """Yield a column's first value that nanoseconds cannot hold, and the first for microseconds.

    ``fine``, ``coarse`` and ``whole`` are the column in nanoseconds, microseconds and seconds.
    """
    for arrays in zip(*map(_timestamps, (fine, coarse, whole)), strict=True):
        in_ns, in_us, _ = arrays
        ns, us, s = (np.asarray(one.cast(pa.int64()).fill_null(0)) for one in arrays)
        far, lost = us != ns // 1000, us // 1_000_000 != s
        faults = ((True, far & ~lost, in_us), (False, ~far & (ns % 1000 != 0), in_ns))
        for is_far, bad, shown in faults:
            if bad.any():
                yield _Unlike(name, group, is_far, str(shown[int(np.argmax(bad))].cast(pa.string())))
        if lost.any():
            value = f"{s[int(np.argmax(lost))]} seconds after 1970"
            yield _Unlike(name, group, True, value, is_lost=True)


def _timestamps(values: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield the timestamps of an array as flat arrays, out of lists and structs."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type
    if pa.types.is_timestamp(kind):
        yield values
    elif pa.types.is_struct(kind):
        for child in values.flatten():
            yield from _timestamps(child)
    elif pa.types.is_map(kind):
        for child in (values.keys, values.items):
            yield from _timestamps(child)
    elif pa.types.is_nested(kind):
        yield from _timestamps(values.flatten())


def _group_bytes(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return the encoded bytes of each row group, all columns together; what is fetched may be less."""
    return sum(metadata.row_group(group).total_byte_size for group in groups)


def _then(batches: Iterator[pa.RecordBatch], end: Callable[[], None]) -> Iterator[pa.RecordBatch]:
    yield from batches
    end()


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind))


def _has_leaf(kind: pa.DataType) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return any(map(_has_leaf, inner)) if inner else not pa.types.is_struct(kind)


def _holds_dictionary(kind: pa.DataType) -> bool:
    return any(
        pa.types.is_dictionary(inner) or _holds_dictionary(inner)
        for inner in (kind.field(i).type for i in range(kind.num_fields))
    )


def _whole(batches: Iterator[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """Join batches into chunks of ``chunk_rows``; Arrow ends batches of dictionary columns with a row group.

    A chunk has fewer rows if it is the last, or if it would take more than twice ``CHUNK_BYTES``.
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


# Row groups of a shard in a bucket, which are fetched while earlier ones are decoded.

# Row groups that are fetched as a whole lie side by side: so much of them is one request.
FETCHED_BYTES = 8 << 20
# So many requests are sent ahead, which hides some 20 ms that each waits for its answer; more, as long as
# they make up no more than the fewest would of row groups of ``FETCHED_BYTES``.
_FEWEST_AHEAD, _MOST_AHEAD = 4, 16
# Arrow reads from a file in Python in a thread of its own, of which it has 8; here each waits for an answer.
_ARROW_THREADS = 32
# A row group that is larger is not held as a whole: each of its columns is fetched in pieces of this size.
MOST_FETCHED_BYTES = 96 << 20
FETCHED_COLUMN_BYTES = 4 << 20

Begun = tuple[pq.ParquetFile, Iterator[pa.RecordBatch]]


def group_runs(
    groups: Sequence[int], bytes_of: Callable[[list[int]], int], *, side_by_side: bool, first_alone: bool
) -> list[list[int]]:
    """Return row groups in runs, each small enough to be fetched at once.

    ``side_by_side`` is true if the wanted bytes of neighbouring row groups touch. If they do not, each run
    has one row group: several would save no request, and Arrow would send these one after the other.
    """
    found: list[list[int]] = []
    held_bytes = 0
    for group in groups:
        alone = not side_by_side or (first_alone and len(found) == 1)
        if not found or alone or held_bytes + bytes_of([group]) > FETCHED_BYTES:
            found.append([])
            held_bytes = 0
        found[-1].append(group)
        held_bytes += bytes_of([group])
    return found


def fetched(
    pieces: Sequence[list[int]],
    bytes_of: Callable[[list[int]], int],
    begin: Callable[[list[int]], Begun],
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of all pieces in order. ``begin`` opens a piece; it is called in threads, ahead."""

    def first_read(piece: list[int]) -> Begun:
        file, batches = begin(piece)
        # Fetches it.
        return file, itertools.chain(list(itertools.islice(batches, 1)), batches)

    if pa.io_thread_count() < _ARROW_THREADS:
        pa.set_io_thread_count(_ARROW_THREADS)
    waiting, held_bytes = deque(pieces), 0
    pending: deque[tuple[int, Future[Begun]]] = deque()

    def fill(pool: ThreadPoolExecutor) -> None:
        nonlocal held_bytes
        while waiting and len(pending) < _MOST_AHEAD:
            more_bytes = bytes_of(waiting[0])
            if len(pending) >= _FEWEST_AHEAD and held_bytes + more_bytes > _FEWEST_AHEAD * FETCHED_BYTES:
                return
            pending.append((more_bytes, pool.submit(first_read, waiting.popleft())))
            held_bytes += more_bytes

    with ThreadPoolExecutor(_MOST_AHEAD, thread_name_prefix="fetch") as pool:
        fill(pool)
        while pending:
            size_bytes, begun = pending.popleft()
            file, batches = begun.result()
            held_bytes -= size_bytes
            fill(pool)
            yield from batches
            file.close()
