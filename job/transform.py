"""``ScoreParquet``: a night inside somebody else's pipeline.

::

    Name the night      → ScoringSpec                  with placeholders in its paths yet
    Prepare             ScoringSpec → PlannedNight     list, digest, bind, plan; the report if it is published
    Keep the plan       PlannedNight → PlannedNight    so that it is made once
    Name the slices     → int                          which splits of the plan
    Read the plan       int, PlannedNight → Split
    Spread the splits   Split → Split                  the only shuffle of splits
    Score the splits    Split, PlannedNight → Receipt
    Count the splits    Receipt → Receipt              for the engine's own metrics
    Publish             PlannedNight, receipts → dict  the report; always one element

In ``job.pipeline`` the launching machine prepares the night, and holds the output's lease until it is
published. Here nobody may ever run the pipeline, and no process lasts from its first step to its last. So
nothing is done before the pipeline runs, and the lease is held by a worker in two steps: while it prepares,
and while it publishes. In between another run may take the output; the one that publishes second is then
refused, as it would be on the command line.

The splits and the kept plan are shuffled; rows never are. The command's own pipeline is in ``job.pipeline``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.utils.windowed_value import WindowedValue

from job import api, pipeline
from job.commit import output
from job.engines import choice
from job.engines.engine import Engine, Fit
from job.errors import OutputConflictError, UsageError
from job.launch import preparation
from job.scoring.task import ScoringTask
from job.scoring.worker import CountReceipts, PlanSlice, ReadPlan, ScoreSplits
from job.shards import dates, inputs
from job.spec import Receipt, ScoringSpec, Split
from job.storage import objects

_PATIENCE_S: Final = 120.0
_LOOK_EVERY_S: Final = 1.0


class ScoreParquet(beam.PTransform):
    """Score a night and publish it: ``PBegin`` → ``PCollection[dict]`` of one element, its report.

    ::

        p | ScoreParquet(input="features", model="m.keras", output="predictions") | beam.Map(notify)

    The element has the keys of ``_report.json``. A night that is published already is not scored again, and
    gives its report. One that fails raises in ``pipeline.run()``; ``find_error`` finds the line that matters.
    A later pipeline with the same arguments goes on where it ended.
    """

    def __init__(self, **flags: Any) -> None:
        """Take the arguments of ``make_spec``. No file is looked at before the pipeline runs.

        ``{ds}`` in a path is the ``ds`` that is given, or yesterday on the day on which the pipeline runs.

        Raises:
            UsageError: as of ``make_spec``; or a flag asks for what only the command can do.
        """
        super().__init__()
        template = api.template(**flags)
        if not template.wait:
            raise UsageError("--no_wait: who runs the pipeline says whether to wait for it; leave it out")
        if template.model_sharing == "machine":
            raise UsageError(
                "--model_sharing=machine: nobody would end the model that your workers share; leave it out"
            )
        dates.of_night(template)
        self._template = inputs.anchored(template)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[dict[str, Any]]:
        """Wire the steps, fitted to the pipeline's engine, with its resource hints for ``device``.

        Raises:
            UsageError: the engine cannot do it, or its workers do not see the input or the output.
            EngineError: the engine is a cluster that must be asked for its size, and does not answer.
        """
        engine = _engine(begin.pipeline)
        if engine.recomputes:
            # A night would be prepared, scored and published several times at once.
            raise UsageError(
                f"ScoreParquet: {engine.name} runs a step anew for each other step that wants its outcome; "
                f'call score(spec, beam_args=["--runner={engine.name}"]) of this package instead'
            )
        shards = [path.removeprefix("@") for path in self._template.inputs]
        engine.check_visible([*shards, self._template.output])
        steps = _Steps(self._template, engine.fit())
        # On all of it, as ``job.launch.submission`` has it on the command's whole pipeline.
        steps.with_resource_hints(**engine.hints(self._template.device))
        # Beam lets the hints of an inner transform win, and what a person asks for is to win.
        steps.get_resource_hints().update(self.get_resource_hints())
        return begin | "Score a night" >> steps


class _Steps(beam.PTransform):
    """The steps, in a transform of their own: the engine, and so the hints, are known only in ``expand``."""

    def __init__(self, template: ScoringSpec, fit: Fit) -> None:
        super().__init__()
        self._template, self._fit = template, fit

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[dict[str, Any]]:
        """Wire the steps that the module's docstring draws."""
        fit = self._fit
        night = (
            begin
            | "Name the night" >> beam.Create([self._template], reshuffle=False)
            | "Prepare" >> beam.Map(prepare, fit)
            | "Keep the plan" >> beam.Reshuffle()
        )
        receipts = (
            begin
            | "Name the slices" >> beam.Create(range(fit.slices), reshuffle=False)
            | "Read the plan" >> beam.FlatMap(read_plan, AsSingleton(night), fit.slices)
            | "Spread the splits" >> beam.Reshuffle()
            | "Score the splits" >> beam.ParDo(ScoreSplitsOfNight(fit.overlaps), AsSingleton(night))
            | "Count the splits" >> beam.ParDo(CountReceipts())
        )
        return night | "Publish" >> beam.Map(publish, AsIter(receipts))


