"""What somebody may do to a published night, and what ``verify`` then says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.nights import Night, dense, saved


def table_of(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def rewrite(night: Night, path: Path, table: pa.Table) -> None:
    """Put other rows into a file, and make the manifest agree: a forger who knows of checksums."""
    pq.write_table(table, path, compression="zstd")
    manifest = night.manifest()
    name = str(path.relative_to(night.output))
    (entry,) = [entry for entry in manifest["files"] if entry["path"] == name]
    content = path.read_bytes()
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "rows": table.num_rows}
    (night.output / "_manifest.json").write_text(json.dumps(manifest))


def changed(table: pa.Table, column: str, row: int, change: Callable[[Any], Any]) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = change(values[row])
    index = table.schema.get_field_index(column)
    return table.set_column(
        index, table.schema.field(column), pa.array(values, table.schema.field(column).type)
    )


def flip_a_byte(night: Night, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def delete(night: Night, path: Path) -> None:
    path.unlink()


def truncate(night: Night, path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def swap(night: Night, path: Path) -> None:
    other = night.files()[-1]
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def add(night: Night, path: Path) -> None:
    (path.parent / "more.parquet").write_bytes(path.read_bytes())


def change_a_prediction(night: Night, path: Path) -> None:
    rewrite(night, path, changed(table_of(path), "prediction", 17, lambda value: value + 1e-3))


def change_a_key(night: Night, path: Path) -> None:
    rewrite(night, path, changed(table_of(path), "id", 17, lambda value: value + 1))


def exchange_two_rows(night: Night, path: Path) -> None:
    table = table_of(path)
    order = [1, 0, *range(2, table.num_rows)]
    values = table["prediction"].take(order)
    rewrite(night, path, table.set_column(1, "prediction", values))


def drop_a_row(night: Night, path: Path) -> None:
    rewrite(night, path, table_of(path).slice(1))


def change_a_shard(night: Night, path: Path) -> None:
    shard = night.input / "hour=07/part-0.parquet"
    os.utime(shard, (1, 1))


def change_the_model(night: Night, path: Path) -> None:
    saved(dense(seed=1), night.folder / "m.keras")


FAULTS: dict[str, tuple[Callable[[Night, Path], None], str]] = {
    "a flipped byte": (flip_a_byte, r"part-0-00000-00001\.parquet: it was changed: "),
    "a deleted file": (delete, r"part-0-00000-00001\.parquet: it is gone$"),
    "a truncated file": (truncate, r"part-0-00000-00001\.parquet: it was changed: "),
    "a swapped pair": (swap, r"^hour=07/part-0-\S+: it holds what hour=10/part-2-\S+ should hold$"),
    "an added file": (add, r"^hour=07/more\.parquet: the manifest does not name it$"),
    "a prediction changed by 1e-3": (change_a_prediction, r"row 17 \(row 18 of \S+\): prediction is "),
    "a changed key": (change_a_key, r"row 17 \(row 18 of \S+\): id is 19, scoring it again gives 18"),
    "two rows exchanged": (exchange_two_rows, r"row 0 \(row 0 of \S+\): prediction is "),
    "a dropped row": (drop_a_row, r"the shard holds 300 rows, the night accounts for 299$"),
    "a changed shard": (change_a_shard, r"part-0\.parquet: the shard was changed since it was scored"),
    "a changed model": (change_the_model, r"the model is not to be had: \S+m\.keras: its SHA-256 is"),
}
