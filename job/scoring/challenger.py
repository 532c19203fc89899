"""The challenger: a second model that scores the champion's rows in the same pass.

Its predictions stand in columns of their own in the same files, named after the champion's. It changes
nothing for the champion: it rejects no row and cuts no batch differently. A row that it cannot take, or on
which it fails, is null in its columns, and is counted. All that it costs is memory and time.

Memory: its weights, once for each process; and the inputs, layer outputs and predictions of one batch at a
time. It has a batch size of its own, which is at most the champion's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job import errors
from job.binding.binding import Binding, Places
from job.binding.predictions import in_order, to_arrow
from job.errors import ModelError, SchemaError
from job.model import loading
from job.scoring.batches import batches, chunk_rows
from job.scoring.rejects import (
    BAD_SHARD,
    MODEL_ERROR,
    Rejects,
    RowPolicy,
    predict_around,
    sift,
    sift_predictions,
)
from job.spec import ChallengerRun, ChallengerWork, Device, ScoringSpec, Split, StoreOptions

# Of a split. To find each takes some thirty predictions, which the champion waits for.
MOST_MODEL_ERRORS: Final = 100
_NOT_LOADED: Final = "not_loaded"
_NOT_ASKED: Final = "not_asked"
_NO_LIMIT: Final = 1 << 62


@dataclass(frozen=True)
class Challenger:
    """What every worker of a run gets of the challenger. ``predictions`` are its columns in the output.

    ``batch_rows`` 0 means that they are measured. ``weights_digest`` is a SHA-256 of the weights that a
    builder made on the launcher, empty for other models.
    """

    told: ChallengerRun
    binding: Binding
    predictions: tuple[pa.Field, ...]
    policy: RowPolicy
    weights_digest: str
    batch_rows: int

    def counts(self, work: ChallengerWork | None) -> bool:
        """Return whether a receipt's work was done by a model with these weights.

        A builder without a seed makes other weights each time.
        """
        return work is None or not work.load or work.weights_digest == self.weights_digest

    def acquire(
        self,
        champion: loading.LoadedModel,
        *,
        device: Device,
        threads: int,
        machine: str,
        stores: StoreOptions,
    ) -> Rival:
        """Load the challenger, see ``model.loading.acquire``; if that fails, the result tells why."""
        path = self.told.model.path
        try:
            loaded = loading.acquire(
                self.told.model,
                device=device,
                threads=threads,
                machine=machine,
                stores=stores,
                beside=champion,
            )
            loaded.build([feed.input for feed in self.binding.feeds])
            if loaded.weights_digest != self.weights_digest:
                raise ModelError(
                    f"{path}: its builder made weights {loaded.weights_digest[:12]} here, "
                    f"{self.weights_digest[:12]} where the run was planned; give --challenger_weights, or "
                    f"seed its initializers"
                )
        except Exception as e:  # noqa: BLE001 - whatever it is, the champion's night goes on
            return Rival(self, None, _NOT_LOADED, errors.told(e))
        return Rival(self, loaded)


def policy_of(spec: ScoringSpec) -> RowPolicy:
    """Return the policy for rows that the challenger cannot take: the spec's, but none fails the run."""
    return RowPolicy.of(spec, 0).never_failing(_NO_LIMIT)


@dataclass(frozen=True)
class Rival:
    """A challenger in this process. If it is not ``loaded``, it predicts nothing, and ``error`` says why."""

    challenger: Challenger
    loaded: loading.LoadedModel | None
    reason: str = ""
    error: str = ""


