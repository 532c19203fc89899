"""``job golden``: rows of a night that is right, as a file for ``--golden``."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.compare import night_files, verify
from job.compare.rescoring import PublishedRows
from job.errors import UsageError
from job.scoring import golden


def pick(folder: str, path: str, *, rows: int, seed: int | None) -> int:
    """Write a sample of a published night's rows, features and predictions; return how many there are.

    Args:
        folder: the output.
        path: the file to write, which must not be there.
        rows: how many, at most.
        seed: of the sample; ``None`` takes another one each time.

    Raises:
        UsageError: there is no such night, or the file cannot be made of it.
        ShardError: a shard is not the one that was scored.
    """
    if storage.size_bytes(path) is not None:
        raise UsageError(f"--to={path}: it is there already; remove it, or choose another name")
    night = night_files.night_of(folder)
    published = PublishedRows(folder, night)
    names = night["scoring"]["predictions"]
    tables = []
    for entry, numbers in verify.sample(night["files"], rows, seed):
        features = published.features(entry, published.files.shard_rows(entry)[numbers])
        predictions = published.published(entry, numbers)
        columns = {name: features.column(name) for name in features.schema.names}
        if both := columns.keys() & set(names):
            raise UsageError(f"{folder}: {min(both)} is a column of the input, and a prediction as well")
        columns |= {name: predictions.column(name) for name in names}
        tables.append(pa.table(columns))
    if not tables:
        raise UsageError(f"{folder}: the night has no rows")
    table = pa.concat_tables(tables, promote_options="permissive").slice(0, rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    if (size_bytes := len(sink.getvalue())) > golden.MOST_BYTES:
        raise UsageError(f"--rows={rows}: {size_bytes:,} bytes, more than {golden.MOST_BYTES:,}; take fewer")
    storage.make_folder(storage.parent(path))
    storage.write_atomic(path, sink.getvalue())
    return len(table)
