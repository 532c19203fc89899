"""Bad rows: found, left out of the batch, and remembered with number, reason and error.

A row is bad when a value of it cannot be fed to the model (a null, a NaN, a value that a cast would change),
when the model fails on it, or when its prediction is not finite. The first is seen while binding. The second
is found by halving the batch that failed: for one bad row among n that takes about 2·log2(n) predictions. Its
neighbours are scored as if it were not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.binding.binding import Binding, Places, to_tensors
from job.errors import DataError, JobError, one_line
from job.model.loading import slice_of
from job.model.signature import RowFault, Tensor
from job.scoring.nonfinite import OnNonfinite, OnNonfinitePrediction
from job.scoring.nulls import OnNull
from job.scoring.policy import FAIL, REJECT, OnBadRow, Policy
from job.spec import ScoringSpec, Split

# The columns that a file of rejected rows has behind the shard's own.
EXTRA_COLUMNS = (
    ("_shard", pa.string()),
    ("_row", pa.int64()),
    ("_reason", pa.string()),
    ("_error", pa.string()),
)
MODEL_ERROR = "model_error"

# All policies, in the order in which a batch passes them.
POLICIES: Final[tuple[type[Policy], ...]] = (OnNull, OnNonfinite, OnNonfinitePrediction, OnBadRow)


@dataclass(frozen=True)
class RowPolicy:
    """What to do with bad rows, for each kind of fault. A whole run may reject ``most_rows`` rows."""

    policies: tuple[Policy, ...]
    most_rows: int

    @classmethod
    def of(cls, spec: ScoringSpec, rows: int) -> RowPolicy:
        """Return the policy that a spec asks for, in a run of ``rows`` rows.

        With ``most_rows`` rejected rows, ``Run.share_rejected`` is just not above ``--max_rejected``.
        """
        # One row may be more than the product says: 0.29 * 100 is a little less than 29.
        most = int(spec.max_rejected * rows)
        most += (most + 1) / max(1, rows) <= spec.max_rejected
        most -= most / max(1, rows) > spec.max_rejected
        return cls(tuple(kind(kind.asked(spec)) for kind in POLICIES), most)

    @classmethod
    def of_choices(cls, choices: Mapping[str, str], most_rows: int) -> RowPolicy:
        """Return the policy for these flags and values; a flag that is missing has ``reject``."""
        return cls(tuple(kind(choices.get(kind.flag, REJECT)) for kind in POLICIES), most_rows)

    def never_failing(self, most_rows: int) -> RowPolicy:
        """Return the same policy with ``fail`` replaced by ``reject``."""
        return RowPolicy(
            tuple(replace(one, choice=REJECT) if one.choice == FAIL else one for one in self.policies),
            most_rows,
        )

    @property
    def choices(self) -> dict[str, str]:
        """The flags and their values, as in a manifest."""
        return {one.flag: one.choice for one in self.policies}

    def about(self, reason: str) -> Policy:
        """Return the policy that is about a reason."""
        found = {one.reason: one for one in self.policies}
        return found.get(reason) or found[OnBadRow.reason]

    def failing_flag(self, reason: str) -> str:
        """Return the flag by which a row with this reason fails the run; empty if the row is rejected."""
        for one in (self.about(reason), self.about(OnBadRow.reason)):
            if one.choice == FAIL:
                return f"--{one.flag}"
        return ""

    def misfits(self, schema: pa.Schema, binding: Binding) -> tuple[str, ...]:
        """Return why the flags do not suit a shard's columns, one line for each column."""
        return tuple(line for one in self.policies for line in one.misfits(schema, binding))


@dataclass(frozen=True)
class _Rejected:
    row: int
    reason: str
    error: str
    hint: str


