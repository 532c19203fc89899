"""Rows of two nights side by side: a full outer join on the keys, by DuckDB, in bounded memory.

DuckDB reads both sides as Arrow batches, puts aside on the local disk what is too much for its memory, and
hands back the joined rows as Arrow batches. A key that is null matches a null.

Inside DuckDB columns have names of our own (``k0``, ``v0``), so no name of a user's column is part of a
query. Types that DuckDB does not hold exactly travel as integers or text, and come back as they were.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from job.errors import DataError, StorageError, UsageError, one_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_BATCH_ROWS: Final = 131_072
# More threads need more memory, and reading is done by one of them.
_THREADS: Final = 2
# With less, DuckDB fails on 40 million rows a side; it needs more where more parts are open at a time.
_LEAST_MEMORY_BYTES: Final = 160_000_000
_MEMORY_BYTES_PER_ROW: Final = 4


@dataclass(frozen=True)
class Side:
    """One of two nights: what it is called in messages, how many rows it has, and these, in tables.

    The tables hold the key columns in front, the same on both sides; no column is nested.
    """

    name: str
    rows: int
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Pairs:
    """Rows that both have, in the same order: ``a`` with the keys, ``b``; how many more each had here."""

    a: pa.Table
    b: pa.Table
    only_a: int = 0
    only_b: int = 0


def pairs(a: Side, b: Side, keys: Sequence[str]) -> Iterator[Pairs]:
    """Yield the rows of both nights side by side.

    Raises:
        UsageError: DuckDB is not installed; or two rows of one night have the same key, and the message
            shows one.
        StorageError: the local disk is full.
    """
    try:
        import duckdb
    except ImportError as e:
        raise UsageError(
            "two nights are compared by DuckDB, which is not installed: pip install 'scoring-job[diff]'"
        ) from e
    if not keys:
        raise ValueError("no keys to match rows by")
    memory_bytes = max(_LEAST_MEMORY_BYTES, _MEMORY_BYTES_PER_ROW * max(a.rows, b.rows))
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="scoring-job-diff-"))
        config: dict[str, Any] = {
            "memory_limit": f"{memory_bytes}B",
            "threads": _THREADS,
            "preserve_insertion_order": False,
            "temp_directory": folder,
            "autoload_known_extensions": False,
        }
        sides = _Reader(a, len(keys)), _Reader(b, len(keys))
        rows_a, rows_b = (side.batches() for side in sides)
        try:
            connection = opened.enter_context(duckdb.connect(config=config))
            connection.register("rows_a", rows_a)
            connection.register("rows_b", rows_b)
            yield from _joined(connection, *sides, keys)
        except (duckdb.Error, pa.ArrowException, OSError) as e:
            # What goes wrong while a file is read comes back as DuckDB's error, or in batches as Arrow's.
            for side in sides:
                if side.failed is not None:
                    raise side.failed from None
            raise StorageError(
                f"{folder}: rows cannot be put aside: {one_line(e)}; point TMPDIR to a disk with more room"
            ) from e


@dataclass
class _Reader:
    """A side as DuckDB reads it; ``rows`` were read so far, and ``failed`` is what went wrong meanwhile."""

    side: Side
    keys: int
    rows: int = 0
    failed: BaseException | None = None
    values: Sequence[str] = ()
    kinds: Sequence[pa.DataType] = ()

    def batches(self) -> pa.RecordBatchReader:
        """Return all rows from the first on, in columns ``k0`` and so on, then ``v0`` and so on."""
        tables = self.side.tables()
        first = next(tables)
        self.values, self.kinds, self.rows = first.column_names[self.keys :], first.schema.types, 0
        names = [f"k{i}" if i < self.keys else f"v{i - self.keys}" for i in range(first.num_columns)]
        sample = [_packed(pa.array([], kind)) for kind in self.kinds]
        schema = pa.schema([(name, column.type) for name, column in zip(names, sample, strict=True)])

        def read() -> Iterator[pa.RecordBatch]:
            try:
                for table in itertools.chain([first], tables):
                    yield from self._packed(table, schema)
            except BaseException as e:
                self.failed = e
                raise

        return pa.RecordBatchReader.from_batches(schema, read())

    def _packed(self, table: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        self.rows += table.num_rows
        yield from pa.table([_packed(column) for column in table.columns], schema=schema).to_batches()

    def unpacked(self, table: pa.Table, prefix: str, names: Sequence[str], first: int) -> dict[str, Any]:
        """Return columns that DuckDB hands back by their own names and types."""
        kinds = self.kinds[first : first + len(names)]
        return {
            name: table[f"{prefix}{i}"].cast(kind)
            for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
        }


def _packed(column: Any) -> Any:
    """Return values as DuckDB holds them without loss."""
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    if pa.types.is_decimal(kind) and not pa.types.is_decimal128(kind):
        return column.cast(pa.large_string())
    return column


def _joined(connection: DuckDBPyConnection, a: _Reader, b: _Reader, keys: Sequence[str]) -> Iterator[Pairs]:
    places = range(len(keys))
    both = ", ".join(f"coalesce(a.k{i}, b.k{i}) AS k{i}" for i in places)
    values = "".join(f", {side}.v{i} AS {side}{i}" for side in "ab" for i in range(len(a.values)))
    same = " AND ".join(f"a.k{i} IS NOT DISTINCT FROM b.k{i}" for i in places)
    query = (
        f"SELECT {both}{values}, a.here AS in_a, b.here AS in_b FROM (SELECT *, true AS here FROM rows_a) a "
        f"FULL OUTER JOIN (SELECT *, true AS here FROM rows_b) b ON {same}"
    )
    alone = _Alone(connection.cursor(), [f"k{i}" for i in places])
    matched = only_a = only_b = 0
    for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
        table = pa.Table.from_batches([batch])
        in_a, in_b = pc.is_valid(table["in_a"]), pc.is_valid(table["in_b"])
        more_a, more_b = table["in_b"].null_count, table["in_a"].null_count
        if more_a or more_b:
            alone.add(table.filter(pc.invert(pc.and_(in_a, in_b))))
            table = table.filter(pc.and_(in_a, in_b))
        matched, only_a, only_b = matched + table.num_rows, only_a + more_a, only_b + more_b
        if matched > min(a.side.rows, b.side.rows):
            break
        yield Pairs(
            pa.table({**a.unpacked(table, "k", keys, 0), **a.unpacked(table, "a", a.values, len(keys))}),
            pa.table(b.unpacked(table, "b", b.values, len(keys))),
            only_a=more_a,
            only_b=more_b,
        )
    # A key that a night has twice is matched more often than the other night has it.
    if matched + only_a != a.rows or matched + only_b != b.rows or alone.repeats():
        for side in (a, b):
            _check_once(connection.cursor(), side, keys)
        raise DataError(f"{a.side.name}: {a.side.rows} rows are published, and others were read")


@dataclass(frozen=True)
class _Alone:
    """The keys of rows that one side alone has, kept to find those that it has twice."""

    cursor: DuckDBPyConnection
    keys: Sequence[str]

    def add(self, rows: pa.Table) -> None:
        """Put rows aside."""
        self.cursor.register("more", rows.select([*self.keys, "in_a"]))
        self.cursor.execute("CREATE TABLE IF NOT EXISTS alone AS SELECT * FROM more LIMIT 0")
        self.cursor.execute("INSERT INTO alone SELECT * FROM more")
        self.cursor.unregister("more")

    def repeats(self) -> bool:
        """Say whether a side has a key twice."""
        if not self.cursor.sql("SELECT 1 FROM duckdb_tables() WHERE table_name = 'alone'").fetchall():
            return False
        columns = ", ".join([*self.keys, "in_a"])
        query = f"SELECT 1 FROM alone GROUP BY {columns} HAVING count(*) > 1 LIMIT 1"
        return bool(self.cursor.sql(query).fetchall())


def _check_once(cursor: DuckDBPyConnection, side: _Reader, keys: Sequence[str]) -> None:
    """Refuse a night in which a key stands twice, and show it."""
    cursor.register("again", side.batches())
    columns = ", ".join(f"k{i}" for i in range(len(keys)))
    query = f"SELECT {columns}, count(*) AS times FROM again GROUP BY {columns} HAVING count(*) > 1 LIMIT 1"
    found = cursor.sql(query).to_arrow_table()
    if found.num_rows:
        first = pa.table(side.unpacked(found, "k", keys, 0)).to_pylist()[0]
        example = ", ".join(f"{name}={value}" for name, value in first.items())
        raise UsageError(
            f"{side.side.name}: {found['times'][0].as_py()} rows have the same key, {example}; give the "
            f"columns that tell rows apart by --keys"
        )
