"""One split: read ▶ bind ▶ predict ▶ write, in one place, as record batches.

While a batch is predicted the next chunk is read and the last row group is written, each in a thread of its
own; Arrow and TensorFlow release the interpreter lock, so the steps overlap. A split of one chunk goes
through in a straight line, since starting threads would cost more than it saves.

Memory of one scoring thread, whatever the number of rows, shards or row groups: three chunks (being read,
waiting, being scored) of at most ``CHUNK_BYTES`` or one batch; ``COLUMN_BUFFER_BYTES`` for each column that
is read; the model's activations for one batch; and two output row groups (filling, being written) of at
most ``ROW_GROUP_BYTES``. For ten float32 columns: 3 × 2.6 MB + 10 × 128 kB + 2 × 1 MB, and 8 MB of
activations for 16,384 rows of 128. Times the threads; plus the weights, once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import apache_beam as beam
import numpy as np
import pyarrow as pa

from job import model, progress, staging, storage
from job.binding import Binding, to_tensors
from job.errors import DataError, JobError, ModelError, ShardError, one_line
from job.predictions import to_arrow
from job.reading import SplitReader
from job.rejects import MODEL_ERROR, Rejects, RowPolicy, predict_around, sift, with_extras
from job.sizing import chunk_rows
from job.spec import Device, Receipt, Run, Split
from job.writing import PartWriter


@dataclass(frozen=True, eq=False)
class ScoringTask:
    """What a worker must know beyond the split: one per run, the same for all workers.

    ``batch_rows`` 0 means auto. ``threads`` is TensorFlow's threads within one operation.
    ``weights_digest`` is of the weights that a builder made on the launcher, empty for an artifact's.
    """

    run: Run
    binding: Binding
    keys: tuple[str, ...]
    predictions: tuple[pa.Field, ...]
    policy: RowPolicy
    batch_rows: int
    row_group_rows: int
    compression: str
    device: Device
    threads: int
    weights_digest: str


@dataclass
class _Tally:
    """What has been done so far, in one thread."""

    rows: int = 0
    batches: int = 0
    batch_rows: int = 0
    bind_s: float = 0.0
    predict_s: float = 0.0
    first_batch_unix_s: float = 0.0


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
    columns = task.binding.columns
    rejects = Rejects(split, task.policy)
    with SplitReader(split) as reader:
        rows_at_once = chunk_rows(task.binding.feeds, task.batch_rows, reader.row_bytes(columns, task.keys))
        overlap = split.rows > rows_at_once
        kept = [name for name in task.keys if name in reader.schema.names]
        fields = [*(reader.schema.field(name) for name in kept), *task.predictions]
        schema = pa.schema(fields, metadata=_metadata(task.run))
        with (
            PartWriter(attempt, schema, task.row_group_rows, task.compression, overlap=overlap) as writer,
            # On an error the thread that reads ahead must end before the file is closed.
            closing(reader.chunks(columns, task.keys, rows_at_once)) as chunks,
        ):
            for piece in (piece for chunk in chunks for piece in _batches(chunk, task, loaded, tally)):
                good, scored = _predict(piece, task, loaded, rejects, tally, split)
                if rejects.too_many:
                    break
                if scored:
                    keys = [piece.column(name) for name in kept]
                    writer.append([*(keys if good is None else (key.take(good) for key in keys)), *scored])
            if not rejects.too_many:
                _check_rows(split, tally)
                part = writer.finish()
        # Only now: the thread that reads ahead has ended, and the file can be read again.
        if rejects.too_many:
            _give_up(attempt, reader, rejects, task)
        rejected = _write_rejects(attempt, reader, rejects, task)
    return Receipt(
        attempt=attempt,
        rows_scored=part.rows,
        rows_rejected=rejects.rows,
        file_bytes=part.size_bytes,
        file_sha256=part.sha256,
        read_s=reader.read_s,
        write_s=part.write_s,
        reject_reasons=rejects.reasons,
        **rejected,
        **_circumstances(split, task, loaded, tally),
    )


def _circumstances(
    split: Split, task: ScoringTask, loaded: model.LoadedModel, tally: _Tally
) -> dict[str, Any]:
    """Return the receipt's fields that tell how and where the split was scored."""
    return {
        "split": split,
        "run_id": task.run.run_id,
        "rows_read": tally.rows,
        "batch_rows": tally.batch_rows,
        "batches": tally.batches,
        "bind_s": tally.bind_s,
        "predict_s": tally.predict_s,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "load": loaded.load,
        "load_s": loaded.load_s,
        "traces": loaded.traces,
        "weights_digest": loaded.weights_digest,
        "first_batch_unix_s": tally.first_batch_unix_s,
        "boot_id": storage.boot_id(),
    }


def _give_up(attempt: str, reader: SplitReader, rejects: Rejects, task: ScoringTask) -> NoReturn:
    written = _write_rejects(attempt, reader, rejects, task)
    reasons = ", ".join(f"{rows} {reason}" for reason, rows in rejects.reasons)
    raise DataError(
        f"{reader.path}: {rejects.rows} row(s) rejected ({reasons}), more than --max_rejected="
        f"{task.run.max_rejected} of {task.run.rows} allows; look at {written['rejects']}, mend the shard or "
        f"raise --max_rejected"
    )


