"""Beam counters and distributions of a run, for the engine's own pages. They are updated from receipts.

They are for watching a run on the engine. Nothing relies on them: some engines show none, some lose them,
and a split that is scored twice after a failure counts twice. The report adds up one receipt per split, and
is right. In a run without failures the totals are the same.

They are updated once per split, on the thread on which Beam called the DoFn: Beam does not see updates from
other threads.
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
    """Return how much a receipt adds to each counter, except to the counter of model loads."""
    return {name: of(receipt) for name, of in _COUNTED.items()}


def values(receipt: Receipt) -> dict[str, int]:
    """Return a receipt's value for each distribution, or nothing if no batch was predicted."""
    if not receipt.batches:
        return {}
    spent = {f"{stage}_us": round(getattr(receipt, f"{stage}_s") * 1e6) for stage in STAGES}
    return {**spent, "batch_rows": receipt.batch_rows}


def is_new_load(receipt: Receipt) -> bool:
    """Return whether this process sees a run's model load for the first time, so that it is counted once."""
    if receipt.reused or not receipt.load:
        return False
    told = receipt.run_id, receipt.load
    with _telling:
        new = told not in _told
        _told.add(told)
    return new


class CountReceipts(beam.DoFn):
    """Counts receipts: ``Receipt`` → the same ``Receipt``."""

    def __init__(self) -> None:
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in (*_COUNTED, _LOADS)}
        self._distributions = {
            name: Metrics.distribution(NAMESPACE, name)
            for name in (*(f"{stage}_us" for stage in STAGES), "batch_rows")
        }

    def process(self, receipt: Receipt) -> Iterator[Receipt]:
        """Update the counters by one receipt, and yield it."""
        for name, number in totals(receipt).items():
            # A counter that is there and 0 says more than one that is absent.
            self._counters[name].inc(number)
        self._counters[_LOADS].inc(int(is_new_load(receipt)))
        for name, number in values(receipt).items():
            self._distributions[name].update(number)
        yield receipt
