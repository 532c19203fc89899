"""Files of rejected rows: some rows of a split, or all of them if the shard itself is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from job.binding.columns import empty_table
from job.commit.staging import ATTEMPT_SUFFIX, REJECTED_SUFFIX
from job.errors import ShardChangedError, ShardError, UnwritableError
from job.scoring.reader import SplitReader
from job.scoring.rejects import EXTRA_COLUMNS, Rejects, with_extras
from job.scoring.writer import PartWriter, unwritable
from job.spec import Run, Split

BAD_SHARD: Final = "bad_shard"
_ROWS_AT_ONCE: Final = 65_536
# A footer of 300 bytes may claim rows without end.
_MOST_UNREAD_ROWS: Final = 1_000_000
# In the metadata of a file of rejected rows: which of the shard's columns it lacks, or why it has none.
_LEFT_OUT: Final = "scoring_job.left_out"


@dataclass(frozen=True)
class FileOptions:
    """How output files are written; ``metadata`` is the key-value metadata of each."""

    row_group_rows: int
    compression: str
    metadata: Mapping[str, str]


def write_rows(attempt: str, reader: SplitReader, rejects: Rejects, options: FileOptions) -> dict[str, Any]:
    """Write a split's rejected rows, and return the receipt's fields.

    The rows are read again, with all their columns. Columns that cannot be written are left out, and named in
    the file's metadata and in the receipt.
    """
    if not rejects.rows:
        return {}
    stem, columns = attempt.removesuffix(ATTEMPT_SUFFIX), _Columns.of(reader)
    try:
        tables = rejects.tables(columns.only(reader.everything()))
        written = _write(f"{stem}{REJECTED_SUFFIX}", columns.schema, tables, columns.told(options))
        return {**written, "rejects_left_out": columns.left_out}
    except UnwritableError as e:
        # Another column's fault, which says nothing of the rows that were scored.
        tables, schema = rejects.reasons_alone(), pa.schema(EXTRA_COLUMNS)
        written = _write(f"{stem}.reasons", schema, tables, _told(options, str(e)))
        return {**written, "rejects_left_out": tuple(reader.whole_schema.names)}


def write_split(attempt: str, split: Split, error: str, options: FileOptions) -> dict[str, Any]:
    """Write all rows of a split whose shard is rejected, and return the receipt's fields.

    Rows have all their columns if these can be read and written; else only the shard, the row number and the
    reason. If nothing can be read and there are very many rows, no file is written.
    """
    if not split.rows:
        return {}
    stem = attempt.removesuffix(ATTEMPT_SUFFIX)
    try:
        with SplitReader(split) as reader:
            columns = _Columns.of(reader)
            tables = _whole(split, columns.only(reader.everything()), error)
            written = _write(f"{stem}.refused", columns.schema, tables, columns.told(options))
            return {**written, "rejects_left_out": columns.left_out}
    except ShardChangedError:
        raise
    except ShardError:
        if split.rows > _MOST_UNREAD_ROWS:
            return {}
        schema = pa.schema(EXTRA_COLUMNS)
        return _write(f"{stem}.unreadable", schema, _whole(split, _bare(split.rows), error), options)


@dataclass(frozen=True)
class _Columns:
    """Which of a shard's columns a file of rejected rows has, by number, and the names of the others."""

    kept: tuple[int, ...]
    left_out: tuple[str, ...]
    schema: pa.Schema

    @classmethod
    def of(cls, reader: SplitReader) -> _Columns:
        schema, inexact = reader.whole_schema, reader.inexact
        bad = sorted({*unwritable(schema), *(i for i, name in enumerate(schema.names) if name in inexact)})
        kept = tuple(i for i in range(len(schema)) if i not in bad)
        fields = pa.schema([schema.field(i) for i in kept], schema.metadata)
        whole = with_extras(empty_table(fields), []).schema
        return cls(kept, tuple(schema.field(i).name for i in bad), whole)

    def only(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (batch.select(list(self.kept)) for batch in batches) if self.left_out else batches

    def told(self, options: FileOptions) -> FileOptions:
        return _told(options, json.dumps(self.left_out)) if self.left_out else options


def _told(options: FileOptions, left_out: str) -> FileOptions:
    return replace(options, metadata={**options.metadata, _LEFT_OUT: left_out})


def _whole(split: Split, batches: Iterator[pa.RecordBatch], error: str) -> Iterator[pa.Table]:
    first_row = split.first_row
    for batch in batches:
        rows = np.arange(first_row, first_row + batch.num_rows)
        extras = [(split.shard.path, int(row), BAD_SHARD, error) for row in rows]
        yield with_extras(pa.table(batch), extras)
        first_row += batch.num_rows


def _bare(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches without columns that have ``rows`` rows in all."""
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = min(_ROWS_AT_ONCE, rows - start)
        yield pa.RecordBatch.from_struct_array(pa.array([{}] * some, pa.struct([])))


def _write(path: str, schema: pa.Schema, tables: Iterator[pa.Table], options: FileOptions) -> dict[str, Any]:
    schema = schema.with_metadata(dict(options.metadata))
    with PartWriter(path, schema, options.row_group_rows, options.compression, overlap=False) as writer:
        for table in tables:
            for batch in table.to_batches():
                writer.append(batch.columns)
        part = writer.finish()
    return {"rejects": part.handle, "rejects_bytes": part.size_bytes, "rejects_sha256": part.sha256}


def too_many(
    split: Split, rows: int, reasons: str, run: Run, written: Mapping[str, Any], first: str = ""
) -> str:
    """Return the error line for a split that has more bad rows than the whole run may reject.

    ``written`` are the receipt's fields on the file of rejected rows, ``first`` a text on the first of them.
    """
    return (
        f"{split.shard.path}: {rows} row(s) rejected ({reasons}), more than --max_rejected="
        f"{run.max_rejected} of {run.rows} allows{first and f'; first {first}'}; look at "
        f"{written.get('rejects', 'it')}, mend the shard or raise --max_rejected"
    )
