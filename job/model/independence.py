"""Rows are independent: a prediction must not depend on the other rows of its batch, nor on their order.

How rows are cut into batches is this job's choice, so a model that looks at a row's neighbours (it
normalises, sorts or adds up over the batch axis, keeps state, draws at random) gives other numbers each time.
That shows on real rows: some of a batch are predicted again

* in their own places beside other rows. Nothing else has changed, so the same instructions work on the same
  numbers, and the predictions are equal but for a rounding;
* in reverse order, and some of them alone. A library may then add up in another order, or choose another
  kernel: in deep models of few digits predictions move by a percent or two, and one that is decided by a hair
  turns over. So this looks for gross differences in several rows, which is how it shows that a model counts
  rows, or their places.

It is done once after each loading, on the first batch of two rows or more, and again on a larger one where
that batch was small. It takes some eight predictions of at most sixteen rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from job.errors import JobError, ModelError, one_line
from job.model.signature import CodedStrings, Tensor

Outputs = Sequence[NDArray[Any]]
# Predicts a batch, filled up to a number of rows where another one would have to be compiled.
Predict = Callable[[Sequence[Tensor], int], list[np.ndarray]]

# As many rows are predicted again, so many of them alone.
_ROWS: Final = 16
_ALONE: Final = 4
# They are chosen among so many, since equal rows show nothing.
_CANDIDATES: Final = 256
# A batch of fewer may be too small to show it: the best ten of a batch of ten are all of them.
_COMPANY_ROWS: Final = 1024
# Of a prediction, and of the largest one among those that are compared.
_RTOL, _ATOL = 1e-5, 1e-6
# Of a type that has fewer digits than float32.
_STEPS: Final = 4
# Of the largest one; and the share of rows that differ by more.
_GROSS: Final = 0.05
_GROSS_ROWS: Final = 0.25
# So many batches of equal rows are tried in the hope of others.
_MOST_ALIKE: Final = 8
_MOST_TEXT: Final = 40
# What a model was built with before the first row; see ``backend``.
_PAIR: Final = 2

_NEIGHBOURS: Final = (
    "a prediction must depend on its own row alone: take out what works over the batch axis (axis=0), or "
    "give it fixed statistics"
)
_UNSTEADY: Final = (
    "take out what draws at random or keeps state (dropout, noise or batch statistics in training mode, "
    "stateful layers)"
)


# The numbers of rows in a row.
Numbers = range | NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """A batch that was predicted.

    ``tensors`` are what the model was fed, ``places`` the rows among them that ``outputs`` are of;
    ``steady_rows`` is what batches are filled up to. ``numbers`` are those of all rows fed, in ``where``.
    """

    tensors: Sequence[Tensor]
    places: NDArray[np.int64]
    outputs: Outputs
    steady_rows: int
    numbers: Numbers
    where: str

    def name(self, place: int) -> str:
        """Return what the row in a place is called."""
        return f"row {self.numbers[place]} of {self.where}"


class Independence:
    """What is known of one loaded model; shared by the threads that use it.

    Attributes:
        rows: how many rows have been predicted again so far.
        apart: how far their predictions were apart, as a share of the largest one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._load = ""
        self._due_rows: float = 2
        self._refusal = ""
        self._alike = 0
        self.rows = 0
        self.apart = 0.0

    def is_due(self, rows: int, load: str) -> bool:
        """Say whether a batch of so many rows is to be checked; ``load`` identifies the loading."""
        return rows >= self._due_rows or (rows > 1 and load != self._load)

    def check(self, path: str, names: Sequence[str], batch: Batch, predict: Predict, load: str) -> None:
        """Predict some rows of a batch again, where that has not been done.

        Args:
            path: the model's.
            names: the outputs'.
            batch: what was predicted.
            predict: the model.
            load: identifies the loading of the model.

        Raises:
            ModelError: a row's prediction depends on more than the row.
        """
        with self._lock:
            if not self.is_due(len(batch.places), load):
                return
            if load != self._load:
                self._load, self._due_rows, self._refusal, self._alike = load, 2, "", 0
            if self._refusal:
                # Whoever asks next is told the same.
                raise ModelError(f"{path}: {self._refusal}")
            trial = _Trial(names, batch, predict)
            self._refusal = trial.difference()
            self.rows, self.apart = self.rows + trial.rows, max(self.apart, trial.apart)
            if self._refusal:
                raise ModelError(f"{path}: {self._refusal}")
            rows = len(batch.places)
            self._alike += not trial.is_telling
            if trial.is_telling or self._alike == _MOST_ALIKE:
                self._due_rows = 4 * rows if rows < _COMPANY_ROWS else float("inf")


