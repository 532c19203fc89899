"""The whole Beam pipeline of a night.

::

    plan.jsonl ▶ Read the plan      PlanSlice → Split     tens of bytes each
               ▶ Spread the splits  Split     → Split     a shuffle of splits
               ▶ Score the splits   Split     → Receipt   read ▶ bind ▶ predict ▶ write, in one place
               ▶ Count the splits   Receipt   → Receipt   for the engine's own metrics
               ▶ Gather             Receipt   → [Receipt] a shuffle of receipts, hundreds of bytes each
               ▶ Publish            [Receipt] → str       the report, as JSON; _SUCCESS is written last

Splits and receipts are shuffled; rows never are. The graph holds the path of the plan and not the plan, so
its size does not depend on the number of shards.

``job.launch.submission`` builds the pipeline of this transform, and gives it the engine's resource hints. The
other pipelines are ``job.scoring.nights`` (several nights), ``job.transform`` (a night within somebody else's
pipeline), ``job.launch.footers`` and ``job.doctor.probe``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import apache_beam as beam

from job.commit import protocol, staging
from job.errors import JobError
from job.scoring.task import ScoringTask
from job.scoring.worker import CountReceipts, PlanSlice, ReadPlan, ScoreSplits
from job.spec import Device, Receipt, Run
from job.storage import objects


@dataclass(eq=False)
class ScorePlan(beam.PTransform):
    """Score every split of a written plan and publish: ``PBegin`` → ``PCollection[str]`` of one report.

    In somebody else's pipeline, where there is no plan yet, ``job.transform.ScoreParquet`` does the same.
    ``slices`` is more than one for an engine that does not redistribute elements, but works on as many at a
    time as there are at the start. ``overlaps`` is false for an engine that drops what a DoFn emits when a
    bundle ends.
    """

    plan: str
    task: ScoringTask
    slices: int = 1
    overlaps: bool = True

    @property
    def device(self) -> Device:
        """Return where the model runs."""
        return self.task.device

    def stop_by(self, mark: str) -> None:
        """Have workers begin no further split once there is a file at ``mark``."""
        self.task = replace(self.task, stop_mark=mark)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[str]:
        """Wire the steps that the module's docstring draws."""
        return (
            begin
            | "Name the plan" >> beam.Create(PlanSlice.all_of(self.plan, self.slices), reshuffle=False)
            | "Read the plan" >> beam.FlatMap(ReadPlan(self.task.run))
            | "Spread the splits" >> beam.Reshuffle()
            | "Score the splits" >> beam.ParDo(ScoreSplits(self.task, self.overlaps))
            | "Count the splits" >> beam.ParDo(CountReceipts())
            | "Gather" >> beam.WithKeys(0)
            | "Gather all receipts" >> beam.GroupByKey()
            | "Publish" >> beam.MapTuple(Publish(self.task.run))
        )


@dataclass(frozen=True)
class Publish:
    """Publishes a run when all its receipts are in; repeatable."""

    run: Run

    def __call__(self, _: int, receipts: Iterable[Receipt]) -> str:
        """Return the run's report as JSON."""
        run = self.run
        objects.configure(run.stores)
        try:
            return protocol.publish(run, receipts).to_json()
        except JobError as e:
            staging.write_failure(run.output, run.run_id, "", e)
            raise
