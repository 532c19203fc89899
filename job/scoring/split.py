"""Scoring one split: read ▶ bind ▶ predict ▶ write, as record batches, in one process.

While a batch is predicted, one thread reads the next chunk and another writes the last row group. Arrow and
TensorFlow release the interpreter lock, so these steps overlap. A split of one chunk is scored without
threads, since starting them would cost more than they save.

The memory of one scoring thread does not depend on the number of rows, shards or row groups. It is

* three chunks (being read, waiting, being scored), each of at most ``CHUNK_BYTES`` or one batch;
* ``COLUMN_BUFFER_BYTES`` for each column that is read;
* the model's activations for one batch;
* two output row groups (being filled, being written), each of at most ``ROW_GROUP_BYTES``.

For ten float32 columns that is 3 × 2.6 MB + 10 × 128 kB + 2 × 1 MB, and 8 MB of activations for 16,384 rows
of 128. All threads of a process share the weights. A challenger adds its weights and its activations, see
``job.scoring.challenger``. For files in buckets, two splits are read at a time, see ``job.scoring.overlap``.
Each adds up to five compressed runs of row groups, see ``reader.FETCHED_BYTES``, and its output up to two
parts of an upload, see ``storage.objects.PART_BYTES``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job import storage
from job.binding.binding import Places
from job.binding.columns import as_type
from job.binding.predictions import in_order, to_arrow
from job.commit import staging
from job.errors import DataError, ShardChangedError, ShardError
from job.gates.histograms import Counting
from job.model import loading
from job.model.signature import Tensor
from job.scoring.batches import batches, chunk_rows, stretches
from job.scoring.challenger import Contest, Rival
from job.scoring.reader import SplitReader
from job.scoring.rejects import (
    BAD_SHARD,
    MODEL_ERROR,
    Rejects,
    predict_around,
    sift,
    sift_predictions,
    too_many_text,
    write_rejected_rows,
    write_rejected_split,
)
from job.scoring.task import ScoringTask
from job.scoring.writer import PartWriter
from job.spec import Receipt, Split
from job.terminal import progress

Turn = AbstractContextManager[None]


@dataclass
class _Tally:
    """Counts of what has been done in a split so far."""

    rows: int = 0
    batches: int = 0
    batch_rows: int = 0
    bind_s: float = 0.0
    predict_s: float = 0.0
    first_batch_unix_s: float = 0.0
    nonfinite_rows: int = 0


def score_split(
    split: Split,
    task: ScoringTask,
    loaded: loading.LoadedModel,
    turn: Turn | None = None,
    rival: Rival | None = None,
) -> Receipt:
    """Score one split into a new attempt, and return its receipt. The receipt is not yet written.

    A split whose shard does not fit or cannot be read is rejected as a whole if the task says so. ``turn`` is
    held from when the first rows are read until the last are predicted; it is entered once, so it may be a
    context that cannot be entered again. ``rival`` is the challenger.

    Raises:
        ShardError: the shard is not what the plan says, or is damaged.
        DataError: a row cannot be fed to the model, or the model fails on it.
        StorageError: reading the shard or writing the attempt failed.
    """
    tally, contest = _Tally(), Contest(rival, split)
    try:
        if split.refused:
            return _refuse(split, task, loaded, split.refused)
        return _score(split, task, loaded, tally, turn or nullcontext(), contest)
    except BaseException as e:
        # Another attempt will count these rows again.
        progress.rows_done.add(-tally.rows)
        damaged = isinstance(e, ShardError) and not isinstance(e, ShardChangedError)
        if damaged and not {*contest.columns} <= {*task.binding.columns, *task.keys}:
            # It may be in what is read for the challenger alone. Seldom enough to do without a turn.
            return score_split(split, task, loaded, rival=contest.without_reading(e))
        if damaged and task.on_bad_shard == "reject":
            return _refuse(split, task, loaded, str(e))
        raise


def _refuse(split: Split, task: ScoringTask, loaded: loading.LoadedModel, error: str) -> Receipt:
    """Reject all rows of a split because of its shard, and return the receipt."""
    attempt = staging.new_attempt(task.run.output, task.run.run_id, split)
    written = write_rejected_split(attempt, split, error, task.files)
    if split.rows > task.policy.most_rows:
        raise DataError(too_many_text(split, split.rows, f"{BAD_SHARD}: {error}", task.run, written))
    progress.rows_done.add(split.rows)
    return Receipt(
        attempt="",
        rows_scored=0,
        rows_rejected=split.rows,
        file_bytes=0,
        file_sha256="",
        read_s=0.0,
        write_s=0.0,
        reject_reasons=((BAD_SHARD, split.rows),) if split.rows else (),
        refused=error,
        **written,
        **_circumstances(split, task, loaded, _Tally(rows=split.rows)),
    )


def _score(
    split: Split,
    task: ScoringTask,
    loaded: loading.LoadedModel,
    tally: _Tally,
    turn: Turn,
    contest: Contest,
) -> Receipt:
    attempt = staging.new_attempt(task.run.output, task.run.run_id, split)
    columns = tuple(dict.fromkeys((*task.binding.columns, *contest.columns)))
    rejects = Rejects(split, task.policy)
    with SplitReader(split) as reader:
        rows_at_once = chunk_rows(task.binding.feeds, task.batch_rows, reader.row_bytes(columns, task.keys))
        keys = _key_fields(reader, task, columns)
        fields = [*keys, *task.predictions, *contest.fields]
        counting = Counting(task.predictions)
        with (
            _writer(attempt, fields, task, split, counting, overlap=split.rows > rows_at_once) as writer,
            # On an error the thread that reads ahead must end before the file is closed.
            closing(_in_turn(reader.chunks(columns, task.keys, rows_at_once), turn)) as chunks,
        ):
            scoring = _Scoring(split, task, loaded, tally, contest, rejects, keys)
            for chunk in chunks:
                for some in scoring.columns(chunk):
                    writer.append(_published(some, keys))
                if rejects.too_many:
                    break
            if not rejects.too_many:
                part = writer.finish()
        # Only now: the thread that reads ahead has ended, and the file can be read again.
        if rejects.too_many:
            _give_up(attempt, reader, rejects, task, split)
        set_aside = write_rejected_rows(attempt, reader, rejects, task.files)
    return Receipt(
        attempt=part.handle,
        rows_scored=part.rows,
        rows_rejected=rejects.rows,
        file_bytes=part.size_bytes,
        file_sha256=part.sha256,
        read_s=reader.read_s,
        write_s=part.write_s,
        reject_reasons=rejects.reasons,
        first_reject=rejects.first,
        histograms=counting.packed(),
        challenger=contest.work(),
        **set_aside,
        **_circumstances(split, task, loaded, tally),
    )


def _key_fields(reader: SplitReader, task: ScoringTask, columns: Sequence[str]) -> list[pa.Field]:
    """Return the fields of those keys that are columns of the shard, with their published types."""
    asked = dict(task.key_types)
    present = {field.name: field for field in reader.schema}
    kept = [present[name] for name in task.keys if name in present]
    kinds = [asked[f.name] if f.name in asked else reader.type_of(f.name, columns) for f in kept]
    return [field.with_type(kind) for field, kind in zip(kept, kinds, strict=True)]


def _published(columns: Sequence[pa.Array], keys: Sequence[pa.Field]) -> list[pa.Array]:
    """Return an output's columns with the keys, which come first, cast to their published types."""
    cast = [as_type(column, field.type) for column, field in zip(columns, keys, strict=False)]
    return [*cast, *columns[len(keys) :]]