def _engine(built: beam.Pipeline) -> Engine:
    """Return the engine of a pipeline, which may be named in its options or be an object."""
    options = PipelineOptions.from_dictionary(built.options.get_all_options(drop_default=True))
    options.view_as(StandardOptions).runner = type(built.runner).__name__.removeprefix("Switching")
    return choice.engine(options)


@dataclass(frozen=True, eq=False)
class PlannedNight:
    """A night that is prepared: its ``task`` and its written ``plan``, or its ``report`` if it is published.

    ``report`` is JSON.
    """

    plan: str = ""
    task: ScoringTask | None = None
    report: str = ""


def prepare(template: ScoringSpec, fit: Fit) -> PlannedNight:
    """Prepare a night on a worker, and let its lease go again; repeatable.

    Raises:
        JobError: what ``score`` would raise before the first prediction.
    """
    spec = dates.of_night(template)
    objects.configure(spec.stores)
    with preparation.claimed(
        spec, (), api.log, _loaded, preparation.resolved, lambda: fit, time.time()
    ) as claim:
        if isinstance(claim, preparation.Outcome):
            return PlannedNight(report=claim.report.to_json())
        footers = preparation.read_footers(claim, (), _loaded)
        ready = preparation.prepared(claim, footers, fit, api.log)
    return PlannedNight(ready.plan, replace(ready.task, run=replace(ready.task.run, lease="")))


def _loaded() -> None:
    """Do nothing: this is a worker, so Beam has been imported."""


def read_plan(first: int, night: PlannedNight, slices: int) -> Iterator[Split]:
    """Yield every ``slices``-th split from the ``first`` on, none where the night is published."""
    if night.task is not None:
        yield from ReadPlan(night.task.run)(PlanSlice(night.plan, first, slices))


class ScoreSplitsOfNight(beam.DoFn):
    """``Split`` → ``Receipt``, as ``ScoreSplits``, of a night that is not known before the pipeline runs."""

    def __init__(self, overlaps: bool) -> None:
        self._overlaps = overlaps
        self._step: ScoreSplits | None = None

    def start_bundle(self) -> None:
        """Wait for what a bundle that failed has left behind."""
        if self._step is not None:
            self._step.start_bundle()

    def process(self, split: Split, night: PlannedNight) -> Iterator[Receipt]:
        """Score one split, or return the receipt that it has; see ``ScoreSplits``."""
        if self._step is None:
            if night.task is None:
                raise ValueError(f"{split.name} is a split of a night that is published")
            step = ScoreSplits(night.task, self._overlaps)
            step.setup()
            self._step = step
        return self._step.process(split)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Return the receipts that ``process`` has not returned."""
        return iter(()) if self._step is None else self._step.finish_bundle()


def publish(night: PlannedNight, receipts: Iterable[Receipt]) -> dict[str, Any]:
    """Publish a night whose receipts are all in, and return its report; repeatable.

    Raises:
        JobError: what ``score`` would raise when all is scored.
    """
    told = night.report
    if night.task is not None:
        run = night.task.run
        objects.configure(run.stores)
        with _lease(run.output) as lease:
            told = pipeline.Publish(replace(run, lease=lease))(0, receipts)
    report: dict[str, Any] = json.loads(told)
    return report


@contextmanager
def _lease(folder: str) -> Iterator[str]:
    """Hold an output's lease; wait for another that publishes there, which may be this very step.

    An engine that takes a worker for dead repeats what it was at, and the worker may be alive.

    Raises:
        OutputConflictError: somebody else has held it all the time.
    """
    give_up_s = time.monotonic() + _PATIENCE_S
    with ExitStack() as own:
        while True:
            try:
                lease = own.enter_context(output.lease(folder, api.log))
                break
            except OutputConflictError:
                if time.monotonic() > give_up_s:
                    raise
            time.sleep(_LOOK_EVERY_S)
        yield lease
