"""One split: read ▶ bind ▶ predict ▶ write, in one place, as record batches.

While a batch is predicted the next chunk is read and the last row group is written, each in a thread of its
own; Arrow and TensorFlow release the interpreter lock, so the steps overlap. A split of one chunk goes
through in a straight line, since starting threads would cost more than it saves.

Memory of one scoring thread, whatever the number of rows, shards or row groups: three chunks (being read,
waiting, being scored) of at most ``CHUNK_BYTES`` or one batch, the model's activations for one batch, and
two output row groups (filling, being written) of at most ``ROW_GROUP_BYTES`` each.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from job import model, planning, progress, staging, storage
from job.binding import Binding, to_tensors
from job.errors import DataError, JobError, ShardError
from job.predictions import to_arrow
from job.spec import Device, Receipt, Run, Split
from job.writing import PartWriter

CHUNK_BYTES = 32 << 20
# Enough rows for the largest batch that is ever tried.
CHUNK_ROWS = 65_536
# Bytes that a string cell is taken for when a chunk is sized.
_STRING_BYTES = 32


@dataclass(frozen=True, eq=False)
class ScoringTask:
    """What a worker must know beyond the split: one per run, the same for all workers.

    ``batch_rows`` 0 means auto. ``threads`` is TensorFlow's threads within one operation.
    """

    run: Run
    binding: Binding
    keys: tuple[str, ...]
    partition_types: dict[str, pa.DataType]
    predictions: tuple[pa.Field, ...]
    batch_rows: int
    row_group_rows: int
    compression: str
    device: Device
    threads: int


@dataclass
class _Tally:
    """What has been done so far; each time is added by one thread only."""

    rows: int = 0
    batches: int = 0
    batch_rows: int = 0
    read_s: float = 0.0
    bind_s: float = 0.0
    predict_s: float = 0.0
    first_batch_unix_s: float = 0.0
    clock: Callable[[], float] = field(default=time.perf_counter)


def score_split(split: Split, task: ScoringTask, loaded: model.LoadedModel) -> Receipt:
    """Score one split into a new attempt and return its receipt, which is not yet written.

    Raises:
        ShardError: the shard is not what the plan says, or cannot be read.
        DataError: a row cannot be fed to the model, or the model fails on it.
        StorageError: the attempt cannot be written.
    """
    tally = _Tally()
    try:
        return _score(split, task, loaded, tally)
    except BaseException:
        # Another attempt will count these rows again.
        progress.rows_done.add(-tally.rows)
        raise


def _score(split: Split, task: ScoringTask, loaded: model.LoadedModel, tally: _Tally) -> Receipt:
    attempt = staging.new_attempt(task.run.output, task.run.run_id, split)
    overlap = split.rows > chunk_rows(task)
    with closing(_open(split)) as file:
        kept = [name for name in task.keys if name in file.schema_arrow.names]
        fields = [*(file.schema_arrow.field(name) for name in kept), *task.predictions]
        schema = pa.schema(fields, metadata=_metadata(task.run))
        with PartWriter(attempt, schema, task.row_group_rows, task.compression, overlap=overlap) as writer:
            chunks = _read(file, split, task, tally)
            for chunk in _ahead(chunks) if overlap else chunks:
                _score_chunk(chunk, kept, split, task, loaded, writer, tally)
            if tally.rows != split.rows:
                raise ShardError(
                    f"{split.shard.path}: split {split.name} held {split.rows} rows when it was planned and "
                    f"{tally.rows} now; the file is being changed, run again when it is complete"
                )
            part = writer.finish()
    return Receipt(
        split=split,
        run_id=task.run.run_id,
        attempt=attempt,
        rows_read=tally.rows,
        rows_scored=part.rows,
        rows_rejected=0,
        file_bytes=part.size_bytes,
        file_sha256=part.sha256,
        batch_rows=tally.batch_rows,
        batches=tally.batches,
        read_s=tally.read_s,
        bind_s=tally.bind_s,
        predict_s=tally.predict_s,
        write_s=part.write_s,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        load=loaded.load,
        load_s=loaded.load_s,
        traces=loaded.traces,
        weights_digest=loaded.weights_digest,
        first_batch_unix_s=tally.first_batch_unix_s,
    )


def chunk_rows(task: ScoringTask) -> int:
    """Return how many rows are read at once: whole batches, and no more than ``CHUNK_BYTES``."""
    row_bytes = 1
    for feed in task.binding.feeds:
        cells = 1
        for extent in feed.input.shape:
            cells *= extent or 1
        row_bytes += cells * _cell_bytes(feed.input.dtype)
    fitting = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
    if task.batch_rows:
        return task.batch_rows * max(1, fitting // task.batch_rows)
    # A power of two, so that every batch size which is tried divides it.
    return 1 << (fitting.bit_length() - 1)


def _cell_bytes(dtype: str) -> int:
    if dtype == "string":
        return _STRING_BYTES
    digits = "".join(c for c in dtype if c.isdigit())
    return max(1, int(digits) // 8) if digits else 1


def _open(split: Split) -> pq.ParquetFile:
    shard = split.shard
    try:
        found = storage.describe(shard.path)
        if found is None or (found.size_bytes, found.stamp) != (shard.size_bytes, shard.stamp):
            raise ShardError(
                f"{shard.path}: it is not the file that was planned ({shard.size_bytes} bytes of time "
                f"{shard.stamp}); run again to plan anew"
            )
        return pq.ParquetFile(storage.local(shard.path))
    except (pa.ArrowException, OSError) as e:
        raise ShardError(f"{shard.path}: cannot be opened: {_one_line(e)}") from e


def _read(file: pq.ParquetFile, split: Split, task: ScoringTask, tally: _Tally) -> Iterator[pa.RecordBatch]:
    present = set(file.schema_arrow.names)
    wanted = [name for name in dict.fromkeys((*task.binding.columns, *task.keys)) if name in present]
    folders = [
        (name, planning.partition_scalar(value, task.partition_types[name]))
        for name, value in split.shard.partition
        if name not in present and name in task.binding.columns
    ]
    begin = tally.clock()
    try:
        # Threads of Arrow's own would compete with the scoring threads for the same cores.
        batches = file.iter_batches(chunk_rows(task), list(split.row_groups), wanted, use_threads=False)
        for batch in batches:
            for name, scalar in folders:
                batch = batch.append_column(name, pa.repeat(scalar, batch.num_rows))
            tally.read_s += tally.clock() - begin
            yield batch
            begin = tally.clock()
    except (pa.ArrowException, OSError) as e:
        raise ShardError(
            f"{split.shard.path}: row groups {split.row_groups[0]} to {split.row_groups[-1]} cannot be read "
            f"({_one_line(e)}); write the shard again"
        ) from e


def _ahead(chunks: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the same chunks, reading one ahead in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        pending = pool.submit(next, chunks, None)
        while (chunk := pending.result()) is not None:
            pending = pool.submit(next, chunks, None)
            yield chunk


def _score_chunk(
    chunk: pa.RecordBatch,
    kept: Sequence[str],
    split: Split,
    task: ScoringTask,
    loaded: model.LoadedModel,
    writer: PartWriter,
    tally: _Tally,
) -> None:
    if not chunk.num_rows:
        return
    tally.batch_rows = max(tally.batch_rows, _batch_rows(chunk, task, loaded))
    batch_rows = tally.batch_rows
    for start in range(0, chunk.num_rows, batch_rows):
        piece = chunk.slice(start, batch_rows)
        first_row = split.first_row + tally.rows
        begin = tally.clock()
        tensors, faults = to_tensors(piece, task.binding)
        if faults:
            fault = faults[0]
            raise DataError(
                f"{split.shard.path}: row {first_row + int(fault.rows[0])}, column {fault.column}: "
                f"{fault.text} ({fault.code}, value {fault.example}); {len(fault.rows)} such row(s) in this "
                f"batch; mend the shard or use --cast"
            )
        bound = tally.clock()
        try:
            outputs = loaded.predict(tensors, batch_rows)
        except JobError:
            raise
        except Exception as e:
            raise DataError(
                f"{split.shard.path}: the model failed on rows {first_row} to "
                f"{first_row + piece.num_rows - 1}: {_one_line(e)}"
            ) from e
        tally.predict_s += tally.clock() - bound
        tally.first_batch_unix_s = tally.first_batch_unix_s or time.time()
        columns = [piece.column(name) for name in kept]
        columns += to_arrow(outputs, task.predictions, piece.num_rows)
        tally.bind_s += bound - begin
        writer.append(columns)
        tally.rows += piece.num_rows
        tally.batches += 1
        progress.rows_done.add(piece.num_rows)


def _batch_rows(chunk: pa.RecordBatch, task: ScoringTask, loaded: model.LoadedModel) -> int:
    if task.batch_rows:
        return task.batch_rows

    def predict(rows: int) -> object:
        tensors, faults = to_tensors(chunk.slice(0, rows), task.binding)
        # A faulty row ends the measurement here, and is reported where rows are scored.
        return None if faults else loaded.predict(tensors, rows)

    return loaded.batch.choose(chunk.num_rows, predict)


def _metadata(run: Run) -> dict[str, str]:
    return {
        "scoring_job.run_id": run.run_id,
        "scoring_job.model_sha256": run.model.digest,
        "scoring_job.signature": run.signature,
    }


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@dataclass(eq=False)
class ScoreSplits(beam.DoFn):
    """``Split`` → ``Receipt``; a split that has a receipt is not scored again."""

    task: ScoringTask

    def setup(self) -> None:
        """Take this process's copy of the model, whatever the engine does with its DoFns."""
        task = self.task
        with self._failures_left_behind(""):
            self._loaded = model.acquire(task.run.model, device=task.device, threads=task.threads)
            self._loaded.build([feed.input for feed in task.binding.feeds])

    def process(self, split: Split) -> Iterator[Receipt]:
        """Score one split, or return the receipt that it has."""
        run = self.task.run
        found = staging.read_receipt(run.output, run.run_id, split)
        if found is not None:
            yield replace(found, reused=True)
            return
        with self._failures_left_behind(split.name):
            receipt = score_split(split, self.task, self._loaded)
            staging.write_receipt(run.output, receipt)
        yield receipt

    @contextmanager
    def _failures_left_behind(self, where: str) -> Iterator[None]:
        try:
            yield
        except JobError as e:
            staging.write_failure(self.task.run.output, self.task.run.run_id, where, e)
            raise