def _writer(
    attempt: str,
    fields: Sequence[pa.Field],
    task: ScoringTask,
    split: Split,
    counting: Counting,
    *,
    overlap: bool,
) -> PartWriter:
    return PartWriter(
        attempt,
        pa.schema(fields),
        task.files,
        overlap=overlap,
        final=storage.join(task.run.output, staging.final_name(split)),
        seen=counting.add,
    )


def _in_turn(chunks: Generator[pa.RecordBatch], turn: Turn) -> Generator[pa.RecordBatch]:
    """Yield chunks within ``turn``, which begins when the first is read and ends with the last."""
    with closing(chunks):
        chunk = next(chunks, None)
        with turn:
            while chunk is not None:
                yield chunk
                chunk = next(chunks, None)


def _circumstances(
    split: Split, task: ScoringTask, loaded: loading.LoadedModel, tally: _Tally
) -> dict[str, Any]:
    """Return the receipt's fields on how and where the split was scored."""
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
        "nonfinite_rows": tally.nonfinite_rows,
        "memory_rows": loaded.batch.memory_rows,
        "golden_rows": task.golden.rows if task.golden else 0,
        "again_rows": loaded.independence.rows,
        "again_apart": loaded.independence.apart,
    }


def _give_up(
    attempt: str, reader: SplitReader, rejects: Rejects, task: ScoringTask, split: Split
) -> NoReturn:
    written = write_rejected_rows(attempt, reader, rejects, task.files)
    reasons = ", ".join(f"{rows} {reason}" for reason, rows in rejects.reasons)
    raise DataError(too_many_text(split, rejects.rows, reasons, task.run, written, rejects.first))


