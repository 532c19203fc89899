"""Several nights in one pipeline, because starting a pipeline takes longer than scoring a small night.

::

    plans ▶ Read the plans      (night, PlanSlice) → (night, Split)
          ▶ Spread the splits   a shuffle of splits
          ▶ Score the splits    (night, Split) → Receipt    as in ``job.pipeline``
          ▶ Count the splits    Receipt → Receipt           for the engine's own metrics
          ▶ Count the runs' splits   run id → (run id, splits); a shuffle of numbers by run id

Splits and numbers are shuffled; rows never are. Resource hints are added by ``job.launch.submission``, as to
``job.pipeline``, which lists the other pipelines too.

The pipeline publishes nothing. Its caller does, night by night, from the receipts in each night's staging. A
night that fails leaves its error in its staging, and its other splits are not scored; the other nights go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue

from job.scoring.overlap import Overlap, StoppedError
from job.scoring.task import ScoringTask
from job.scoring.worker import (
    CountReceipts,
    PlanSlice,
    ReadPlan,
    ScoreSplits,
    begun,
    check_not_stopped,
    finished,
)
from job.spec import Device, Receipt, Run, Split
from job.storage import objects


@dataclass(eq=False)
class ScoreNights(beam.PTransform):
    """Score the splits of several written plans: ``PBegin`` → ``PCollection`` of run ids and their splits.

    There is one plan and one task for each night. ``slices`` and ``overlaps`` are those of
    ``pipeline.ScorePlan``.
    """

    plans: tuple[str, ...]
    tasks: tuple[ScoringTask, ...]
    slices: int = 1
    overlaps: bool = True

    @property
    def device(self) -> Device:
        """Return where the model runs."""
        return self.tasks[0].device

    def stop_by(self, mark: str) -> None:
        """Have workers begin no further split once there is a file at ``mark``."""
        self.tasks = tuple(replace(task, stop_mark=mark) for task in self.tasks)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, int]]:
        """Wire the steps that the module's docstring draws."""
        # As many elements to begin with as one night would have, or nights, whichever are more.
        each = -(-self.slices // len(self.plans))
        slices = [
            (night, part) for night, plan in enumerate(self.plans) for part in PlanSlice.all_of(plan, each)
        ]
        runs = tuple(task.run for task in self.tasks)
        return (
            begin
            | "Name the plans" >> beam.Create(slices, reshuffle=False)
            | "Read the plans" >> beam.FlatMapTuple(ReadPlans(runs))
            | "Spread the splits" >> beam.Reshuffle()
            | "Score the splits" >> beam.ParDo(ScoreSplitsOfNights(self.tasks, self.overlaps))
            | "Count the splits" >> beam.ParDo(CountReceipts())
            | "Name the runs" >> beam.Map(lambda receipt: receipt.run_id)
            # The embedded engine sees that a worker has died only where it waits for what the worker gives.
            | "Count the runs' splits" >> beam.combiners.Count.PerElement()
        )


@dataclass(frozen=True)
class ReadPlans:
    """Reads the splits of several runs: ``(night, PlanSlice)`` → ``(night, Split)``."""

    runs: tuple[Run, ...]

    def __call__(self, night: int, some: PlanSlice) -> Iterator[tuple[int, Split]]:
        """Yield the splits of a slice, or none if the run is published."""
        for split in ReadPlan(self.runs[night])(some):
            yield night, split


@dataclass(eq=False)
class ScoreSplitsOfNights(beam.DoFn):
    """Scores splits of several nights: ``(night, Split)`` → ``Receipt``; no more after a night has failed."""

    tasks: tuple[ScoringTask, ...]
    overlaps: bool = True

    def setup(self) -> None:
        """Prepare for bundles; the model is loaded with the first split."""
        objects.configure(self.tasks[0].run.stores)
        self._overlap = Overlap[list[Receipt]]()
        self._steps: dict[int, ScoreSplits] = {}
        self._failed: set[int] = set()

    def start_bundle(self) -> None:
        """Wait for threads that a failed bundle has left running."""
        self._overlap.forget()

    def process(self, one: tuple[int, Split]) -> Iterator[Receipt]:
        """Score one split, or yield the receipt that it has; see ``ScoreSplits``."""
        night, split = one
        check_not_stopped(self.tasks[night])
        task = self.tasks[night]
        yield from begun(self._overlap, self.overlaps, split, task, partial(self._receipts, night, split))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Return the receipts of splits that ``process`` began and did not wait for."""
        return finished(self._overlap)

    def _receipts(self, night: int, split: Split, turn: AbstractContextManager[None]) -> Iterator[Receipt]:
        if night in self._failed:
            return
        try:
            yield from self._step(night).receipts(split, turn)
        except StoppedError:
            raise
        except Exception:  # noqa: BLE001 - left in the night's staging, where whoever publishes it finds it
            self._failed.add(night)

    def _step(self, night: int) -> ScoreSplits:
        step = self._steps.get(night)
        if step is None:
            step = ScoreSplits(self.tasks[night], self.overlaps)
            step.ready(self._overlap)
            self._steps[night] = step
        return step


def alike(tasks: Sequence[ScoringTask]) -> tuple[ScoringTask, ...]:
    """Return the tasks with equal parts replaced by one shared object, which is pickled only once."""
    first = tasks[0]
    alike = []
    for task in tasks:
        run = replace(
            task.run,
            **{
                name: getattr(first.run, name)
                for name in ("model", "signature", "versions", "scoring", "stores", "challenger")
                if getattr(task.run, name) == getattr(first.run, name)
            },
        )
        shared = {
            name: getattr(first, name)
            for name in ("binding", "keys", "predictions", "golden", "challenger")
            if getattr(task, name) == getattr(first, name)
        }
        alike.append(replace(task, run=run, **shared))
    return tuple(alike)
