"""``score``: from a validated spec to a published night, on the launching machine.

``job.launch.preparation`` prepares the run, ``job.launch.submission`` runs the pipeline. If the run is
published already, neither Keras nor Beam is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from job import environment, storage
from job.commit import output
from job.engines import choice
from job.engines.engine import Fit
from job.errors import JobError, StateUnknownError
from job.launch import preflight, preparation, submission
from job.launch.preparation import Claim, Prepared
from job.launch.preparation import Outcome as Outcome
from job.spec import ScoringSpec
from job.storage import objects
from job.terminal import progress

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from job.pipeline import ScorePlan


def score(
    spec: ScoringSpec,
    beam_args: Sequence[str],
    *,
    announce: Callable[[str], None],
    started_unix_s: float | None = None,
) -> Outcome:
    """Score a night and publish it.

    Args:
        spec: what to score with what, and where to.
        beam_args: flags for Beam, untouched.
        announce: told, in one line each, what a person may want to know while waiting.
        started_unix_s: when the night's work began; if left out, when this process began.

    Raises:
        JobError: with the exit code that fits.
    """
    objects.configure(spec.stores)
    # While a bucket is asked for this and that.
    transform = storage.ahead(spec.output, _load_transform)
    began_s = started_unix_s or environment.process_start_unix_s()
    with preflight.shared(spec) as key:
        fit = functools.cache(lambda: choice.engine(choice.beam_options(beam_args)).fit(key))
        resolve = preparation.resolved
        with preparation.claimed(spec, beam_args, announce, transform, resolve, fit, began_s) as claim:
            return claim if isinstance(claim, Outcome) else _run(claim, beam_args, fit, announce, transform)


def _run(
    claim: Claim,
    beam_args: Sequence[str],
    fit: Callable[[], Fit],
    announce: Callable[[str], None],
    transform: Callable[[], type[ScorePlan]],
) -> Outcome:
    footers = preparation.read_footers(claim, beam_args, transform)
    options = choice.beam_options(beam_args)
    choice.engine(options).check_visible([shard.path for shard in claim.shards])
    fitted = fit()
    return finish(preparation.prepared(claim, footers, fitted, announce), fitted, options, announce)


def finish(ready: Prepared, fit: Fit, options: PipelineOptions, announce: Callable[[str], None]) -> Outcome:
    """Score and publish a run that is prepared and whose lease is held.

    Raises:
        JobError: with the exit code that fits.
    """
    run = ready.task.run
    polled = None if fit.here else ready.finished_rows
    with progress.shown(run.rows, ready.rows_of(ready.finished), finished_rows=polled):
        try:
            slices = min(fit.slices, len(ready.splits))
            scoring = _load_transform()(ready.plan, ready.task, slices, fit.overlaps)
            if (job := submission.run(options, scoring, run, announce)) is not None:
                return Outcome(None, already_published=False, job=job)
        except JobError as e:
            # The engine may have lost what it had done; the output says whether the night is there.
            if not output.is_published(run.output, run.run_id):
                raise
            announce(f"published, and then the engine failed: {e}")
    report = output.report_of(run.output, run.run_id)
    if report is None:
        raise StateUnknownError(
            f"{run.output}: the engine ended, and run {run.run_id[:12]} is not published; run again to resume"
        )
    return Outcome(report, already_published=False)


def _load_transform() -> type[ScorePlan]:
    # Not kept quiet, as other things are: what is announced meanwhile must be seen.
    from job.pipeline import ScorePlan

    return ScorePlan
