"""Rows that cannot be scored: found, set aside, and kept with all their columns and the reason.

A row is bad when a value of it cannot be fed to the model (a null, a NaN, a value that a cast would change),
when the model fails on it, or when its prediction is not finite. The first is seen while binding. The second
is found by halving the batch that failed: for one bad row among n that takes about 2·log2(n) predictions. Its
neighbours are scored as if it were not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from job.binding.binding import Binding, Places, to_tensors
from job.binding.columns import is_null, plain_type, stored
from job.errors import DataError, JobError, one_line
from job.model.loading import slice_of
from job.model.signature import CodedStrings, Feed, RowFault, Tensor
from job.spec import OnBadRow, OnNonfinite, ScoringSpec, Split

# The columns that a file of rejected rows has behind the shard's own.
EXTRA_COLUMNS = (
    ("_shard", pa.string()),
    ("_row", pa.int64()),
    ("_reason", pa.string()),
    ("_error", pa.string()),
)
MODEL_ERROR = "model_error"
NULL_HINT = "pandas writes NaN as null; --on_null=fill=0 would feed a value instead"


@dataclass(frozen=True)
class RowPolicy:
    """What to do with bad rows. ``most_rows`` is how many a whole run may reject."""

    on_bad_row: OnBadRow
    on_null: str
    most_rows: int
    on_nonfinite: OnNonfinite = "reject"
    on_nonfinite_prediction: OnNonfinite = "reject"

    @classmethod
    def of(cls, spec: ScoringSpec, rows: int) -> RowPolicy:
        """Return what a person asked for, of a run of so many rows.

        The most rows are those with which ``Run.share_rejected`` is not above ``--max_rejected``.
        """
        # One row may be more than the product says: 0.29 * 100 is a little less than 29.
        most = int(spec.max_rejected * rows)
        most += (most + 1) / max(1, rows) <= spec.max_rejected
        most -= most / max(1, rows) > spec.max_rejected
        return cls(spec.on_bad_row, spec.on_null, most, spec.on_nonfinite, spec.on_nonfinite_prediction)

    def failing_flag(self, reason: str) -> str:
        """Return the flag that makes a row with this reason fail the run; empty where it is rejected."""
        own = {"null": "on_null", NONFINITE: "on_nonfinite", NONFINITE_PREDICTION: "on_nonfinite_prediction"}
        for flag in (own.get(reason, "on_bad_row"), "on_bad_row"):
            if getattr(self, flag) == "fail":
                return f"--{flag}"
        return ""


@dataclass(frozen=True)
class _Rejected:
    row: int
    reason: str
    error: str
    hint: str


class Rejects:
    """The rejected rows of one split. A row is rejected once, for the first reason found."""

    def __init__(self, split: Split, policy: RowPolicy) -> None:
        self._split = split
        self.policy = policy
        self._found: dict[int, _Rejected] = {}

    @property
    def rows(self) -> int:
        """Return how many rows are rejected so far."""
        return len(self._found)

    @property
    def reasons(self) -> tuple[tuple[str, int], ...]:
        """Return how many rows were rejected for each reason, most first."""
        return tuple(Counter(one.reason for one in self._found.values()).most_common())

    @property
    def first_error(self) -> str:
        """Return what was wrong with the first row that was rejected; empty where none was."""
        return next((f"{one.error} ({one.reason})" for one in self._found.values()), "")

    @property
    def first(self) -> str:
        """Return which row was rejected first, what was wrong with it, and the flag that would mend it."""
        if not self._found:
            return ""
        one = self._found[min(self._found)]
        return f"row {one.row}: {one.error} ({one.reason}{one.hint and f'; {one.hint}'})"

    @property
    def row_numbers(self) -> NDArray[np.int64]:
        """Return the rejected rows' numbers in the shard, ascending, ``(rejected,) int64``."""
        return np.array(sorted(self._found), dtype=np.int64)

    def add(self, rows: Sequence[int], reason: str, error: str, hint: str = "") -> None:
        """Reject rows by their numbers in the shard; ``hint`` says which flag would feed them.

        Raises:
            DataError: bad rows are to fail the run.
        """
        if flag := self.policy.failing_flag(reason):
            raise DataError(
                f"{self._split.shard.path}: row {rows[0]}: {error} ({reason}); {len(rows)} such row(s) in "
                f"this batch; mend the shard, or {flag}=reject{hint and f'; {hint}'}"
            )
        for row in rows:
            self._found.setdefault(row, _Rejected(row, reason, error, hint))

    @property
    def too_many(self) -> bool:
        """Return whether this split alone rejects more than the whole run may."""
        return self.rows > self.policy.most_rows

    @property
    def most_model_errors(self) -> int:
        """Return how many rows more the model may fail on before the run is lost."""
        return 0 if self.policy.failing_flag(MODEL_ERROR) else self.policy.most_rows - self.rows

    def tables(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Yield the rejected rows of a split's batches, with all columns and the reasons.

        Args:
            batches: all rows of the split, in order, with every column of the shard.
        """
        first_row, wanted = self._split.first_row, self.row_numbers
        for batch in batches:
            here = wanted[(wanted >= first_row) & (wanted < first_row + batch.num_rows)]
            if len(here):
                table = pa.table(batch.take(pa.array(here - first_row)))
                yield with_extras(table, [self._extras(int(row)) for row in here])
            first_row += batch.num_rows

    def reasons_alone(self) -> Iterator[pa.Table]:
        """Yield the rejected rows without the shard's columns: shard, row number, reason and error."""
        yield with_extras(pa.table({}), [self._extras(int(row)) for row in self.row_numbers])

    def _extras(self, row: int) -> tuple[str, int, str, str]:
        one = self._found[row]
        return self._split.shard.path, row, one.reason, one.error


def with_extras(table: pa.Table, extras: Sequence[tuple[str, int, str, str]]) -> pa.Table:
    """Return the table with shard, row number, reason and error behind its own columns."""
    for i, (name, kind) in enumerate(EXTRA_COLUMNS):
        # A shard that has such a column keeps it; ours then begins with one more underscore.
        while name in table.schema.names:
            name = f"_{name}"
        table = table.append_column(name, pa.array([extra[i] for extra in extras], kind))
    return table


def sift(
    piece: pa.RecordBatch, numbers: Places, binding: Binding, rejects: Rejects
) -> tuple[NDArray[np.int64] | None, tuple[Tensor, ...]]:
    """Return which rows of a batch can be fed, and their tensors; the others are rejected.

    The batch's rows are of one shape; ``numbers`` are theirs in the shard. The rows are positions in the
    batch, ascending; ``None`` stands for all of them.
    """
    piece = _fill_nulls(piece, binding, rejects.policy)
    tensors, faults = to_tensors(piece, binding)
    if rejects.policy.on_nonfinite != "keep":
        faults = (*faults, *feature_faults(tensors, binding.feeds))
    if not faults:
        return None, tensors
    keep = np.ones(piece.num_rows, dtype=bool)
    for fault in faults:
        keep[fault.rows] = False
        # A null list stands for more than one value: no flag fills it.
        fillable = fault.code == "null" and not _has_cells_of_many(piece.schema.field(fault.column).type)
        rows, hint = [int(numbers[int(row)]) for row in fault.rows], NULL_HINT if fillable else ""
        rejects.add(rows, fault.code, _text(fault), hint)
    good = np.flatnonzero(keep)
    return good, to_tensors(piece.take(pa.array(good)), binding)[0]


def _text(fault: RowFault) -> str:
    return f"column {fault.column}: {fault.text}, first value {fault.example}"


def _fill_nulls(piece: pa.RecordBatch, binding: Binding, policy: RowPolicy) -> pa.RecordBatch:
    if policy.on_null in ("reject", "fail"):
        return piece
    fed = _types_fed(binding)
    # All at once: each new batch of many columns costs as much as all of them.
    columns = [
        _filled(name, column, policy.on_null, fed[name]) if name in fed else column
        for name, column in zip(piece.schema.names, piece.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=piece.schema.names)


def _types_fed(binding: Binding) -> dict[str, pa.DataType]:
    """Return the type that each column has for the model, by its name: that of ``--cast``, or the input's."""
    dtypes = {name: feed.input.dtype for feed in binding.feeds for name in feed.columns}
    return {
        name: pa.type_for_alias("float32" if dtype == "bfloat16" else dtype)
        for name, dtype in {**dtypes, **dict(binding.casts)}.items()
    }


def _filled(name: str, column: pa.Array, on_null: str, fed: pa.DataType) -> pa.Array:
    """Return a column with a value in the place of its nulls; ``fed`` is the type that the model gets."""
    if not column.null_count or _has_cells_of_many(column.type):
        return column
    filled = stored(column)
    if pa.types.is_dictionary(filled.type):
        filled = filled.cast(filled.type.value_type)
    try:
        if is_null(filled.type):
            filled = filled.cast(fed)
        if on_null == "nan" and not pa.types.is_floating(filled.type):
            filled = filled.cast(pa.float64(), safe=False)
        return pc.fill_null(filled, _filling(on_null, filled.type))
    except (pa.ArrowException, ValueError) as e:
        raise DataError(_cannot_hold(on_null, name, column.type, e)) from e


def unfillable(schema: pa.Schema, binding: Binding, on_null: str) -> tuple[str, ...]:
    """Return which columns cannot hold the value that ``--on_null=fill=VALUE`` gives, one line a column."""
    lines = []
    types = {field.name: field.type for field in schema}
    for name, fed in _types_fed(binding).items() if on_null.startswith("fill=") else ():
        if name not in types or _has_cells_of_many(types[name]):
            continue
        kind = fed if is_null(types[name]) else plain_type(types[name])
        try:
            _filling(on_null, kind.value_type if pa.types.is_dictionary(kind) else kind)
        except (pa.ArrowException, ValueError) as e:
            lines.append(_cannot_hold(on_null, name, kind, e))
    return tuple(lines)


def _has_cells_of_many(kind: pa.DataType) -> bool:
    """Say whether a null of such a column stands for more than one value: it is not filled, but rejected."""
    return bool(pa.types.is_nested(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind))


def _filling(on_null: str, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(on_null.removeprefix("fill=")).cast(kind)


def _cannot_hold(on_null: str, name: str, kind: pa.DataType, error: Exception) -> str:
    return (
        f"--on_null={on_null}: column {name} is {kind}, which cannot hold it: {one_line(error)}; give "
        f"another value, or --on_null=reject"
    )


def finite_only(
    outputs: list[np.ndarray], places: NDArray[np.int64] | None, numbers: Places, rejects: Rejects
) -> tuple[list[np.ndarray], NDArray[np.int64] | None, int]:
    """Reject the rows whose predictions are not finite, or count them where they are to be kept.

    Args:
        outputs: of the model, each ``(rows, *shape)``.
        places: where in the batch the rows are, ``None`` for all of it.
        numbers: those of the batch's rows in the shard.
        rejects: those of the split.

    Returns:
        What is left of the outputs and the places, and the number of rows that were kept.
    """
    found = [rows for output in outputs if len(rows := nonfinite_rows(output))]
    if not found:
        return outputs, places, 0
    bad = np.unique(np.concatenate(found))
    if rejects.policy.on_nonfinite_prediction == "keep":
        return outputs, places, len(bad)
    where = np.arange(len(outputs[0])) if places is None else places
    for position in bad:
        error = prediction_error(outputs, position)
        rejects.add([int(numbers[int(where[position])])], NONFINITE_PREDICTION, error)
    return [np.delete(output, bad, axis=0) for output in outputs], np.delete(where, bad), 0


def predict_around(
    tensors: Sequence[Tensor],
    rows: int,
    predict: Callable[[Sequence[Tensor]], list[np.ndarray]],
    most_bad: int,
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Predict a batch, leaving out the rows that the model fails on.

    A model that fails on every row would take two predictions for each of them. So it ends as soon as more
    than ``most_bad`` rows are found, from the front; what was predicted by then is of no use.

    Returns:
        One array per output for the rows that were predicted, in order, and the failing rows' positions in
        the batch with the model's error. No arrays where no row is left.
    """
    if not rows:
        return [], {}
    try:
        return predict(tensors), {}
    except JobError:
        raise
    except Exception as e:  # noqa: BLE001 - a model may raise anything, and only one row may be to blame
        if rows == 1:
            return [], {0: one_line(e, most=1000)}
    middle = rows // 2
    left, bad_left = predict_around([slice_of(t, 0, middle) for t in tensors], middle, predict, most_bad)
    if len(bad_left) > most_bad:
        return left, bad_left
    rest = [slice_of(t, middle, rows) for t in tensors]
    right, bad_right = predict_around(rest, rows - middle, predict, most_bad - len(bad_left))
    bad = {**bad_left, **{middle + row: error for row, error in bad_right.items()}}
    if not left or not right:
        return left or right, bad
    return [np.concatenate(pair) for pair in zip(left, right, strict=True)], bad


# Which rows hold a NaN or an infinity.

NONFINITE: Final = "nonfinite"
NONFINITE_PREDICTION: Final = "nonfinite_prediction"


def nonfinite_rows(array: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows of ``(rows, …)`` with a value that is not finite, ascending, ``(found,) int64``."""
    if not _has_fractions(array) or not array.size:
        return np.empty(0, np.int64)
    # 11 µs for 16,384 rows of 10, where predicting them takes 3,000.
    finite = np.isfinite(array)
    if finite.all():
        return np.empty(0, np.int64)
    return np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))


def feature_faults(tensors: Sequence[Tensor], feeds: Sequence[Feed]) -> tuple[RowFault, ...]:
    """Return the rows of a batch of which a feature is not finite, by the column that it came from.

    Args:
        tensors: one per feed, in order, each ``(rows, *shape)``.
        feeds: what feeds each of them.
    """
    faults: list[RowFault] = []
    for tensor, feed in zip(tensors, feeds, strict=True):
        if isinstance(tensor, CodedStrings):
            continue
        rows = nonfinite_rows(tensor)
        if not len(rows):
            continue
        values = tensor[rows].reshape(len(rows), len(feed.columns), -1)
        bad = ~np.isfinite(values)
        for i, name in enumerate(feed.columns):
            here = np.flatnonzero(bad[:, i].any(axis=1))
            if len(here):
                example = values[here[0], i][bad[here[0], i]][0]
                faults.append(RowFault(rows[here], NONFINITE, name, "it is not finite", str(example)))
    return tuple(faults)


def prediction_error(outputs: Sequence[NDArray[Any]], row: int) -> str:
    """Return which of a row's outputs, by its number, is not finite, and its value."""
    for i, output in enumerate(outputs):
        if len(nonfinite_rows(output[row : row + 1])):
            values = output[row].reshape(-1)
            which = f"output {i} of {len(outputs)}" if len(outputs) > 1 else "the prediction"
            return f"{which} is {values[~np.isfinite(values)][0]}"
    raise ValueError(f"row {row} is finite")


def _has_fractions(array: NDArray[Any]) -> bool:
    # bfloat16 and its like are of NumPy's kind V, or f, depending on who made them.
    return array.dtype.kind == "f" or "float" in array.dtype.name