def _check_rows(split: Split, tally: _Tally) -> None:
    if tally.rows != split.rows:
        raise ShardError(
            f"{split.shard.path}: split {split.name} held {split.rows} rows when it was planned and "
            f"{tally.rows} now; the file is being changed, run again when it is complete"
        )


def _write_rejects(attempt: str, reader: SplitReader, rejects: Rejects, task: ScoringTask) -> dict[str, Any]:
    """Write a split's rejected rows, all their columns read again, and return the receipt's fields."""
    if not rejects.rows:
        return {}
    path = f"{attempt.removesuffix('.parquet')}.rejected"
    schema = with_extras(reader.schema.empty_table(), []).schema.with_metadata(_metadata(task.run))
    with PartWriter(path, schema, task.row_group_rows, task.compression, overlap=False) as writer:
        for table in rejects.tables(reader.everything()):
            for batch in table.to_batches():
                writer.append(batch.columns)
        part = writer.finish()
    return {"rejects": path, "rejects_bytes": part.size_bytes, "rejects_sha256": part.sha256}


def _batches(
    chunk: pa.RecordBatch, task: ScoringTask, loaded: model.LoadedModel, tally: _Tally
) -> Iterator[pa.RecordBatch]:
    """Yield a chunk's rows a batch at a time, choosing the batch size on the first of them."""
    start = 0
    while start < chunk.num_rows:
        # Asked for each batch: one that did not fit the memory makes the following ones smaller.
        rows = _batch_rows(chunk, task, loaded)
        tally.batch_rows = max(tally.batch_rows, rows)
        yield chunk.slice(start, rows)
        start += rows


def _predict(
    piece: pa.RecordBatch,
    task: ScoringTask,
    loaded: model.LoadedModel,
    rejects: Rejects,
    tally: _Tally,
    split: Split,
) -> tuple[pa.Array | None, list[pa.Array]]:
    """Predict one batch.

    Returns:
        The positions of the rows that were predicted, ``None`` for all of them, and their prediction
        columns; no columns where no row is left.
    """
    first_row = split.first_row + tally.rows
    begin = time.perf_counter()
    good, tensors = sift(piece, first_row, task.binding, rejects)
    bound = time.perf_counter()
    rows = piece.num_rows if good is None else len(good)
    # Not filled up to a size that did not fit the memory before.
    steady_rows = loaded.batch.within(tally.batch_rows)
    outputs, bad = predict_around(tensors, rows, lambda some: loaded.predict(some, steady_rows))
    for position, error in bad.items():
        row = position if good is None else int(good[position])
        rejects.add([first_row + row], MODEL_ERROR, error)
    if bad:
        good = np.delete(np.arange(rows) if good is None else good, list(bad))
    tally.predict_s += time.perf_counter() - bound
    tally.first_batch_unix_s = tally.first_batch_unix_s or time.time()
    columns = to_arrow(outputs, task.predictions, rows - len(bad)) if outputs else []
    tally.bind_s += bound - begin
    tally.rows += piece.num_rows
    tally.batches += 1
    progress.rows_done.add(piece.num_rows)
    return None if good is None else pa.array(good), columns


def _batch_rows(chunk: pa.RecordBatch, task: ScoringTask, loaded: model.LoadedModel) -> int:
    if task.batch_rows:
        return loaded.batch.within(task.batch_rows)

    def predict(rows: int) -> None:
        # Whatever fails here fails again, and is reported, where the rows are scored. Faulty rows have
        # their slots filled, so they take the time that any row takes.
        with suppress(Exception):
            tensors, _ = to_tensors(chunk.slice(0, rows), task.binding)
            loaded.predict(tensors, rows)

    return loaded.batch.choose(chunk.num_rows, predict)


def _metadata(run: Run) -> dict[str, str]:
    return {
        "scoring_job.run_id": run.run_id,
        "scoring_job.model_sha256": run.model.digest,
        "scoring_job.signature": run.signature,
    }


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
            if self._loaded.weights_digest != task.weights_digest:
                raise ModelError(
                    f"{task.run.model.path}: its builder made weights {self._loaded.weights_digest[:12]} "
                    f"here, {task.weights_digest[:12]} where the run was planned; give --weights, or seed it"
                )

    def process(self, split: Split) -> Iterator[Receipt]:
        """Score one split, or return the receipt that it has."""
        run = self.task.run
        found = staging.read_receipt(run.output, run.run_id, split)
        # An unseeded builder makes another model each time: what an earlier one scored does not count.
        if found is not None and found.weights_digest == self.task.weights_digest:
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
        except Exception as e:
            text = f"{where or 'the worker'}: unexpected {one_line(e)}; see more with --debug"
            told = e if isinstance(e, JobError) else JobError(text)
            staging.write_failure(self.task.run.output, self.task.run.run_id, where, told)
            raise