@dataclass(frozen=True)
class _Scoring:
    """The steps from a chunk to output columns. ``keys`` are the shard's keys as they are published."""

    split: Split
    task: ScoringTask
    loaded: loading.LoadedModel
    tally: _Tally
    contest: Contest
    rejects: Rejects
    keys: Sequence[pa.Field]

    def columns(self, chunk: pa.RecordBatch) -> Iterator[list[pa.Array]]:
        """Yield the output columns of a chunk's rows, in order; none once too many rows are rejected."""
        fields = (*self.task.predictions, *self.contest.fields)
        for rows in stretches(chunk, self.task.binding, fields):
            first_row = self.split.first_row + self.tally.rows
            waiting: list[tuple[Places, list[pa.Array]]] = []
            for batch in batches(rows, self.task.binding, self.task.batch_rows, self.loaded):
                if self.rejects.too_many:
                    return
                self.tally.batch_rows = max(self.tally.batch_rows, batch.whole_rows)
                places = batch.places
                good, columns = self._batch(batch.rows, _numbers(first_row, places))
                if not columns:
                    continue
                if isinstance(places, range):
                    yield columns
                else:
                    waiting.append((places if good is None else places[good], columns))
            if waiting and not self.rejects.too_many:
                yield in_order(waiting)

    def _batch(
        self, piece: pa.RecordBatch, numbers: Places
    ) -> tuple[NDArray[np.int64] | None, list[pa.Array]]:
        """Return the positions in a batch of the rows that were predicted, and their output columns."""
        good, scored = self._predict(piece, numbers)
        if not scored:
            return good, []
        places = None if good is None else pa.array(good)
        keys = [piece.column(field.name) for field in self.keys]
        keys = keys if places is None else [key.take(places) for key in keys]
        return good, [*keys, *scored, *self.contest.predict(piece, places)]

    def _predict(
        self, piece: pa.RecordBatch, numbers: Places
    ) -> tuple[NDArray[np.int64] | None, list[pa.Array]]:
        """Predict one batch; ``numbers`` are its rows' numbers in the shard.

        Returns:
            The positions of the rows that were predicted, ``None`` for all; and their prediction columns,
            none if no row is left or too many are rejected.
        """
        tally, rejects, loaded = self.tally, self.rejects, self.loaded
        begin = time.perf_counter()
        good, tensors = sift(piece, numbers, self.task.binding, rejects)
        if rejects.too_many:
            return None, []
        bound = time.perf_counter()
        rows = piece.num_rows if good is None else len(good)
        # Not filled up to a size that did not fit the memory before.
        steady_rows = loaded.batch.within(tally.batch_rows)
        most_bad = rejects.most_model_errors
        outputs, bad = predict_around(
            tensors, rows, partial(loaded.predict, steady_rows=steady_rows), most_bad
        )
        for position, error in bad.items():
            row = position if good is None else int(good[position])
            rejects.add([int(numbers[row])], MODEL_ERROR, error)
        if len(bad) > most_bad:
            return None, []
        if outputs and loaded.independence.is_due(rows - len(bad), loaded.load):
            fed = numbers if good is None else np.asarray(numbers)[good]
            self._check_independence(tensors, [*bad], outputs, fed)
        if bad:
            good = np.delete(np.arange(rows) if good is None else good, list(bad))
        outputs, good, kept = sift_predictions(outputs, good, numbers, rejects)
        tally.nonfinite_rows += kept
        tally.predict_s += time.perf_counter() - bound
        tally.first_batch_unix_s = tally.first_batch_unix_s or time.time()
        scored = piece.num_rows if good is None else len(good)
        columns = to_arrow(outputs, self.task.predictions, scored) if outputs else []
        tally.bind_s += bound - begin
        tally.rows += piece.num_rows
        tally.batches += 1
        progress.rows_done.add(piece.num_rows)
        return good, columns

    def _check_independence(
        self, tensors: Sequence[Tensor], bad: Sequence[int], outputs: list[np.ndarray], numbers: Places
    ) -> None:
        """Raise ``ModelError`` if a prediction depends on other rows; ``numbers`` are of all rows fed."""
        self.loaded.check_independence(
            tensors,
            np.delete(np.arange(len(numbers)), bad),
            outputs,
            self.loaded.batch.within(self.tally.batch_rows),
            numbers,
            self.split.shard.path,
        )


def _numbers(first_row: int, places: Places) -> Places:
    """Return the numbers in the shard of rows at these places, counted from ``first_row``."""
    if isinstance(places, range):
        return range(first_row + places.start, first_row + places.stop)
    return places + first_row
