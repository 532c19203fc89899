"""The DoFns that run on workers: read the plan, score splits, write receipts, count them for the engine.

An engine may run a step again, even after the run was published. Then the plan is gone, and every step does
nothing. What fails on a worker leaves its error in staging, for the launcher.

Beam counters and distributions are for watching a run on the engine's own pages. Nothing relies on them: some
engines show none, some lose them, and a split that is scored twice after a failure counts twice. The report
adds up one receipt per split, and is right. In a run without failures the totals are the same. They are
updated once per split, on the thread on which Beam called the DoFn: Beam does not see updates from other
threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from job import storage
from job.commit import output, staging
from job.errors import JobError, ModelError, StateUnknownError, one_line
from job.model import loading
from job.report.run_report import STAGES
from job.scoring.challenger import Challenger, Rival
from job.scoring.overlap import Overlap, StoppedError
from job.scoring.split import score_split
from job.scoring.task import ScoringTask
from job.spec import Receipt, Run, Split
from job.storage import objects

NAMESPACE: Final = "scoring_job"

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


@dataclass(frozen=True)
class PlanSlice:
    """Every ``step``-th split of the plan at ``path``, from number ``first`` on."""

    path: str
    first: int
    step: int

    @classmethod
    def all_of(cls, path: str, step: int) -> list[PlanSlice]:
        """Return ``step`` slices that together are the whole plan."""
        return [cls(path, first, step) for first in range(step)]


@dataclass(frozen=True)
class ReadPlan:
    """Reads the splits of a plan: ``PlanSlice`` → ``Split``."""

    run: Run

    def __call__(self, some: PlanSlice) -> Iterator[Split]:
        """Yield the splits of a slice, or none if the run is published."""
        try:
            objects.configure(self.run.stores)
            yield from staging.read_plan(some.path, some.first, some.step)
        except StateUnknownError as e:
            if not output.is_published(self.run.output, self.run.run_id):
                staging.write_failure(self.run.output, self.run.run_id, "", e)
                raise


def _threads(task: ScoringTask) -> int:
    """Return TensorFlow's threads within one operation; 0 leaves the choice to TensorFlow."""
    if task.threads or task.processes < 0:
        return task.threads
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (task.processes or cores))


def check_not_stopped(task: ScoringTask) -> None:
    """Raise ``StateUnknownError`` if the job's command was stopped; not every engine ends running bundles."""
    if task.stop_mark and storage.size_bytes(task.stop_mark) is not None:
        run = task.run
        raise StateUnknownError(f"{run.output}: run {run.run_id[:12]} was stopped; run again to resume")


def begun(
    overlap: Overlap[list[Receipt]],
    overlaps: bool,
    split: Split,
    task: ScoringTask,
    receipts: Callable[[AbstractContextManager[None]], Iterator[Receipt]],
) -> Iterator[Receipt]:
    """Score a split and yield its receipt; if files are in buckets, begin it and yield earlier receipts.

    ``receipts`` scores the split. It is given its turn at the model, a context that it enters once.
    """
    if not overlaps or not (storage.is_remote(split.shard.path) or storage.is_remote(task.run.output)):
        yield from receipts(nullcontext())
        return
    for done in overlap.begin(lambda: list(receipts(overlap.scoring()))):
        yield from done


def finished(overlap: Overlap[list[Receipt]]) -> Iterator[WindowedValue]:
    """Wait for splits that were begun, and yield their receipts as the last elements of a bundle."""
    for receipts in overlap.finish():
        for receipt in receipts:
            yield WindowedValue(receipt, MIN_TIMESTAMP, (GlobalWindow(),))


