"""Bad rows: found, left out of the batch, remembered with reason and error, and written to their own file.

A row is bad when a value of it cannot be fed to the model (a null, a NaN, a value that a cast would change),
when the model fails on it, or when its prediction is not finite. The first is seen while binding. The second
is found by halving the batch that failed: for one bad row among n that takes about 2·log2(n) predictions. Its
neighbours are scored as if it were not there.

When a split is done, its rejected rows are read again with all their columns and written. If the shard itself
is rejected, these are all rows of the split.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.binding.binding import Binding, Places, to_tensors
from job.binding.columns import empty_table
from job.commit.staging import ATTEMPT_SUFFIX, REJECTED_SUFFIX
from job.errors import DataError, JobError, ShardChangedError, ShardError, UnwritableError, one_line
from job.model.loading import slice_of
from job.model.signature import RowFault, Tensor
from job.scoring.nonfinite import OnNonfinite, OnNonfinitePrediction
from job.scoring.nulls import OnNull
from job.scoring.policy import FAIL, REJECT, OnBadRow, Policy
from job.scoring.reader import SplitReader
from job.scoring.writer import FileOptions, PartWriter, unwritable
from job.spec import Run, ScoringSpec, Split

# The columns that a file of rejected rows has behind the shard's own.
EXTRA_COLUMNS = (
    ("_shard", pa.string()),
    ("_row", pa.int64()),
    ("_reason", pa.string()),
    ("_error", pa.string()),
)
MODEL_ERROR: Final = "model_error"
BAD_SHARD: Final = "bad_shard"
_ROWS_AT_ONCE: Final = 65_536
# A footer of 300 bytes may claim rows without end.
_MOST_UNREAD_ROWS: Final = 1_000_000
# In the metadata of a file of rejected rows: which of the shard's columns it lacks, or why it has none.
_LEFT_OUT: Final = "scoring_job.left_out"

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


def write_rejected_rows(
    attempt: str, reader: SplitReader, rejects: Rejects, options: FileOptions
) -> dict[str, Any]:
    """Write a split's rejected rows, and return the receipt's fields.

    The rows are read again, with all their columns. Columns that cannot be written are left out, and named in
    the file's metadata and in the receipt.
    """
    if not rejects.rows:
        return {}
    stem, columns = attempt.removesuffix(ATTEMPT_SUFFIX), _Columns.of(reader)
    try:
        tables = rejects.tables(columns.only(reader.everything()))
        written = _write(f"{stem}{REJECTED_SUFFIX}", columns.schema, tables, columns.told(options))
        return {**written, "rejects_left_out": columns.left_out}
    except UnwritableError as e:
        # Another column's fault, which says nothing of the rows that were scored.
        tables, schema = rejects.reasons_alone(), pa.schema(EXTRA_COLUMNS)
        written = _write(f"{stem}.reasons", schema, tables, _told(options, str(e)))
        return {**written, "rejects_left_out": tuple(reader.whole_schema.names)}


def write_rejected_split(attempt: str, split: Split, error: str, options: FileOptions) -> dict[str, Any]:
    """Write all rows of a split whose shard is rejected, and return the receipt's fields.

    Rows have all their columns if these can be read and written; else only the shard, the row number and the
    reason. If nothing can be read and there are very many rows, no file is written.
    """
    if not split.rows:
        return {}
    stem = attempt.removesuffix(ATTEMPT_SUFFIX)
    try:
        with SplitReader(split) as reader:
            columns = _Columns.of(reader)
            tables = _whole(split, columns.only(reader.everything()), error)
            written = _write(f"{stem}.refused", columns.schema, tables, columns.told(options))
            return {**written, "rejects_left_out": columns.left_out}
    except ShardChangedError:
        raise
    except ShardError:
        if split.rows > _MOST_UNREAD_ROWS:
            return {}
        schema = pa.schema(EXTRA_COLUMNS)
        return _write(f"{stem}.unreadable", schema, _whole(split, _bare(split.rows), error), options)


@dataclass(frozen=True)
class _Columns:
    """Which of a shard's columns a file of rejected rows has, by number, and the names of the others."""

    kept: tuple[int, ...]
    left_out: tuple[str, ...]
    schema: pa.Schema

    @classmethod
    def of(cls, reader: SplitReader) -> _Columns:
        schema, inexact = reader.whole_schema, reader.inexact
        bad = sorted({*unwritable(schema), *(i for i, name in enumerate(schema.names) if name in inexact)})
        kept = tuple(i for i in range(len(schema)) if i not in bad)
        fields = pa.schema([schema.field(i) for i in kept], schema.metadata)
        whole = with_extras(empty_table(fields), []).schema
        return cls(kept, tuple(schema.field(i).name for i in bad), whole)

    def only(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (batch.select(list(self.kept)) for batch in batches) if self.left_out else batches

    def told(self, options: FileOptions) -> FileOptions:
        return _told(options, json.dumps(self.left_out)) if self.left_out else options


def _told(options: FileOptions, left_out: str) -> FileOptions:
    return replace(options, metadata={**options.metadata, _LEFT_OUT: left_out})


def _whole(split: Split, batches: Iterator[pa.RecordBatch], error: str) -> Iterator[pa.Table]:
    first_row = split.first_row
    for batch in batches:
        rows = np.arange(first_row, first_row + batch.num_rows)
        extras = [(split.shard.path, int(row), BAD_SHARD, error) for row in rows]
        yield with_extras(pa.table(batch), extras)
        first_row += batch.num_rows


def _bare(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches without columns that have ``rows`` rows in all."""
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = min(_ROWS_AT_ONCE, rows - start)
        yield pa.RecordBatch.from_struct_array(pa.array([{}] * some, pa.struct([])))


def _write(path: str, schema: pa.Schema, tables: Iterator[pa.Table], options: FileOptions) -> dict[str, Any]:
    with PartWriter(path, schema, options, overlap=False) as writer:
        for table in tables:
            for batch in table.to_batches():
                writer.append(batch.columns)
        part = writer.finish()
    return {"rejects": part.handle, "rejects_bytes": part.size_bytes, "rejects_sha256": part.sha256}


def too_many_text(
    split: Split, rows: int, reasons: str, run: Run, written: Mapping[str, Any], first: str = ""
) -> str:
    """Return the error line for a split that has more bad rows than the whole run may reject.

    ``written`` are the receipt's fields on the file of rejected rows, ``first`` a text on the first of them.
    """
    return (
        f"{split.shard.path}: {rows} row(s) rejected ({reasons}), more than --max_rejected="
        f"{run.max_rejected} of {run.rows} allows{first and f'; first {first}'}; look at "
        f"{written.get('rejects', 'it')}, mend the shard or raise --max_rejected"
    )
