"""``golden``: make a file of rows with known predictions, for ``--golden``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

from job import forms
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import UsageError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Write rows of a published night, with their predictions, for --golden. Verify the night before."
    parser = output_parser("golden", told, "the folder that the night was published at")
    add_flag(parser, "rows", "ROWS", "100", "how many, drawn at random")
    add_flag(parser, "seed", "N", None, "of the sample, to draw the same one again")
    add_flag(parser, "to", "FILE", None, "the file to write, which must not be there")
    add_flag(parser, "kms_key", "KEY", None, "encrypt what is written to a bucket with this key")
    return parser


def run(args: Sequence[str]) -> int:
    """Write a file of golden rows."""
    given = parser().parse_args(list(args))
    if not given.to:
        raise UsageError("--to must be given: the file to write, as in golden.parquet")
    from job import storage
    from job.scoring.golden import MOST_ROWS

    rows = forms.Count(most=MOST_ROWS).parse("rows", given.rows)
    seed = None if given.seed is None else forms.Whole().parse("seed", given.seed)
    configure_stores(given)
    path = storage.absolute(given.to)
    written = _pick(storage.absolute(given.output), path, rows=rows, seed=seed)
    console.show(f"{written:,} rows in {path}")
    return 0


def _pick(folder: str, path: str, *, rows: int, seed: int | None) -> int:
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    from job import storage
    from job.compare import night_files, verify
    from job.compare.rescoring import PublishedRows
    from job.scoring.golden import MOST_BYTES

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
    if (size_bytes := len(sink.getvalue())) > MOST_BYTES:
        raise UsageError(f"--rows={rows}: {size_bytes:,} bytes, more than {MOST_BYTES:,}; take fewer")
    storage.make_folder(storage.parent(path))
    storage.write_atomic(path, sink.getvalue())
    return len(table)