class Rejects:
    """The rejected rows of one split. Each row counts once, with the first reason that was found."""

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
        """Return the error of the first rejected row; empty if there is none."""
        return next((f"{one.error} ({one.reason})" for one in self._found.values()), "")

    @property
    def first(self) -> str:
        """Return the first rejected row's number and error, and the flag that would feed it."""
        if not self._found:
            return ""
        one = self._found[min(self._found)]
        return f"row {one.row}: {one.error} ({one.reason}{one.hint and f'; {one.hint}'})"

    @property
    def row_numbers(self) -> NDArray[np.int64]:
        """Return the rejected rows' numbers in the shard, ascending, ``(rejected,) int64``."""
        return np.array(sorted(self._found), dtype=np.int64)

    def add(self, rows: Sequence[int], reason: str, error: str, hint: str = "") -> None:
        """Reject rows, given by their numbers in the shard; ``hint`` says which flag would feed them.

        Raises:
            DataError: a flag says that such rows fail the run.
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
        """Return on how many more rows the model may fail before too many are rejected."""
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
    """Return the table with the columns for shard, row number, reason and error added at its end."""
    for i, (name, kind) in enumerate(EXTRA_COLUMNS):
        # A shard that has such a column keeps it; ours then begins with one more underscore.
        while name in table.schema.names:
            name = f"_{name}"
        table = table.append_column(name, pa.array([extra[i] for extra in extras], kind))
    return table


def sift(
    piece: pa.RecordBatch, numbers: Places, binding: Binding, rejects: Rejects
) -> tuple[NDArray[np.int64] | None, tuple[Tensor, ...]]:
    """Reject the rows of a batch that cannot be fed; return the positions of the others, and their tensors.

    All rows have one shape. ``numbers`` are the rows' numbers in the shard. Positions are in the batch and
    ascending; ``None`` stands for all rows.
    """
    policies = rejects.policy.policies
    for policy in policies:
        piece = policy.mended(piece, binding)
    tensors, faults = to_tensors(piece, binding)
    for policy in policies:
        faults = (*faults, *policy.feature_faults(tensors, binding.feeds))
    if not faults:
        return None, tensors
    keep = np.ones(piece.num_rows, dtype=bool)
    for fault in faults:
        keep[fault.rows] = False
        rows = [int(numbers[int(row)]) for row in fault.rows]
        hint = rejects.policy.about(fault.code).hint(piece.schema.field(fault.column))
        rejects.add(rows, fault.code, _text(fault), hint)
    good = np.flatnonzero(keep)
    return good, to_tensors(piece.take(pa.array(good)), binding)[0]


def _text(fault: RowFault) -> str:
    return f"column {fault.column}: {fault.text}, first value {fault.example}"


def sift_predictions(
    outputs: list[np.ndarray], places: NDArray[np.int64] | None, numbers: Places, rejects: Rejects
) -> tuple[list[np.ndarray], NDArray[np.int64] | None, int]:
    """Reject rows whose predictions have a fault, or count them if a flag keeps them.

    Args:
        outputs: the model's, each ``(rows, *shape)``.
        places: the rows' positions in the batch; ``None`` for all of it.
        numbers: the numbers in the shard of all rows of the batch.
        rejects: takes the rejected rows.

    Returns:
        The outputs and the positions of the rows that are left, and how many rows were kept with a fault.
    """
    kept = 0
    for policy in rejects.policy.policies:
        bad, more = policy.prediction_faults(outputs)
        kept += more
        if not len(bad):
            continue
        where = np.arange(len(outputs[0])) if places is None else places
        for position in bad:
            error = policy.prediction_error(outputs, position)
            rejects.add([int(numbers[int(where[position])])], policy.reason, error)
        outputs, places = [np.delete(output, bad, axis=0) for output in outputs], np.delete(where, bad)
    return outputs, places, kept


def predict_around(
    tensors: Sequence[Tensor],
    rows: int,
    predict: Callable[[Sequence[Tensor]], list[np.ndarray]],
    most_bad: int,
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Predict a batch without the rows on which the model fails.

    If the model failed on every row, finding them would take two predictions for each. So the search ends
    when more than ``most_bad`` rows are found; the arrays are of no use then.

    Returns:
        One array per output for the rows that were predicted, in order; none if no row is left. And the
        positions in the batch of the rows on which the model failed, with its errors.
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
