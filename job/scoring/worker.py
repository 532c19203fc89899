"""What runs on a worker: takes the process's model, scores splits, leaves receipts and errors behind.

Engines run steps again when they have lost the outcome, also after the run was published. Its plan is gone
then, and every step does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from job import storage
from job.commit import output, staging
from job.errors import JobError, ModelError, StateUnknownError, one_line
from job.model import loading
from job.scoring.challenger import Challenger, Rival
from job.scoring.overlap import Overlap, StoppedError
from job.scoring.split import score_split
from job.scoring.task import ScoringTask
from job.spec import Receipt, Run, Split
from job.storage import objects


@dataclass(frozen=True)
class PlanSlice:
    """Every ``step``-th split of the plan at ``path``, from number ``first`` on."""

    path: str
    first: int
    step: int

    @classmethod
    def all_of(cls, path: str, step: int) -> list[PlanSlice]:
        """Return the slices that make up a plan."""
        return [cls(path, first, step) for first in range(step)]


@dataclass(frozen=True)
class ReadPlan:
    """Reads the splits of a run: ``PlanSlice`` → its ``Split``s."""

    run: Run

    def __call__(self, some: PlanSlice) -> Iterator[Split]:
        """Yield the splits, none where the run is published."""
        try:
            objects.configure(self.run.stores)
            yield from staging.read_plan(some.path, some.first, some.step)
        except StateUnknownError as e:
            if not output.is_published(self.run.output, self.run.run_id):
                staging.write_failure(self.run.output, self.run.run_id, "", e)
                raise


def _threads(task: ScoringTask) -> int:
    """Return TensorFlow's threads within one operation, 0 where nobody knows how many processes work here."""
    if task.threads or task.processes < 0:
        return task.threads
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (task.processes or cores))


def check_not_stopped(task: ScoringTask) -> None:
    """Refuse to go on with a job whose command was stopped; its engine may not end what has begun."""
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
    """Yield a split's receipts; where files are in buckets, those of splits before it.

    ``receipts`` scores it, and asks the model within the turn that it is given.
    """
    if not overlaps or not (storage.is_remote(split.shard.path) or storage.is_remote(task.run.output)):
        yield from receipts(nullcontext())
        return
    for done in overlap.begin(lambda: list(receipts(overlap.scoring()))):
        yield from done


def finished(overlap: Overlap[list[Receipt]]) -> Iterator[WindowedValue]:
    """Yield the receipts of splits that were begun and have not been waited for, as a bundle's last ones."""
    for receipts in overlap.finish():
        for receipt in receipts:
            yield WindowedValue(receipt, MIN_TIMESTAMP, (GlobalWindow(),))


@dataclass(eq=False)
class ScoreSplits(beam.DoFn):
    """``Split`` → ``Receipt``; a split that has a receipt is not scored again."""

    task: ScoringTask
    overlaps: bool = True

    def setup(self) -> None:
        """Take this process's copy of the model, whatever the engine does with its DoFns."""
        self.ready(Overlap[list[Receipt]]())

    def ready(self, overlap: Overlap[Any]) -> None:
        """Do what ``setup`` does; ``overlap`` may be shared with other nights' steps."""
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
        """Wait for what a bundle that failed has left behind."""
        self._overlap.forget()

    def process(self, split: Split) -> Iterator[Receipt]:
        """Score one split, or return the receipt that it has; where files are in buckets, of earlier splits.

        The rest of those comes when the bundle ends.
        """
        check_not_stopped(self.task)
        yield from begun(self._overlap, self.overlaps, split, self.task, partial(self.receipts, split))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Return the receipts that ``process`` has not returned."""
        return finished(self._overlap)

    def receipts(self, split: Split, turn: AbstractContextManager[None]) -> Iterator[Receipt]:
        """Yield a split's receipt, none where the run is published; the model is asked within ``turn``."""
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
