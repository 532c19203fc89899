"""How shards are cut into splits. Except for ``read_footer`` this is arithmetic.

A shard is cut only between row groups, so that a split is read with one seek and decodes no row of another
split. A shard of at most ``split_rows`` rows is one split and one output file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.errors import SchemaError, ShardChangedError, ShardError, check_not_passing
from job.spec import Shard, Split
from job.storage import FileInfo

# Hive writes this folder name for a null partition value.
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
# Of the 255 bytes that file systems allow for a name; the rest is for row-group numbers and attempts.
STEM_BYTES = 180
# The name that pandas gives an index without a name.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True, eq=False)
class Footer:
    """What a shard's footer says: its columns, and the rows of each row group.

    If the footer cannot be read, ``error`` says why, and there are no columns and no rows. ``index_columns``
    hold the index of a data frame, see :func:`index_columns`; ``int96`` are those with timestamps of
    Parquet's oldest form, see :func:`int96_columns`, with the types that they have when they are read in
    microseconds.
    """

    schema: pa.Schema
    group_rows: tuple[int, ...]
    error: str = ""
    index_columns: tuple[str, ...] = ()
    int96: tuple[pa.Field, ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of rows in the shard."""
        return sum(self.group_rows)


def read_footer(shard: Shard) -> Footer:
    """Read one shard's footer.

    Raises:
        ShardError: the file is not Parquet, or is cut short.
        ShardChangedError: the file is gone, or was written again since it was listed.
        StorageError: reading it failed.
    """
    if not is_utf8(shard.path):
        raise ShardError(
            f"{shard.path}: a name in its path is not in UTF-8, as Parquet's readers and a manifest want it "
            f"(\\udc80 to \\udcff stand for its bytes); rename it"
        )
    try:
        with pq.ParquetFile(storage.footer_source(shard.path, shard.size_bytes, shard.stamp)) as file:
            metadata = file.metadata
            groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            if min(groups, default=0) < 0 or metadata.num_rows not in (0, sum(groups)):
                # Some writers leave 0 there, and their row groups are right.
                raise ShardError(
                    f"{shard.path}: its footer says {metadata.num_rows} rows, and its row groups hold "
                    f"{sum(groups)}{' (one of them less than none)' * (min(groups) < 0)}; write it again"
                )
            # The file's own Arrow schema, when it has one, names dictionaries, fixed sizes and tensors.
            schema = file.schema_arrow
            return Footer(
                schema, groups, index_columns=index_columns(schema), int96=_int96_fields(file, schema)
            )
    except FileNotFoundError as e:
        raise ShardChangedError(
            f"{shard.path}: was listed and is gone; run again when the input is complete"
        ) from e
    except (pa.ArrowException, OSError, ValueError) as e:
        check_not_passing(e, shard.path)
        _check_unchanged(shard)
        reason = " ".join(str(e).split())
        raise ShardError(
            f"{shard.path}: no readable Parquet file ({reason}); write it again or narrow --input"
        ) from e


def _check_unchanged(shard: Shard) -> None:
    """Raise if a local shard has no footer because it is still being written; objects appear as a whole."""
    found = None if storage.is_remote(shard.path) else storage.describe(shard.path)
    if found is not None and (found.size_bytes, found.stamp) != (shard.size_bytes, shard.stamp):
        raise ShardChangedError(
            f"{shard.path}: it was written again since it was listed; run again when the input is complete"
        )


def is_utf8(path: str) -> bool:
    """Say whether a path is UTF-8. Python turns bytes that are not into lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in path)


def index_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns that hold a pandas index, by their names or by pandas' own metadata.

    The metadata is described in https://pandas.pydata.org/docs/development/developer.html.
    """
    named: list[Any] = []
    # Whatever a file holds there: it is no error of its rows.
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        named = list(json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ()))
    return tuple(name for name in schema.names if name in named or _PANDAS_INDEX.fullmatch(name))


