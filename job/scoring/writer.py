"""One output file: columns are collected into row groups of a useful size, and written as Parquet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from job.binding.columns import empty_table
from job.errors import JobError, StorageError, UnwritableError, one_line
from job.scoring.batches import data_bytes
from job.storage.sinks import HashingSink

# A row group is written before it reaches this, whatever its rows: wide outputs must not fill the memory.
ROW_GROUP_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """A finished file.

    ``handle`` is for ``storage.release``, ``write_s`` is seconds of encoding and writing.
    """

    handle: str
    rows: int
    size_bytes: int
    sha256: str
    write_s: float


@dataclass(frozen=True)
class FileOptions:
    """How output files are written; ``metadata`` is the key-value metadata of each."""

    row_group_rows: int
    compression: str
    metadata: Mapping[str, str]


class PartWriter:
    """Writes one Parquet file. With ``overlap``, a thread writes one row group while the next is filled.

    Float columns are not dictionary-encoded: predictions hardly repeat, and plain encoding was measured 3
    to 5 times faster to write, and smaller. ``seen`` is called with the rows before they are written.
    """

    def __init__(
        self,
        path: str,
        schema: pa.Schema,
        options: FileOptions,
        *,
        overlap: bool,
        final: str = "",
        seen: Callable[[pa.Table], None] = lambda _: None,
    ) -> None:
        self._path, self._final, self._seen = path, final, seen
        self._schema = schema.with_metadata(dict(options.metadata))
        self._options = options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write") if overlap else None
        self._pending: Future[None] | None = None
        self._batches: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._rows = 0
        self._write_s = 0.0

    def __enter__(self) -> PartWriter:
        repeating = [path for field in self._schema for path in _repeating(field.name, field.type)]
        try:
            self._sink = HashingSink(self._path, self._final)
        except OSError as e:
            raise StorageError(f"{self._path}: cannot be written: {e.strerror}") from e
        try:
            self._file = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression=self._options.compression,
                use_dictionary=repeating or False,
            )
        except (OSError, pa.ArrowException) as e:
            self._sink.close()
            raise self._failed(e) from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        # Without finish() the file stays behind as an abandoned attempt that no receipt names. Arrow would
        # try to end it when the writer is collected, and complain on standard error that it cannot.
        self._file.is_open = False
        self._sink.close()

    def append(self, columns: Sequence[pa.Array]) -> None:
        """Add rows, one array per field of the schema, in order."""
        batch = pa.RecordBatch.from_arrays(list(columns), schema=self._schema)
        self._batches.append(batch)
        self._held_rows += batch.num_rows
        self._held_bytes += data_bytes(batch)
        if self._held_rows >= self._options.row_group_rows or self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def finish(self) -> Part:
        """Write the rows that are left, close the file, and describe it. Publishing flushes it to the disk.

        Raises:
            StorageError: writing failed.
            UnwritableError: Arrow cannot write a column's type.
        """
        self._flush(last=True)
        self._wait()
        begin = time.perf_counter()
        try:
            self._file.close()
            digest = self._sink.seal()
        except (OSError, pa.ArrowException) as e:
            raise self._failed(e) from e
        self._write_s += time.perf_counter() - begin
        return Part(self._sink.handle, self._rows, self._sink.bytes_written, digest, self._write_s)

    def _flush(self, *, last: bool = False) -> None:
        if not self._held_rows:
            return
        table = pa.Table.from_batches(self._batches, self._schema)
        # Whole row groups only, while more rows may come: the rest would be a group too small to be useful.
        rows = table.num_rows
        if not last and rows > self._options.row_group_rows:
            rows -= rows % self._options.row_group_rows
        rest = table.slice(rows)
        table = table.slice(0, rows)
        self._batches, self._held_rows = rest.to_batches(), rest.num_rows
        self._held_bytes = sum(map(data_bytes, self._batches))
        self._rows += rows
        if self._pool is None:
            self._write(table)
            return
        self._wait()
        self._pending = self._pool.submit(self._write, table)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _write(self, table: pa.Table) -> None:
        begin = time.perf_counter()
        self._seen(table)
        try:
            self._file.write_table(table, row_group_size=self._options.row_group_rows)
        except (OSError, pa.ArrowException) as e:
            raise self._failed(e) from e
        self._write_s += time.perf_counter() - begin

    def _failed(self, error: Exception) -> JobError:
        """Return the error to raise: ``StorageError`` of the disk, ``UnwritableError`` of a column."""
        # Arrow raises an ``OSError`` without a number where Parquet has no place for a value.
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            return StorageError(f"{self._path}: cannot be written: {getattr(error, 'strerror', 0) or error}")
        return UnwritableError(f"{self._path}: Arrow cannot write these columns ({one_line(error)})")


def unwritable(schema: pa.Schema) -> list[int]:
    """Return the numbers of the columns that Arrow can read from Parquet and cannot write to it."""
    every = list(range(len(schema)))
    return [] if _can_write(schema) else [i for i in every if not _can_write(pa.schema([schema.field(i)]))]


def _can_write(schema: pa.Schema) -> bool:
    # Of a damaged file: Arrow itself refuses to make such a field.
    if any(pa.types.is_null(field.type) and not field.nullable for field in schema):
        return False
    try:
        with pq.ParquetWriter(pa.BufferOutputStream(), schema) as writer:
            writer.write_table(empty_table(schema))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return False
    return True


def _repeating(path: str, kind: pa.DataType) -> Iterator[str]:
    """Yield the Parquet paths of leaves at or below ``path`` that may be dictionary-encoded: no floats."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _repeating(path, kind.storage_type)
    elif pa.types.is_map(kind):
        yield from _repeating(f"{path}.key_value.key", kind.key_type)
        yield from _repeating(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _repeating(f"{path}.{field.name}", field.type)
    elif pa.types.is_nested(kind):
        yield from _repeating(f"{path}.list.element", kind.value_type)
    elif not pa.types.is_floating(kind):
        yield path