class _Trial:
    """Some of a batch's rows, predicted again."""

    def __init__(self, names: Sequence[str], batch: Batch, predict: Predict) -> None:
        self._names, self._batch, self._model = names, batch, predict
        # Positions among the rows that were predicted.
        self._rows, self.is_telling = _chosen(batch)
        self.rows = len(self._rows)
        self.apart = 0.0

    def difference(self) -> str:
        """Return what shows that a prediction depends on more than its row; empty where nothing does."""
        rows = len(self._batch.places)
        for name, output in zip(self._names, self._batch.outputs, strict=True):
            if output.shape[:1] != (rows,):
                return (
                    f"it gives {name} of shape {output.shape} for {rows:,} rows; each row must have its own"
                )
        try:
            together = self._predict(self._rows)
            found = self._beside_others(together) or self._in_reverse(together) or self._alone(together)
            unsteady = found and self._once_more(together)
        except JobError:
            raise
        except Exception as e:  # noqa: BLE001 - a model may raise anything, and has just predicted these very rows
            row = self._batch.name(int(self._batch.places[self._rows[0]]))
            fails = (
                f"it predicts {row} in a batch of {len(self._batch.places):,} rows, and fails beside others"
            )
            return f"{fails} or alone: {one_line(e)}; {_NEIGHBOURS}"
        if unsteady:
            return f"it gives other predictions each time: {unsteady}; {_UNSTEADY}"
        return found and f"it looks at a row's neighbours: {found}; {_NEIGHBOURS}"

    def _beside_others(self, together: Outputs) -> str:
        """Predict every second row in its place beside one row many times; then the others beside another."""
        for kept, other in ((0, self._rows[0]), (1, self._rows[-1])):
            rows = np.full(self.rows, other)
            rows[kept::2] = self._rows[kept::2]
            again = [output[kept::2] for output in self._predict(rows)]
            before = [output[kept::2] for output in together]
            told = (f"beside {self.rows - 1:,} rows", "in the same place beside others")
            if found := self._compare(self._rows[kept::2], before, again, told, exact=True):
                return found
        return ""

    def _in_reverse(self, together: Outputs) -> str:
        again = [output[::-1] for output in self._predict(self._rows[::-1])]
        told = (f"in a batch of {self.rows:,} rows", "in the same batch in reverse order")
        return self._compare(self._rows, together, again, told)

    def _alone(self, together: Outputs) -> str:
        """Compare what was given in the batch that is scored, in this one, and to some rows alone."""
        whole = f"in a batch of {len(self._batch.places):,} rows"
        given = [np.asarray(output)[self._rows] for output in self._batch.outputs]
        if found := self._compare(self._rows, given, together, (whole, f"in one of {self.rows:,}")):
            return found
        some = np.unique(np.linspace(0, self.rows - 1, _ALONE).astype(np.int64))
        each = [self._predict(self._rows[i : i + 1], _PAIR) for i in some]
        for i, one in zip(some, each, strict=True):
            before = [output[i : i + 1] for output in given]
            if found := self._misshapen(self._rows[i : i + 1], before, one, (whole, "alone")):
                return found
        again = [np.concatenate(rows) for rows in zip(*each, strict=True)]
        before = [output[some] for output in given]
        return self._compare(self._rows[some], before, again, (whole, "alone"))

    def _once_more(self, together: Outputs) -> str:
        told = ("at first", "when the same batch is predicted again")
        return self._compare(self._rows, together, self._predict(self._rows), told, exact=True)

    def _predict(self, rows: NDArray[np.int64], filled_rows: int | None = None) -> list[np.ndarray]:
        places = self._batch.places[rows]
        steady_rows = self._batch.steady_rows if filled_rows is None else filled_rows
        tensors = [_taken(tensor, places) for tensor in self._batch.tensors]
        return [np.asarray(output) for output in self._model(tensors, steady_rows)]

    def _compare(
        self,
        rows: NDArray[np.int64],
        before: Outputs,
        again: Outputs,
        told: tuple[str, str],
        *,
        exact: bool = False,
    ) -> str:
        """Return how the rows' predictions differ, the first of them; empty where they do not.

        ``told`` says how they were made ``before`` and ``again``. Not ``exact`` are those of which several
        must differ much.
        """
        if misshapen := self._misshapen(rows, before, again, told):
            return misshapen
        for name, old, new in zip(self._names, before, again, strict=True):
            away, limit = _away(old, new, exact=exact)
            self.apart = max(self.apart, float(np.max(away, initial=0.0, where=np.isfinite(away))))
            differ = (away > limit).any(axis=1)
            if differ.sum() > (0 if exact else _GROSS_ROWS * len(rows)):
                i = int(differ.argmax())
                k = int((away - limit)[i].argmax())
                which = f"{name}[{k}]" if away.shape[1] > 1 else name
                x, y = (_value(side.reshape(len(rows), -1)[i, k]) for side in (old, new))
                return f"{self._name(rows[i])} is given {which} = {x} {told[0]} and {y} {told[1]}"
        return ""

    def _misshapen(
        self, rows: NDArray[np.int64], before: Outputs, again: Outputs, told: tuple[str, str]
    ) -> str:
        for name, old, new in zip(self._names, before, again, strict=True):
            if old.shape != new.shape:
                shapes = f"{old.shape} {told[0]} and {new.shape} {told[1]}"
                return f"{self._name(rows[0])} is given {name} of shape {shapes}"
        return ""

    def _name(self, row: np.int64) -> str:
        return self._batch.name(int(self._batch.places[row]))


