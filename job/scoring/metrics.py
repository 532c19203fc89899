"""What a run does, as an engine's own pages show it: Beam counters and distributions, fed from receipts.

Nothing relies on them. Some engines have none, some lose them, and what is scored twice after a failure is
counted twice; the report is added up from receipts, one per split, and is right. They are for watching a run
on the engine, beside everything else that runs there, and their totals are those of the report.

Updated once per split and not per row, on the thread that Beam called: of any other it knows nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import apache_beam as beam
from apache_beam.metrics import Metrics

from job.spec import Receipt

NAMESPACE: Final = "scoring_job"
# Of the report's stages. Not milliseconds: a small split takes none, and rounded ones do not add up.
STAGES: Final = ("read", "bind", "predict", "write")

_COUNTED: Final[Mapping[str, Callable[[Receipt], int]]] = {
    "splits_scored": lambda receipt: int(not receipt.reused),
    "splits_reused": lambda receipt: int(receipt.reused),
    "rows_read": lambda receipt: receipt.rows_read,
    "rows_scored": lambda receipt: receipt.rows_scored,
    "rows_rejected": lambda receipt: receipt.rows_rejected,
    "batches": lambda receipt: receipt.batches,
    "bytes_written": lambda receipt: receipt.file_bytes,
}
_LOADS: Final = "model_loads"

# A load counts once in each run that it served, however many threads and bundles tell of it.
_told: set[tuple[str, str]] = set()
_telling = threading.Lock()


def totals(receipt: Receipt) -> dict[str, int]:
    """Return what a receipt adds to each counter but that of the loads."""
    return {name: of(receipt) for name, of in _COUNTED.items()}


def values(receipt: Receipt) -> dict[str, int]:
    """Return what a receipt adds to each distribution; nothing where no batch was predicted."""
    if not receipt.batches:
        return {}
    spent = {f"{stage}_us": round(getattr(receipt, f"{stage}_s") * 1e6) for stage in STAGES}
    return {**spent, "batch_rows": receipt.batch_rows}


def is_new_load(receipt: Receipt) -> bool:
    """Return whether this run has not heard yet of the load that served a split, here in this process."""
    if receipt.reused or not receipt.load:
        return False
    told = receipt.run_id, receipt.load
    with _telling:
        new = told not in _told
        _told.add(told)
    return new


class CountReceipts(beam.DoFn):
    """``Receipt`` → the same ``Receipt``, counted."""

    def __init__(self) -> None:
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in (*_COUNTED, _LOADS)}
        self._distributions = {
            name: Metrics.distribution(NAMESPACE, name)
            for name in (*(f"{stage}_us" for stage in STAGES), "batch_rows")
        }

    def process(self, receipt: Receipt) -> Iterator[Receipt]:
        """Count one split."""
        for name, number in totals(receipt).items():
            # A counter that is there and 0 says more than one that is absent.
            self._counters[name].inc(number)
        self._counters[_LOADS].inc(int(is_new_load(receipt)))
        for name, number in values(receipt).items():
            self._distributions[name].update(number)
        yield receipt
