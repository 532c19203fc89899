"""Feature shards made by code: every value drawn afresh, the same on every machine.

No row group is a copy of another one, because repeated bytes would flatter zstd, the page cache
and the branch predictor alike. Dictionary encoding is off: on values that never repeat it makes
files larger and reading slower, on both sides of a comparison, and so would hide the job's own cost.
Row groups hold 131,072 rows: 5 MiB of ten such columns, 50 MiB of a hundred.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20131215
ROW_GROUP_ROWS = 131_072
COMPLETE = "_complete.json"


@dataclass(frozen=True)
class Dataset:
    """``shards`` files of ``shard_rows`` rows with ``width`` float32 features a row.

    ``columns`` lays the features out as scalar columns ``f0 f1 …``; ``vectors`` as one
    ``fixed_size_list<float32>[width]`` column called ``image``.
    """

    name: str
    layout: Literal["columns", "vectors"]
    shards: int
    shard_rows: int
    width: int

    def __post_init__(self) -> None:
        """Refuse sizes that would make an empty dataset.

        Raises:
            ValueError: a size is below one.
        """
        if min(self.shards, self.shard_rows, self.width) < 1:
            raise ValueError(f"dataset {self.name}: every size must be at least 1, got {self}")

    @property
    def rows(self) -> int:
        """Rows in all shards together."""
        return self.shards * self.shard_rows

    @property
    def folder(self) -> str:
        """The folder's name; sizes are part of it, so that a quick try leaves the full set alone."""
        return f"{self.name}-{self.shards}x{self.shard_rows}"


def table(dataset: Dataset, shard: int) -> pa.Table:
    """Return the rows of one shard: standard normal scalars, or vectors of [0, 1) like pixels."""
    random = np.random.default_rng((SEED, shard, dataset.width))
    if dataset.layout == "columns":
        columns = random.standard_normal((dataset.width, dataset.shard_rows), dtype=np.float32)
        return pa.table({f"f{index}": column for index, column in enumerate(columns)})
    flat = random.random(dataset.shard_rows * dataset.width, dtype=np.float32)
    return pa.table({"image": pa.FixedSizeListArray.from_arrays(pa.array(flat), dataset.width)})


def ensure(dataset: Dataset, root: Path) -> Path:
    """Return the folder below ``root`` that holds ``dataset``, writing it where it is not there yet.

    The folder is put in place by one rename, so that one that was interrupted is never taken for
    finished. A folder written by another recipe is replaced.
    """
    folder = root / dataset.folder
    wanted = json.dumps({**asdict(dataset), "seed": SEED, "row_group_rows": ROW_GROUP_ROWS})
    marker = folder / COMPLETE
    if marker.exists() and marker.read_text() == wanted:
        return folder
    unfinished = root / f"_{dataset.folder}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    for shard in range(dataset.shards):
        _write(table(dataset, shard), unfinished / f"shard-{shard:05d}.parquet")
    (unfinished / COMPLETE).write_text(wanted)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return folder


def first(folder: Path, shards: int) -> Path:
    """Return a folder with hard links to the first ``shards`` files of ``folder``.

    Raises:
        ValueError: there are fewer files.
    """
    paths = sorted(folder.glob("*.parquet"))[:shards]
    if len(paths) < shards:
        raise ValueError(f"{folder} holds {len(paths)} shards, {shards} were asked for")
    linked = folder.with_name(f"{folder.name}-first-{shards}")
    if linked.exists():
        shutil.rmtree(linked)
    linked.mkdir()
    for path in paths:
        os.link(path, linked / path.name)
    return linked


def warm(paths: Iterable[Path]) -> int:
    """Read every file once, so that no side pays for a cold page cache; return the bytes read."""
    total = 0
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                total += len(chunk)
    return total


def _write(rows: pa.Table, path: Path) -> None:
    pq.write_table(rows, path, row_group_size=ROW_GROUP_ROWS, compression="zstd", use_dictionary=False)