def int96_columns(file: pq.ParquetFile, schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of a file that hold timestamps as INT96, also inside lists or structs.

    Spark and Impala write them, for any year from 1 to 9999 and beyond. Arrow reads them as nanoseconds,
    which reach from 1677 to 2262; it turns other years into wrong ones without an error.
    """
    if "timestamp[ns]" not in str(schema.types):
        return ()
    leaves = (file.schema.column(i) for i in range(len(file.schema)))
    found = {leaf.path.partition(".")[0] for leaf in leaves if leaf.physical_type == "INT96"}
    # A name may hold a dot itself.
    return tuple(name for name in schema.names if name.partition(".")[0] in found)


def _int96_fields(file: pq.ParquetFile, schema: pa.Schema) -> tuple[pa.Field, ...]:
    """Return the columns of :func:`int96_columns` as Arrow reads them in microseconds, however nested."""
    names = int96_columns(file, schema)
    if not names:
        return ()
    # The footer is at hand: nothing is read.
    nothing = pa.BufferReader(b"")
    with pq.ParquetFile(nothing, metadata=file.metadata, coerce_int96_timestamp_unit="us") as in_micros:
        return tuple(field for field in in_micros.schema_arrow if field.name in names)


def shard_of(info: FileInfo) -> Shard:
    """Return the shard for a listed file, with the Hive folders of its path."""
    return Shard(info.path, info.size_bytes, info.stamp, hive_folders(info.path))


def hive_folders(path: str) -> tuple[tuple[str, str], ...]:
    """Return the ``name=value`` folders of a path, outermost first, URL-decoded.

    Of a name that occurs twice, the innermost value counts. Folders that begin with ``_`` or ``.`` do not
    count.

    >>> hive_folders("in/ds=2013-12-01/hour=07/a.parquet")
    (('ds', '2013-12-01'), ('hour', '07'))
    """
    parts = _hive_parts(path).items()
    return tuple((name, unquote(folder.partition("=")[2])) for name, folder in parts)


def _hive_parts(path: str) -> dict[str, str]:
    """Return a path's Hive folders as they are written, by name; if a name occurs twice, the innermost."""
    found: dict[str, str] = {}
    for folder in PurePosixPath(path).parts[:-1]:
        name, sign, _ = folder.partition("=")
        # Readers of the output skip what begins so.
        if sign and name and not folder.startswith(("_", ".")):
            found.pop(unquote(name), None)
            found[unquote(name)] = folder
    return found


def partition_scalar(value: str) -> pa.Scalar:
    """Return a Hive folder's value as Arrow text; Hive's null is a null."""
    return pa.scalar(None if value == HIVE_NULL else value, pa.string())


def with_partitions(schema: pa.Schema, partition: tuple[tuple[str, str], ...]) -> pa.Schema:
    """Return ``schema`` with the Hive columns that the file itself lacks.

    They are always text. If ``hour=10`` were a number and ``hour=07`` text, a column's type would depend on
    the night.
    """
    for name, _ in partition:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    return schema


def output_stems(shards: Sequence[Shard]) -> list[str]:
    """Return each shard's output path, relative and without ``.parquet``, all distinct.

    It is the shard's stem below its own Hive folders. If several shards would get the same one, a digest of
    each shard's path is added, so that the name depends on that shard alone. A name of more than
    ``STEM_BYTES`` bytes is cut to that and gets a digest as well.
    """
    stems = [_stem(shard) for shard in shards]
    seen = Counter(stem.casefold() for stem in stems)
    return [
        stem if seen[stem.casefold()] == 1 and not _is_long(stem) else _with_digest(stem, shard.path)
        for stem, shard in zip(stems, shards, strict=True)
    ]


def _is_long(stem: str) -> bool:
    return len(os.fsencode(stem.rpartition("/")[2])) > STEM_BYTES


def _with_digest(stem: str, path: str) -> str:
    folders, slash, name = stem.rpartition("/")
    ending = f"~{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    kept = os.fsencode(name)[: STEM_BYTES - len(ending)].decode(errors="ignore")
    return f"{folders}{slash}{kept}{ending}"


def _stem(shard: Shard) -> str:
    path = PurePosixPath(shard.path)
    name = path.name
    for suffix in _PARQUET_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    # A name that began so would be skipped by every reader of the output.
    name = name.lstrip("_.") or "part"
    return "/".join([*_hive_parts(shard.path).values(), name])


def cut(group_rows: Sequence[int], split_rows: int) -> list[range]:
    """Return runs of row groups, in order, that hold about ``split_rows`` rows each.

    A run ends where the next row group would take it past ``split_rows``. A row group larger than that is a
    run by itself. No row groups are one empty run.

    >>> cut([40, 40, 40], 100)
    [range(0, 2), range(2, 3)]
    """
    runs: list[range] = []
    start = rows = 0
    for i, more in enumerate(group_rows):
        if i > start and rows + more > split_rows:
            runs.append(range(start, i))
            start, rows = i, 0
        rows += more
    return [*runs, range(start, len(group_rows))]


def splits_of(
    shard: Shard, stem: str, group_rows: Sequence[int], split_rows: int, refused: str = ""
) -> list[Split]:
    """Return a shard's splits. Only if there are several have their names row-group numbers."""
    runs = cut(group_rows, split_rows)
    splits, first_row = [], 0
    for run in runs:
        rows = sum(group_rows[i] for i in run)
        name = stem if len(runs) == 1 else f"{stem}-{run[0]:05d}-{run[-1]:05d}"
        splits.append(Split(name, shard, tuple(run), first_row, rows, refused))
        first_row += rows
    return splits


def plan(
    shards: Sequence[Shard],
    group_rows: Sequence[tuple[int, ...]],
    split_rows: int,
    refused: Mapping[str, str] | None = None,
) -> tuple[Split, ...]:
    """Return all splits of a run, in the order of its shards.

    ``refused`` holds, by path, why all rows of a shard are to be rejected.
    """
    stems = output_stems(shards)
    splits = tuple(
        split
        for shard, stem, groups in zip(shards, stems, group_rows, strict=True)
        for split in splits_of(shard, stem, groups, split_rows, (refused or {}).get(shard.path, ""))
    )
    doubled = [name for name, n in Counter(s.name.casefold() for s in splits).items() if n > 1]
    if doubled:
        raise SchemaError(
            f"two splits would be written to {doubled[0]}.parquet; rename one of the shards named like it"
        )
    return splits