def _chosen(batch: Batch) -> tuple[NDArray[np.int64], bool]:
    """Return some of a batch's rows, ascending, ``(chosen,) int64``, and whether no two of them are alike."""
    rows = len(batch.places)
    # Not evenly spread: a model may count rows.
    some = np.sort(np.random.default_rng(rows).choice(rows, min(rows, _CANDIDATES), replace=False))
    unlike: dict[tuple[bytes, ...], int] = {}
    for row in some:
        place = batch.places[row : row + 1]
        codes = [_array(_taken(tensor, place)) for tensor in batch.tensors]
        unlike.setdefault(tuple(array.tobytes() for array in codes), int(row))
        if len(unlike) == _ROWS:
            break
    found = sorted(unlike.values())
    if len(found) > 1:
        return np.array(found, np.int64), True
    # Equal rows still show a model that adds them up.
    return some[:_ROWS].astype(np.int64), False


def _taken(tensor: Tensor, places: NDArray[np.int64]) -> Tensor:
    if isinstance(tensor, CodedStrings):
        return CodedStrings(tensor.values, tensor.codes[places])
    return tensor[places]


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.codes if isinstance(tensor, CodedStrings) else tensor


def _away(
    old: NDArray[Any], new: NDArray[Any], *, exact: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far values are apart, and how far they may be, ``(rows, values)`` each.

    Both are shares of what is large among the predictions compared; 1 where values cannot be subtracted.
    """
    old, new = (array.reshape(len(array), -1) for array in (old, new))
    if old.dtype.kind in "OSUb":
        return (old != new).astype(np.float64), np.zeros(old.shape)
    # Whole numbers too: a row's rank and its class differ by more than a rounding.
    a, b = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    size = np.where(finite, np.abs(a), 0.0)
    most = size.max(axis=1, initial=0.0)
    # A few large rows do not hide what the others do; nor are many zeros expected to be exact.
    scale = np.maximum(np.maximum(most, np.median(most)), 1e-3 * most.max(initial=0.0))[:, None]
    scale = np.where(scale > 0, scale, 1.0)
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        away = np.where(same, 0.0, np.where(finite, np.abs(a - b) / scale, np.inf))
    if not exact:
        return away, np.where(finite, _GROSS, 0.0)
    # A card may add up in another order each time; then numbers of few digits are some steps apart.
    has_few_digits = old.dtype.itemsize < 4 and old.dtype.kind not in "iu"
    rtol = _STEPS * _step(old.dtype) if has_few_digits else _RTOL
    return away, np.where(finite, rtol * size / scale + _ATOL, 0.0)


def _step(dtype: np.dtype[Any]) -> float:
    """Return how far 1 and the next number of a type are apart; ``np.finfo`` knows no bfloat16."""
    step = 1.0
    while float(np.array(1.0 + step / 2).astype(dtype)) > 1.0:
        step /= 2
    return step


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = f"{value:.7g}" if isinstance(value, (float, np.floating)) else str(value)
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
