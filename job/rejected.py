"""Files of rejected rows: some of a split's rows, or all of them where the shard itself is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from job.errors import ShardChangedError, ShardError
from job.reading import SplitReader
from job.rejects import EXTRA_COLUMNS, Rejects, with_extras
from job.spec import Run, Split
from job.staging import ATTEMPT_SUFFIX, REJECTED_SUFFIX
from job.writing import PartWriter

BAD_SHARD: Final = "bad_shard"
_ROWS_AT_ONCE: Final = 65_536


@dataclass(frozen=True)
class FileOptions:
    """How output files are written; ``metadata`` is the key-value metadata of each."""

    row_group_rows: int
    compression: str
    metadata: Mapping[str, str]


def write_rows(attempt: str, reader: SplitReader, rejects: Rejects, options: FileOptions) -> dict[str, Any]:
    """Write a split's rejected rows, all their columns read again, and return the receipt's fields."""
    if not rejects.rows:
        return {}
    schema = with_extras(reader.schema.empty_table(), []).schema
    tables = rejects.tables(reader.everything())
    return _write(f"{attempt.removesuffix(ATTEMPT_SUFFIX)}{REJECTED_SUFFIX}", schema, tables, options)


def write_split(attempt: str, split: Split, error: str, options: FileOptions) -> dict[str, Any]:
    """Write all rows of a refused split, and return the receipt's fields.

    They have all their columns if these can be read; else the shard, the row's number and the reason.
    """
    if not split.rows:
        return {}
    stem = attempt.removesuffix(ATTEMPT_SUFFIX)
    try:
        with SplitReader(split) as reader:
            schema = with_extras(reader.schema.empty_table(), []).schema
            return _write(f"{stem}.refused", schema, _whole(split, reader.everything(), error), options)
    except ShardChangedError:
        raise
    except ShardError:
        schema = pa.schema(EXTRA_COLUMNS)
        return _write(f"{stem}.unreadable", schema, _whole(split, _bare(split.rows), error), options)


def _whole(split: Split, batches: Iterator[pa.RecordBatch], error: str) -> Iterator[pa.Table]:
    first_row = split.first_row
    for batch in batches:
        rows = np.arange(first_row, first_row + batch.num_rows)
        extras = [(split.shard.path, int(row), BAD_SHARD, error) for row in rows]
        yield with_extras(pa.table(batch), extras)
        first_row += batch.num_rows


def _bare(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of no columns, as many rows in all."""
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
    """Say that a split has more bad rows than the run may reject.

    ``written`` is where they are, ``first`` tells of the first of them.
    """
    return (
        f"{split.shard.path}: {rows} row(s) rejected ({reasons}), more than --max_rejected="
        f"{run.max_rejected} of {run.rows} allows{first and f'; first {first}'}; look at "
        f"{written['rejects']}, mend the shard or raise --max_rejected"
    )
