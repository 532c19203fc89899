"""Chunks and batches that fit the memory: how many rows are read, and predicted, at once.

The size of a chunk is chosen before the first one is read. It follows from the columns' types if these have a
fixed width. Else it follows from a sample of the split's first rows, scaled by the bytes per row of the other
row groups. Text that repeats at first and grows later in its row group is underestimated; a chunk may then
exceed ``CHUNK_BYTES``. A batch that does not fit a GPU's memory nevertheless is halved in
``job.model.loading``.

The metadata of column chunks would tell some of this without reading. It is not used, because pyarrow 25 ends
the whole process there if a footer is damaged (by an unexpected C++ exception), while reading raises.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from job.binding.binding import Binding, Places, by_shape, open_axes, to_tensors
from job.binding.columns import nested_type
from job.binding.predictions import cell_bytes
from job.model import loading
from job.model.signature import Feed
from job.spec import Split

CHUNK_BYTES = 32 << 20
# Enough rows for the largest batch that is ever tried.
CHUNK_ROWS = 65_536
# Bytes that a string cell is taken for where nothing has been read yet.
_STRING_BYTES = 32
_SAMPLE_ROWS = 1024
_SAMPLE_GROUPS = 16
_SAMPLE_BYTES = 4 << 20
# A sample that would take more than this is one of a few rows.
_FEW_ROWS = 8
_MOST_SAMPLE_BYTES = 64 << 20


def chunk_rows(feeds: Sequence[Feed], batch_rows: int, read_row_bytes: int) -> int:
    """Return how many rows to read at once: whole batches, and no more than ``CHUNK_BYTES``.

    ``batch_rows`` 0 means that the batch size is not known yet. ``read_row_bytes`` are the bytes of a row as
    it is read, with its keys. The bytes of a row as the model takes it follow from ``feeds``.
    """
    row_bytes = 1
    for feed in feeds:
        cells = 1
        for extent in feed.input.shape:
            cells *= extent or 1
        row_bytes += cells * _cell_bytes(feed.input.dtype)
    fitting = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(row_bytes, read_row_bytes)))
    if batch_rows:
        return batch_rows * max(1, fitting // batch_rows)
    # A power of two, so that every batch size which is tried divides it.
    return 1 << (fitting.bit_length() - 1)


@dataclass(frozen=True)
class Batch:
    """Rows that the model predicts in one step.

    ``places`` are their positions among the rows that were cut into batches. ``whole_rows`` is the batch
    size, which the last batch of a shape may not reach.
    """

    places: Places
    rows: pa.RecordBatch
    whole_rows: int


def batches(
    rows: pa.RecordBatch, binding: Binding, asked: int, loaded: loading.LoadedModel, most_rows: int = 0
) -> Iterator[Batch]:
    """Cut rows into batches in which all rows have one shape.

    The model's batch size is looked up for each batch: if one did not fit the memory, the next are smaller.

    Args:
        rows: what to cut.
        binding: how the columns feed the model.
        asked: rows of a batch; 0 means that they are measured.
        loaded: the model.
        most_rows: the largest batch; 0 for no limit.
    """
    for places, alike in by_shape(rows, binding):
        start = 0
        while start < alike.num_rows:
            whole_rows = _batch_rows(alike.slice(0, most_rows or None), asked, binding, loaded)
            size = min(whole_rows, most_rows or whole_rows)
            yield Batch(places[start : start + size], alike.slice(start, size), whole_rows)
            start += size


def _batch_rows(chunk: pa.RecordBatch, asked: int, binding: Binding, loaded: loading.LoadedModel) -> int:
    """Return how many rows of a chunk of one shape to predict at once.

    ``asked`` 0 measures that on the first rows. Larger rows make smaller batches.
    """
    cells = 1
    if any(None in feed.input.shape for feed in binding.feeds):
        cells = loading.row_cells(to_tensors(chunk.slice(0, 1), binding)[0])
    if asked:
        return loaded.batch.within(asked, cells)

    def predict(rows: int) -> None:
        # Whatever fails here fails again, and is reported, where the rows are scored. Faulty rows have
        # their slots filled, so they take the time that any row takes.
        with suppress(Exception):
            tensors, _ = to_tensors(chunk.slice(0, rows), binding)
            loaded.predict(tensors, rows)

    return loaded.batch.choose(chunk.num_rows, predict, cells)


def stretches(
    chunk: pa.RecordBatch, binding: Binding, fields: Sequence[pa.Field]
) -> Iterator[pa.RecordBatch]:
    """Cut a chunk into parts whose predictions fit the memory together.

    Rows of several shapes are predicted shape by shape, and written in order, so predictions wait for the
    rows between them. If the model has no open axis, no row waits, and the chunk is one part.
    """
    axes = open_axes(chunk, binding)
    if axes is None:
        yield chunk
        return
    parts = np.cumsum(cell_bytes(fields, axes.max(axis=1).clip(1))) // CHUNK_BYTES
    starts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), chunk.num_rows]
    for start, stop in itertools.pairwise(starts):
        yield chunk.slice(start, stop - start)


class Sample:
    """A sample of a split's first rows, from which all rows are estimated. ``names`` are the columns.

    ``most_rows`` is how many may be read at once, 0 for any number.
    """

    def __init__(self, file: pq.ParquetFile, split: Split, names: Sequence[str], most_rows: int = 0) -> None:
        self._file, self._split = file, split
        self._most_rows = most_rows or _SAMPLE_ROWS
        # One number per row group, over all columns of the file, as encoded and not yet compressed.
        self._sizes = [(group.num_rows, group.total_byte_size) for group in _groups(file, split)]
        # Asked of the file once: it makes a schema of all its columns anew each time.
        schema = file.schema_arrow
        types = {field.name: field.type for field in schema}
        found = {name: types[name] if name in types else nested_type(schema, name) for name in names}
        self._types = {name: kind for name, kind in found.items() if kind is not None}

    def row_bytes(self) -> int:
        """Return about how many bytes a row takes in memory; 0 if there are no rows."""
        rows, size_bytes = (sum(sizes) for sizes in zip(*self._sizes, strict=True)) if self._sizes else (0, 0)
        if not rows:
            return 0
        widths = [_width(kind) for kind in self._types.values()]
        # The type alone tells; a sample would cost a page of each column, 10 ms for ten columns.
        known = [width for width in widths if width is not None]
        if len(known) == len(widths):
            return math.ceil(sum(known))
        batch = self._batch
        if batch is None or not batch.num_rows:
            return size_bytes // rows
        first_rows, first_bytes = self._sizes[0]
        growth = (size_bytes / rows) / (first_bytes / first_rows) if first_rows and first_bytes else 1.0
        return int(data_bytes(batch) / batch.num_rows * max(1.0, growth))

    def repeating(self, names: Sequence[str]) -> list[str]:
        """Return the columns of text in which less than half of the values are distinct.

        They are read as codes and a dictionary. For 2,000,000 values of which 200 are distinct, reading and
        binding took 13 ms so, and 93 ms as plain text. If all are distinct, it takes 530 ms instead of 220.
        """
        text = [name for name in names if name in self._types and pa.types.is_string(self._types[name])]
        if not text or (batch := self._batch) is None:
            return []
        return [name for name in text if 2 * pc.count_distinct(batch.column(name)).as_py() <= batch.num_rows]

    @functools.cached_property
    def _batch(self) -> pa.RecordBatch | None:
        rows, size_bytes = self._sizes[0] if self._sizes else (0, 0)
        if not rows:
            return None
        some = max(1, min(_SAMPLE_ROWS, _SAMPLE_BYTES * rows // max(1, size_bytes)))
        # What cannot be read is told where it is read for good.
        with suppress(pa.ArrowException, OSError):
            # A long value that repeats is in the file once, and in memory as often as there are rows.
            if some > _FEW_ROWS and size_bytes * some > _MOST_SAMPLE_BYTES:
                few = self._first(_FEW_ROWS)
                if few is not None and data_bytes(few) * some > _MOST_SAMPLE_BYTES * few.num_rows:
                    return few
            return self._first(some)
        return None

    def _first(self, rows: int) -> pa.RecordBatch | None:
        groups = list(self._split.row_groups[:1])
        rows = min(rows, self._most_rows)
        return next(self._file.iter_batches(rows, groups, list(self._types), use_threads=False), None)


def _groups(file: pq.ParquetFile, split: Split) -> list[pq.RowGroupMetaData]:
    """Return the split's row groups; if they are many, some of them, evenly spread."""
    groups = split.row_groups
    return [file.metadata.row_group(i) for i in groups[:: max(1, len(groups) // _SAMPLE_GROUPS)]]


def _width(kind: pa.DataType) -> float | None:
    """Return the bytes of one value of a type, or ``None`` if they depend on the value."""
    if isinstance(kind, pa.BaseExtensionType):
        return _width(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        width = _width(kind.value_type)
        return None if width is None else width * kind.list_size
    try:
        return float(kind.bit_width) / 8 if not pa.types.is_dictionary(kind) else None
    except ValueError:
        return None


def _cell_bytes(dtype: str) -> int:
    if dtype == "string":
        return _STRING_BYTES
    digits = "".join(c for c in dtype if c.isdigit())
    return max(1, int(digits) // 8) if digits else 1


def data_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch's rows without dictionaries, because each slice refers to a whole one."""
    return int(batch.nbytes - sum(d.nbytes for column in batch.columns for d in _dictionaries(column)))


def _dictionaries(array: pa.Array) -> Iterator[pa.Array]:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _dictionaries(array.storage)
    elif pa.types.is_dictionary(kind):
        yield array.dictionary
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _dictionaries(array.field(i))
    elif pa.types.is_nested(kind) and hasattr(array, "values"):
        yield from _dictionaries(array.values)