class Contest:
    """The challenger's part of one split. Without a challenger it does nothing and has no columns."""

    def __init__(self, rival: Rival | None, split: Split) -> None:
        self._rival, self._split = rival, split
        self._asked = rival.loaded if rival else None
        self._reason, self._error = (rival.reason, rival.error) if rival else ("", "")
        self.fields: tuple[pa.Field, ...] = rival.challenger.predictions if rival else ()
        # Those of the shard that it is fed with.
        self.columns = rival.challenger.binding.columns if rival and rival.loaded else ()
        self._failed: Counter[str] = Counter()
        self._model_errors = 0
        self._batch_rows = 0
        self._work_s = 0.0

    def without_reading(self, error: BaseException) -> Rival | None:
        """Return a challenger that predicts nothing, for a second try that reads no column for it."""
        return self._rival and Rival(self._rival.challenger, None, BAD_SHARD, str(error))

    def predict(self, piece: pa.RecordBatch, good: pa.Array | None) -> list[pa.Array]:
        """Return the challenger's columns for rows of a batch.

        ``good`` are the rows' positions, ``None`` for all.
        """
        if self._rival is None:
            return []
        begin = time.perf_counter()
        rows = piece if good is None else piece.take(good)
        columns = in_order([(places, self._batch(some)) for places, some in self._batches(rows)])
        self._work_s += time.perf_counter() - begin
        return columns

    def work(self) -> ChallengerWork | None:
        """Return what the challenger did, for the receipt."""
        if self._rival is None:
            return None
        loaded = self._rival.loaded
        return ChallengerWork(
            failed=self._failed.total(),
            reasons=tuple(self._failed.most_common()),
            error=self._error,
            work_s=self._work_s,
            load=loaded.load if loaded else "",
            load_s=loaded.load_s if loaded else 0.0,
            weights_digest=loaded.weights_digest if loaded else "",
        )

    def _batches(self, rows: pa.RecordBatch) -> Iterator[tuple[Places, pa.RecordBatch]]:
        """Cut rows into batches for the challenger; yield each batch with its rows' places."""
        if self._rival is None or self._asked is None:
            yield range(rows.num_rows), rows
            return
        challenger, loaded = self._rival.challenger, self._asked
        # It may be fed wider than the rows are read.
        most_rows = chunk_rows(challenger.binding.feeds, challenger.batch_rows, 0)
        try:
            for batch in batches(rows, challenger.binding, challenger.batch_rows, loaded, most_rows):
                self._batch_rows = max(self._batch_rows, batch.whole_rows)
                yield batch.places, batch.rows
        except SchemaError as e:
            self._lose(e)
            yield range(rows.num_rows), rows

    def _batch(self, piece: pa.RecordBatch) -> list[pa.Array]:
        """Return the challenger's columns for all rows of a batch; null if the batch fails."""
        reason = self._reason
        if self._rival is not None and self._asked is not None:
            try:
                return self._predicted(piece, self._rival.challenger, self._asked)
            except Exception as e:  # noqa: BLE001 - a model may raise anything, and the champion's rows are well
                reason = self._lose(e)
        self._failed[reason] += piece.num_rows
        nowhere = np.full(piece.num_rows, -1)
        return [spread(pa.array([], field.type), nowhere) for field in self.fields]

    def _lose(self, error: Exception) -> str:
        """Note an error, ask the model no more in this split, and return the reason for the batch's nulls."""
        # No single row is to blame, so the next batch would fare no better.
        is_absent = isinstance(error, SchemaError)
        reason = BAD_SHARD if is_absent else MODEL_ERROR
        self._asked, self._reason = None, reason if is_absent else _NOT_ASKED
        self._error = self._error or errors.told(error)
        return reason

    def _predicted(
        self, piece: pa.RecordBatch, challenger: Challenger, loaded: loading.LoadedModel
    ) -> list[pa.Array]:
        # The numbers of its rows are the batch's: nobody looks for them in the shard.
        rejects = Rejects(self._split, challenger.policy)
        numbers = range(piece.num_rows)
        good, tensors = sift(piece, numbers, challenger.binding, rejects)
        rows = piece.num_rows if good is None else len(good)
        places = np.arange(rows) if good is None else good
        most_bad = MOST_MODEL_ERRORS - self._model_errors
        # Not filled up to a size that did not fit the memory before.
        steady_rows = loaded.batch.within(self._batch_rows)
        outputs, bad = predict_around(
            tensors, rows, partial(loaded.predict, steady_rows=steady_rows), most_bad
        )
        self._model_errors += len(bad)
        if len(bad) > most_bad:
            raise ModelError(bad[min(bad)])
        if outputs and loaded.independence.is_due(rows - len(bad), loaded.load):
            loaded.check_independence(
                tensors,
                np.delete(np.arange(rows), list(bad)),
                outputs,
                steady_rows,
                places,
                f"a batch of {self._split.shard.path}",
            )
        for position, error in bad.items():
            rejects.add([int(places[position])], MODEL_ERROR, error)
        outputs, left, _ = sift_predictions(outputs, np.delete(places, list(bad)), numbers, rejects)
        return self._in_place(outputs, left, piece.num_rows, rejects)

    def _in_place(
        self, outputs: list[np.ndarray], places: NDArray[np.int64] | None, rows: int, rejects: Rejects
    ) -> list[pa.Array]:
        """Return columns of ``rows`` rows: outputs in their places, nulls elsewhere. Count the nulls."""
        places = np.arange(rows) if places is None else places
        empty = [pa.array([], field.type) for field in self.fields]
        columns = to_arrow(outputs, self.fields, len(places)) if outputs else empty
        if len(places) < rows:
            where = np.full(rows, -1)
            where[places] = np.arange(len(places))
            columns = [spread(column, where) for column in columns]
        self._failed.update(dict(rejects.reasons))
        self._error = self._error or rejects.first_error
        return columns


def spread(column: pa.Array, places: NDArray[np.int64]) -> pa.Array:
    """Return a column that has at each row the value at ``places[row]`` of ``column``, or null for -1.

    ``column`` has no nulls. A missing fixed-size list becomes a list of nulls, because Arrow cannot read a
    null one back from a file.
    """
    if not pa.types.is_fixed_size_list(column.type):
        return column.take(pa.array(places, mask=places < 0))
    size = column.type.list_size
    inner = np.where(places[:, None] < 0, -1, places[:, None] * size + np.arange(size)).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(spread(column.flatten(), inner), size)


def failed_rows(column: pa.Array) -> NDArray[np.bool_]:
    """Return which rows are null as :func:`spread` makes them: ``(rows,) bool``."""
    rows = len(column)
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    nulls: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return np.all(nulls.reshape(rows, -1), axis=1) if rows else nulls
