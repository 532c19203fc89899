"""What becomes of rows with one kind of fault, as one flag says.

A reject policy is one module with one subclass of :class:`Policy`, listed in ``rejects.POLICIES``. A batch
passes all of them three times: before its columns become tensors, before these are predicted, and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.binding.binding import Binding
from job.model.signature import Feed, RowFault, Tensor
from job.spec import ScoringSpec

REJECT: Final = "reject"
FAIL: Final = "fail"
KEEP: Final = "keep"
NO_ROWS: Final = np.empty(0, np.int64)


@dataclass(frozen=True)
class Policy:
    """One flag, which says what becomes of rows with one kind of fault; ``choice`` is its value.

    Attributes:
        flag: the flag's name without dashes, which is a field of ``ScoringSpec``, and the key in a manifest's
            ``scoring``.
        reason: the name of the fault in files of rejected rows and in reports.
        choices: the values that are obeyed, as the flag's declaration lists them; ``=VALUE`` stands for any.
    """

    flag: ClassVar[str]
    reason: ClassVar[str]
    choices: ClassVar[tuple[str, ...]] = (REJECT, FAIL)

    choice: str = REJECT

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a value that would not be obeyed."""
        known = (choice.removesuffix("VALUE") for choice in self.choices)
        if not any(
            self.choice == one or (one.endswith("=") and self.choice.startswith(one)) for one in known
        ):
            raise ValueError(f"--{self.flag}={self.choice}: only {', '.join(self.choices)} are obeyed")

    @classmethod
    def asked(cls, spec: ScoringSpec) -> str:
        """Return the flag's value in a spec."""
        return str(getattr(spec, cls.flag))

    def misfits(self, _schema: pa.Schema, _binding: Binding, /) -> tuple[str, ...]:
        """Return why the choice does not suit a shard's columns, one line each. Asked before the night."""
        return ()

    def mended(self, piece: pa.RecordBatch, _binding: Binding, /) -> pa.RecordBatch:
        """Return the batch with the fault repaired, if the choice says how."""
        return piece

    def feature_faults(self, _tensors: Sequence[Tensor], _feeds: Sequence[Feed], /) -> tuple[RowFault, ...]:
        """Return the rows of a batch that have the fault in a feature.

        ``tensors`` are one per feed, in order, each ``(rows, *shape)``.
        """
        return ()

    def hint(self, _column: pa.Field, /) -> str:
        """Return which flag would feed rows that have the fault in this column; empty if none would."""
        return ""

    def prediction_faults(self, _outputs: Sequence[NDArray[Any]], /) -> tuple[NDArray[np.int64], int]:
        """Return the rows to reject for their predictions, ascending, and how many are kept in spite of it.

        ``outputs`` are the model's, each ``(rows, *shape)``.
        """
        return NO_ROWS, 0

    def prediction_error(self, _outputs: Sequence[NDArray[Any]], _row: int, /) -> str:
        """Return a text on what is wrong with the predictions of a row of :meth:`prediction_faults`."""
        raise NotImplementedError


class OnBadRow(Policy):
    """``--on_bad_row``: of faults that no other flag is about; ``fail`` goes for all faults."""

    flag: ClassVar[str] = "on_bad_row"
    reason: ClassVar[str] = ""
