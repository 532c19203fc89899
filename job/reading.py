"""One split's rows as record batches: only the columns that are needed, a chunk at a time, one ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from job import planning, storage
from job.errors import ShardError, one_line
from job.spec import Feed, Shard, Split

CHUNK_BYTES = 32 << 20
# Held per column while a row group is read.
COLUMN_BUFFER_BYTES = 128 << 10
# Enough rows for the largest batch that is ever tried.
CHUNK_ROWS = 65_536
# Bytes that a string cell is taken for when a chunk is sized.
_STRING_BYTES = 32


class SplitReader:
    """Reads one split. ``read_s`` is seconds spent reading and decoding so far."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.path = split.shard.path
        self.read_s = 0.0

    def __enter__(self) -> SplitReader:
        self._file = _open(self._split.shard)
        self.schema: pa.Schema = self._file.schema_arrow
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def chunks(
        self, features: Sequence[str], keys: Sequence[str], chunk_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the split's rows in order, ``chunk_rows`` at a time, reading one chunk ahead in a thread.

        A feature that is a Hive folder's name is a column of one value. A key that is one is left out: the
        output lies below the same folder.

        Raises:
            ShardError: the shard is damaged.
        """
        chunks = self._read(features, keys, chunk_rows)
        if self._split.rows <= chunk_rows:
            # There is nothing to read ahead, and a thread costs more than it could save.
            yield from chunks
            return
        with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
            pending = pool.submit(next, chunks, None)
            while (chunk := pending.result()) is not None:
                pending = pool.submit(next, chunks, None)
                yield chunk

    def everything(self) -> Iterator[pa.RecordBatch]:
        """Return the split's rows again, in order, with every column of the file."""
        return self._read(self.schema.names, (), CHUNK_ROWS)

    def _read(
        self, features: Sequence[str], keys: Sequence[str], chunk_rows: int
    ) -> Iterator[pa.RecordBatch]:
        split, present = self._split, set(self.schema.names)
        wanted = [name for name in dict.fromkeys((*features, *keys)) if name in present]
        folders = [
            (name, planning.partition_scalar(value))
            for name, value in split.shard.partition
            if name in features and name not in present
        ]
        begin = time.perf_counter()
        try:
            # Threads of Arrow's own would compete with the scoring threads for the same cores.
            batches = self._file.iter_batches(chunk_rows, list(split.row_groups), wanted, use_threads=False)
            for batch in _whole(batches, chunk_rows):
                for name, scalar in folders:
                    batch = batch.append_column(name, pa.repeat(scalar, batch.num_rows))
                self.read_s += time.perf_counter() - begin
                yield batch
                begin = time.perf_counter()
        except (pa.ArrowException, OSError) as e:
            raise ShardError(
                f"{split.shard.path}: row groups {split.row_groups[0]} to {split.row_groups[-1]} cannot be "
                f"read ({one_line(e)}); write the shard again"
            ) from e


def _whole(batches: Iterator[pa.RecordBatch], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """Put together what Arrow cuts where a row group ends, as it does with dictionary-encoded columns."""
    held: list[pa.RecordBatch] = []
    rows = size_bytes = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        size_bytes += batch.nbytes
        # The bytes, because an array of text ends at 2 GiB.
        if rows >= chunk_rows or size_bytes >= CHUNK_BYTES:
            yield held[0] if len(held) == 1 else pa.concat_batches(held)
            held, rows, size_bytes = [], 0, 0
    if held:
        yield held[0] if len(held) == 1 else pa.concat_batches(held)


def chunk_rows(feeds: Sequence[Feed], batch_rows: int) -> int:
    """Return how many rows to read at once: whole batches, and no more than ``CHUNK_BYTES``.

    ``batch_rows`` 0 means that the batch size is not known yet.
    """
    row_bytes = 1
    for feed in feeds:
        cells = 1
        for extent in feed.input.shape:
            cells *= extent or 1
        row_bytes += cells * _cell_bytes(feed.input.dtype)
    fitting = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
    if batch_rows:
        return batch_rows * max(1, fitting // batch_rows)
    # A power of two, so that every batch size which is tried divides it.
    return 1 << (fitting.bit_length() - 1)


def _cell_bytes(dtype: str) -> int:
    if dtype == "string":
        return _STRING_BYTES
    digits = "".join(c for c in dtype if c.isdigit())
    return max(1, int(digits) // 8) if digits else 1


def _open(shard: Shard) -> pq.ParquetFile:
    try:
        found = storage.describe(shard.path)
        if found is None or (found.size_bytes, found.stamp) != (shard.size_bytes, shard.stamp):
            raise ShardError(
                f"{shard.path}: it is not the file that was planned ({shard.size_bytes} bytes of time "
                f"{shard.stamp}); run again to plan anew"
            )
        # Without these a whole row group's compressed columns are held at once: 840 MB for a row group
        # of 300,000 images of 28 × 28, where this way 30 MB are. Local reading is no slower.
        return pq.ParquetFile(storage.local(shard.path), pre_buffer=False, buffer_size=COLUMN_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as e:
        raise ShardError(f"{shard.path}: cannot be opened ({one_line(e)})") from e
