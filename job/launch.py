"""From a validated spec to a published night: what happens on the launching machine.

List the shards, digest the model, name the run. If that run is published already, stop there: neither
Keras nor Beam has been imported. Else load the model, read every footer, bind, plan, run the pipeline.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job import (
    artifact,
    awaiting,
    choosing,
    cleaning,
    commit,
    dataflow,
    engines,
    host,
    inputs,
    objects,
    output,
    planning,
    preflight,
    progress,
    staging,
    storage,
    waiting,
)
from job.errors import DataError, JobError, StateUnknownError, StorageError, UsageError
from job.handover import Job
from job.report import RunReport
from job.spec import ModelReference, Run, ScoringSpec, Shard, Split
from job.together import ahead, together

if TYPE_CHECKING:
    from job.pipeline import ScoreParquet
    from job.task import ScoringTask

_WRONG_PATH = (errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


@dataclass(frozen=True)
class Outcome:
    """What ``score`` ends with; ``already_published`` when the same run was there before.

    ``job`` is what was submitted and not waited for; then there is no report yet.
    """

    published: RunReport | None
    already_published: bool
    job: Job | None = None

    @property
    def report(self) -> RunReport:
        """The report of the night that is published."""
        if self.published is None:
            raise StateUnknownError(f"{self.job} was not waited for: there is no report yet")
        return self.published


def score(spec: ScoringSpec, beam_args: Sequence[str], *, announce: Callable[[str], None]) -> Outcome:
    """Score a night and publish it.

    Args:
        spec: what to score with what, and where to.
        beam_args: flags for Beam, untouched.
        announce: told, in one line each, what a person may want to know while waiting.

    Raises:
        JobError: with the exit code that fits.
    """
    objects.configure(spec.stores)
    named, spec = spec.model, waiting.checked(inputs.absolute(spec), beam_args)
    if choosing.stands_for_another(named):
        announce(f"--model={named}: {spec.model}")
    shards, reference, held = together(
        spec.output,
        lambda: awaiting.shards(spec, announce),
        lambda: artifact.resolve(
            spec.model, spec.weights, trusted=spec.trust_model, sha256=spec.model_sha256
        ),
        lambda: output.published(spec.output),
    )
    run_id = commit.run_id(shards, reference.identity, _options_that_shape_output(spec))
    if (done := _done_before(spec, run_id, held)) is not None:
        return done
    _make_output(spec.output)
    # While a bucket is asked for this and that.
    transform = ahead(spec.output, _load_transform)
    ended = waiting.has_ended(beam_args, announce, transform)
    with output.lease(spec.output, announce, ended) as lease, preflight.shared(spec) as key:
        # Once more: another run may have ended between the look above and the lease.
        seen = output.look(spec.output, run_id)
        if (done := _done_before(spec, run_id, seen.published)) is not None:
            return done
        if seen.published is not None and seen.published["run_id"] == run_id:
            # This very run, damaged and to be replaced: without the mark it counts as unfinished.
            storage.remove(storage.join(spec.output, output.SUCCESS))
        elif output.mark_again(spec.output, run_id, seen):
            return Outcome(output.read_report(spec.output), already_published=True)
        output.check_output(spec.output, run_id, replace=spec.if_exists == "replace", seen=seen)
        for other in seen.others:
            folder = storage.join(spec.output, staging.STAGING, other)
            announce(
                f"{folder}: left by another run; `job clean {spec.output}` or --if_exists=replace removes it"
            )
        return _run(spec, beam_args, shards, reference, run_id, lease, key, announce, transform)


def _done_before(spec: ScoringSpec, run_id: str, done: dict[str, Any] | None) -> Outcome | None:
    """Return the outcome of this run if it is published; ``None`` too if it is damaged and to be replaced."""
    if done is None or done["run_id"] != run_id:
        return None
    if wrong := output.damaged(spec.output, done):
        # Another run may just be replacing it: then it is whole no more, as for any reader.
        if spec.if_exists == "replace" or not output.is_published(spec.output, run_id):
            return None
        raise StateUnknownError(
            f"{spec.output}: this run is published, but {len(wrong)} of its files are gone or changed, first "
            f"{wrong[0]}; find out why, or score it anew with --if_exists=replace"
        )
    cleaning.remove_rest(spec.output, run_id)
    return Outcome(output.read_report(spec.output), already_published=True)


def _make_output(path: str) -> None:
    try:
        storage.make_folder(path)
    except StorageError as e:
        # Any other number tells of the disk, which the same command may find mended.
        if getattr(e.__cause__, "errno", None) not in _WRONG_PATH:
            raise
        raise UsageError(f"--output={e}; choose another") from e


def _run(
    spec: ScoringSpec,
    beam_args: Sequence[str],
    shards: list[Shard],
    reference: ModelReference,
    run_id: str,
    lease: str,
    key: str,
    announce: Callable[[str], None],
    loaded: Callable[[], type[ScoreParquet]],
) -> Outcome:
    transform, footers = together(
        shards[0].path, loaded, lambda: _read_footers(spec, shards, run_id, beam_args)
    )
    options = engines.beam_options(beam_args)
    engines.check_visible(options, [shard.path for shard in shards])
    fit = engines.fit(options, key)
    task, splits = _prepare(spec, shards, footers, reference, run_id, lease, fit, announce)
    _, plan, finished = together(
        spec.output,
        lambda: staging.clear_failures(spec.output, run_id),
        lambda: staging.write_plan(spec.output, run_id, splits),
        lambda: staging.finished(spec.output, run_id),
    )
    if finished:
        announce(f"resuming run {run_id[:12]}: {len(finished)} of {len(splits)} splits have their receipt")

    def rows_of(names: set[str]) -> int:
        return sum(split.rows for split in splits if split.name in names)

    def finished_rows() -> int:
        return rows_of(staging.finished(spec.output, run_id))

    polled = None if fit.here else finished_rows
    with progress.shown(task.run.rows, rows_of(finished), finished_rows=polled):
        try:
            scoring = transform(plan, task, min(fit.slices, len(splits)), fit.overlaps)
            if (job := waiting.run(options, scoring, task.run, announce)) is not None:
                return Outcome(None, already_published=False, job=job)
        except JobError as e:
            # The engine may have lost what it had done; the output says whether the night is there.
            if not output.is_published(spec.output, run_id):
                raise
            announce(f"published, and then the engine failed: {e}")
    report = output.report_of(spec.output, run_id)
    if report is None:
        raise StateUnknownError(
            f"{spec.output}: the engine ended, and run {run_id[:12]} is not published; run again to resume"
        )
    return Outcome(report, already_published=False)


def _load_transform() -> type[ScoreParquet]:
    # Not kept quiet, as other things are: what is announced meanwhile must be seen.
    from job.pipeline import ScoreParquet

    return ScoreParquet


def _read_footers(
    spec: ScoringSpec, shards: list[Shard], run_id: str, beam_args: Sequence[str]
) -> list[planning.Footer]:
    if len(shards) < inputs.ON_WORKERS:
        return inputs.read_footers(shards)
    from job import footers

    # Of its own: portable runners take their name out of those that they are given.
    options = engines.beam_options(beam_args)
    if engines.scores_here(options) or engines.name(options) == dataflow.NAME:
        # On Dataflow a job of its own would take minutes to start.
        return inputs.read_footers(shards)
    staging.clear_failures(spec.output, run_id)
    with waiting.workers_errors(options, spec.output, run_id):
        return footers.read_on_workers(shards, spec.output, run_id, options, spec.stores)


def _prepare(
    spec: ScoringSpec,
    shards: list[Shard],
    footers: list[planning.Footer],
    reference: ModelReference,
    run_id: str,
    lease: str,
    fit: engines.Fit,
    announce: Callable[[str], None],
) -> tuple[ScoringTask, tuple[Split, ...]]:
    from job.rejects import RowPolicy
    from job.task import ScoringTask

    ready = preflight.check(spec, shards, footers, reference, fit.threads, fit.machine, here=fit.here)
    splits = planning.plan(shards, [footer.group_rows for footer in footers], spec.split_rows, ready.refused)
    run = Run(
        run_id=run_id,
        output=spec.output,
        model=reference,
        signature=ready.signature,
        shards=len(shards),
        splits=len(splits),
        rows=sum(split.rows for split in splits),
        max_rejected=spec.max_rejected,
        replace=spec.if_exists == "replace",
        started_unix_s=host.process_start_unix_s(),
        versions=host.versions(),
        scoring=preflight.scoring_text(spec, ready.binding, [field.name for field in ready.predictions]),
        lease=lease,
        handed=not spec.wait,
        stores=spec.stores,
        ds=spec.ds,
    )
    _check_refused(run, splits, ready.told, announce)
    return ScoringTask(
        run=run,
        binding=ready.binding,
        keys=spec.keys,
        predictions=ready.predictions,
        policy=RowPolicy.of(spec, run.rows),
        batch_rows=spec.batch_size or 0,
        row_group_rows=spec.row_group_rows,
        compression=spec.compression,
        device=spec.device,
        threads=fit.threads,
        weights_digest=ready.weights_digest,
        on_bad_shard=spec.on_bad_shard,
        processes=fit.processes,
        machine=fit.machine,
    ), splits


def _check_refused(run: Run, splits: Sequence[Split], told: str, announce: Callable[[str], None]) -> None:
    refused = [split for split in splits if split.refused]
    rows = sum(split.rows for split in refused)
    share = run.share_rejected(rows, sum(not split.row_groups for split in refused))
    if share > run.max_rejected:
        raise DataError(
            f"bad shards hold {share:.2%} of the rows, more than --max_rejected={run.max_rejected}; nothing "
            f"was scored: {told}"
        )
    if told:
        announce(f"shards to be rejected: {told}")


def _options_that_shape_output(spec: ScoringSpec) -> dict[str, object]:
    return {
        name: getattr(spec, name)
        for name in (
            *("keys", "features", "casts", "prediction_columns", "batch_size", "split_rows"),
            *("compression", "row_group_rows", "device", "on_bad_row", "on_null"),
            *("on_nonfinite", "on_nonfinite_prediction", "on_bad_shard"),
        )
    }