@dataclass(eq=False)
class ScoreSplits(beam.DoFn):
    """Scores splits: ``Split`` → ``Receipt``. A split that has a receipt is not scored again."""

    task: ScoringTask
    overlaps: bool = True

    def setup(self) -> None:
        """Load the model, or take the one that this process has loaded for another instance."""
        self.ready(Overlap[list[Receipt]]())

    def ready(self, overlap: Overlap[Any]) -> None:
        """Do what ``setup`` does, with an ``overlap`` that other nights' steps may share."""
        task = self.task
        self._overlap = overlap
        objects.configure(task.run.stores)
        with self._failures_left_behind(""):
            self._loaded = loading.acquire(
                task.run.model,
                device=task.device,
                threads=_threads(task),
                machine=task.machine,
                stores=task.run.stores,
            )
            self._loaded.build([feed.input for feed in task.binding.feeds])
            if self._loaded.weights_digest != task.weights_digest:
                raise ModelError(
                    f"{task.run.model.path}: its builder made weights {self._loaded.weights_digest[:12]} "
                    f"here, {task.weights_digest[:12]} where the run was planned; give --weights, or "
                    f"seed its initializers"
                )
            self._check_golden()
            self._rival = None if task.challenger is None else self._challenger(task.challenger)

    def _challenger(self, challenger: Challenger) -> Rival:
        task = self.task
        return challenger.acquire(
            self._loaded,
            device=task.device,
            threads=_threads(task),
            machine=task.machine,
            stores=task.run.stores,
        )

    def _check_golden(self) -> None:
        if self.task.golden is not None:
            self.task.golden.check(self._loaded)

    def start_bundle(self) -> None:
        """Wait for threads that a failed bundle has left running."""
        self._overlap.forget()

    def process(self, split: Split) -> Iterator[Receipt]:
        """Score one split and yield its receipt, or yield the receipt that it has.

        If files are in buckets, receipts come later: with the next splits, or when the bundle ends.
        """
        check_not_stopped(self.task)
        yield from begun(self._overlap, self.overlaps, split, self.task, partial(self.receipts, split))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Return the receipts of splits that ``process`` began and did not wait for."""
        return finished(self._overlap)

    def receipts(self, split: Split, turn: AbstractContextManager[None]) -> Iterator[Receipt]:
        """Yield a split's receipt, or none if the run is published.

        The model is used within ``turn``, which can be entered only once.
        """
        run = self.task.run
        found = staging.read_receipt(run.output, run.run_id, split)
        # An unseeded builder makes another model each time: what an earlier one scored does not count.
        if found is not None and self._counts(found):
            yield replace(found, reused=True)
            return
        try:
            with self._failures_left_behind(split.name), self._overlap.reading(split.shard.size_bytes):
                # Again only where another process, which held the model for this one, has died.
                self._check_golden()
                receipt = score_split(split, self.task, self._loaded, turn, self._rival)
            with self._failures_left_behind(split.name):
                receipt = staging.write_receipt(run.output, receipt)
        except StateUnknownError:
            if output.is_published(run.output, run.run_id):
                return
            raise
        yield receipt

    def _counts(self, found: Receipt) -> bool:
        challenger = self.task.challenger
        is_same = challenger is None or challenger.counts(found.challenger)
        return is_same and found.weights_digest == self.task.weights_digest

    @contextmanager
    def _failures_left_behind(self, where: str) -> Iterator[None]:
        try:
            yield
        except StoppedError:
            raise
        except Exception as e:
            text = f"{where or 'the worker'}: unexpected {one_line(e)}; see more with --debug"
            told = e if isinstance(e, JobError) else JobError(text)
            staging.write_failure(self.task.run.output, self.task.run.run_id, where, told)
            raise


def totals(receipt: Receipt) -> dict[str, int]:
    """Return how much a receipt adds to each counter, except to the counter of model loads."""
    return {name: of(receipt) for name, of in _COUNTED.items()}


def values(receipt: Receipt) -> dict[str, int]:
    """Return a receipt's value for each distribution, or nothing if no batch was predicted."""
    if not receipt.batches:
        return {}
    # Not milliseconds: a small split takes none, and rounded ones do not add up.
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
