"""What is done before the pipeline starts: shards, model, run id, lease, plan.

First the shards are listed, the model is digested, and the run gets its id. If that run is published already,
this is the end, and neither Keras nor Beam has been imported. Else the lease is taken, the model is loaded,
every footer is read and bound, and the plan is written. A model of a builder is loaded before the lease is
taken, because the files that the builder reads are part of the run's id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from job import environment, storage
from job.commit import baseline, cleaning, output, staging
from job.commit.handover import Job
from job.engines import choice
from job.engines.engine import Fit
from job.errors import OutputConflictError, StateUnknownError, StorageError, of_place
from job.gates import gates
from job.launch import identity, preflight, submission
from job.model import artifact, challenger_spec, provenance
from job.model.signature import feeds_text
from job.report import notices
from job.report.run_report import RunReport
from job.shards import inputs, planner
from job.spec import ModelReference, Run, ScoringSpec, Shard, Split

if TYPE_CHECKING:
    from job.binding.binding import Binding
    from job.model.loading import LoadedModel
    from job.scoring.challenger import Challenger
    from job.scoring.task import ScoringTask

# How lines begin that tell which columns feed the model, and its challenger.
BOUND: Final = ("model inputs", "challenger inputs")


@dataclass(frozen=True)
class Outcome:
    """What came of a night.

    ``already_published`` is true if it was published before, and nothing was scored. ``kept`` is true if the
    output holds another run, which ``--if_exists=keep`` leaves there. ``job`` is set if the job was submitted
    and not waited for; then there is no report yet.
    """

    published: RunReport | None
    already_published: bool
    job: Job | None = None
    kept: bool = False

    @property
    def report(self) -> RunReport:
        """The report of the published night.

        Raises:
            StateUnknownError: the job was not waited for.
        """
        if self.published is None:
            raise StateUnknownError(f"{self.job} was not waited for: there is no report yet")
        return self.published


@dataclass(frozen=True)
class Claim:
    """A run that has its id and its output's ``lease``, but no plan yet.

    ``held`` is the manifest of the night that the output holds, or ``None``.
    """

    spec: ScoringSpec
    shards: list[Shard]
    models: identity.Models
    run_id: str
    lease: str
    started_unix_s: float
    held: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that an engine can score.

    ``task`` is what workers get, ``plan`` the path of the written plan, ``finished`` the names of splits that
    have their receipt.
    """

    task: ScoringTask
    splits: tuple[Split, ...]
    plan: str
    finished: set[str]

    def rows_of(self, names: set[str]) -> int:
        """Return how many rows the splits with these names have together."""
        return sum(split.rows for split in self.splits if split.name in names)

    def finished_rows(self) -> int:
        """Return how many rows are in splits that have their receipt by now."""
        run = self.task.run
        return self.rows_of(staging.finished(run.output, run.run_id))


def resolved(spec: ScoringSpec) -> ModelReference:
    """Return the model of a spec that has absolute paths.

    Raises:
        ModelError: it is absent, or no model, or not trusted enough.
        UsageError: a flag does not go with it.
    """
    return artifact.resolve(
        spec.model,
        spec.weights,
        trusted=spec.trust_model,
        sha256=spec.model_sha256,
        signature=spec.signature,
    )


def read(spec: ScoringSpec, models: identity.Models, fit: Fit) -> identity.Models:
    """Load the models, and return them with the files that their builders read.

    A model that this process has loaded before is loaded again if one of these files has changed.

    Raises:
        PreflightError: one cannot be loaded.
    """
    from job.model import loading

    # What they are to have read is found out now.
    models = identity.Models(
        replace(models.champion, reads=()), models.challenger and replace(models.challenger, reads=())
    )
    found = _loaded(spec, models, fit)
    if any(provenance.now(path for path, _ in one.reads) != one.reads for one in found):
        del found
        loading.forget()
        found = _loaded(spec, models, fit)
    champion = replace(models.champion, reads=found[0].reads)
    rival = models.challenger
    return identity.Models(champion, rival and replace(rival, reads=found[1].reads))


def _loaded(spec: ScoringSpec, models: identity.Models, fit: Fit) -> list[LoadedModel]:
    """Return the model, and the challenger if there is one."""

    def acquired(of: ScoringSpec, reference: ModelReference, beside: LoadedModel | None) -> LoadedModel:
        return preflight.acquired(of, reference, fit.threads, fit.machine, here=fit.here, beside=beside)

    champion = acquired(spec, models.champion, None)
    if models.challenger is None:
        return [champion]
    with challenger_spec.told(spec):
        return [champion, acquired(challenger_spec.as_the_model(spec), models.challenger, champion)]


@contextmanager
def claimed(
    spec: ScoringSpec,
    beam_args: Sequence[str],
    announce: Callable[[str], None],
    loaded: Callable[[], object],
    resolve: Callable[[ScoringSpec], ModelReference],
    fit: Callable[[], Fit],
    started_unix_s: float,
) -> Iterator[Claim | Outcome]:
    """Hold the lease of a night's output while the body runs, or yield the outcome if nothing is to be done.

    ``loaded`` waits until Beam is imported, if another thread is at it. ``resolve`` is :func:`resolved`, or
    remembers its result. ``fit`` asks the engine what suits it. ``started_unix_s`` is when the work began.

    Raises:
        JobError: with the exit code that fits.
    """
    asked, spec = spec, submission.checked(inputs.absolute(spec), beam_args)
    identity.announce_chosen(asked, spec, announce)
    shards, models, held = storage.together(
        spec.output,
        lambda: inputs.shards(spec, announce),
        lambda: identity.Models.of(spec, resolve),
        lambda: output.published(spec.output),
    )
    models = models.reading_as_before(held)
    run_id = identity.run_id(spec, shards, models)
    notices.note_run(spec.output, run_id)
    if (done := _done_before(spec, run_id, held)) is not None:
        yield done
        return
    if models.built:
        if held is not None and (changed := models.changed(held)):
            announce(f"{changed[0]}: it is not what the model's builder read for the night at {spec.output}")
        loaded()
        models = read(spec, models, fit())
        run_id = identity.run_id(spec, shards, models)
        notices.note_run(spec.output, run_id)
    gates.say_if_alone(spec, held, announce)
    with of_place("--output=", "choose another"):
        storage.make_folder(spec.output)
    ended = submission.has_ended(beam_args, announce, loaded)
    with output.lease(spec.output, announce, ended) as lease:
        seen = output.look(spec.output, run_id)
        done = _done_meanwhile(spec, run_id, lease, seen, announce)
        yield done or Claim(spec, shards, models, run_id, lease, started_unix_s, seen.published)


def _done_meanwhile(
    spec: ScoringSpec, run_id: str, lease: str, seen: output.Seen, announce: Callable[[str], None]
) -> Outcome | None:
    """Return the outcome if another process has published since the first look; else check the output.

    ``seen`` is what the output holds now that the lease is held.
    """
    if (done := _done_before(spec, run_id, seen.published)) is not None:
        return done
    if seen.published is not None and seen.published["run_id"] == run_id:
        # This very run, damaged and to be replaced: without the mark it counts as unfinished.
        output.check_lease(spec.output, lease)
        storage.remove(storage.join(spec.output, output.SUCCESS))
    elif output.mark_again(spec.output, run_id, seen, token=lease):
        return Outcome(output.read_report(spec.output), already_published=True)
    output.check_output(spec.output, run_id, replace=spec.if_exists == "replace", seen=seen)
    for other in seen.others:
        folder = storage.join(spec.output, staging.STAGING, other)
        announce(
            f"{folder}: left by another run; `{environment.program()} clean {spec.output}` or "
            f"--if_exists=replace removes it"
        )
    return None


def _done_before(spec: ScoringSpec, run_id: str, done: dict[str, Any] | None) -> Outcome | None:
    """Return the outcome if this run is published, or another one that ``--if_exists=keep`` keeps.

    Return ``None`` if neither is so, or if the night is damaged and is to be replaced.
    """
    if done is None or (done["run_id"] != run_id and spec.if_exists != "keep"):
        return None
    there = done["run_id"]
    if wrong := output.damaged(spec.output, done):
        # Another run may just be replacing it: then it is whole no more, as for any reader.
        if spec.if_exists == "replace" or not output.is_published(spec.output, there):
            return None
        which = "this run" if there == run_id else f"run {there[:12]}"
        # Running again would find the same, so it is no matter of chance.
        raise OutputConflictError(
            f"{spec.output}: {which} is published, but {len(wrong)} of its files are gone or changed, first "
            f"{wrong[0]}; find out why, or score it anew with --if_exists=replace"
        )
    if there == run_id:
        cleaning.remove_rest(spec.output, run_id)
    return Outcome(output.read_report(spec.output), already_published=True, kept=there != run_id)


def read_footers(
    claim: Claim, beam_args: Sequence[str], loaded: Callable[[], object]
) -> list[planner.Footer]:
    """Return the footer of every shard, in order. ``loaded`` is that of :func:`claimed`."""
    found: list[planner.Footer] = storage.together(
        claim.shards[0].path,
        loaded,
        lambda: _read_footers(claim.spec, claim.shards, claim.run_id, beam_args),
    )[1]
    return found


def prepared(
    claim: Claim, footers: list[planner.Footer], fit: Fit, announce: Callable[[str], None]
) -> Prepared:
    """Load the model, check it against the shards, and write the plan.

    Raises:
        JobError: with the exit code that fits.
    """
    folder, run_id = claim.spec.output, claim.run_id
    task, splits = task_of(claim, footers, fit, announce)
    _, plan, finished = storage.together(
        folder,
        lambda: staging.clear_failures(folder, run_id),
        lambda: staging.write_plan(folder, run_id, splits),
        lambda: staging.finished(folder, run_id),
    )
    if finished:
        announce(f"resuming run {run_id[:12]}: {len(finished)} of {len(splits)} splits have their receipt")
    return Prepared(task, splits, plan, finished)


def _read_footers(
    spec: ScoringSpec, shards: list[Shard], run_id: str, beam_args: Sequence[str]
) -> list[planner.Footer]:
    if len(shards) < inputs.ON_WORKERS:
        return inputs.read_footers(shards)
    from job.launch import footers

    # Of its own: portable runners take their name out of those that they are given.
    options = choice.beam_options(beam_args)
    engine = choice.engine(options)
    if not engine.reads_footers():
        return inputs.read_footers(shards)
    staging.clear_failures(spec.output, run_id)
    with submission.workers_errors(engine, spec.output, run_id):
        return footers.read_on_workers(shards, spec.output, run_id, options, spec.stores)


def task_of(
    claim: Claim, footers: list[planner.Footer], fit: Fit, announce: Callable[[str], None]
) -> tuple[ScoringTask, tuple[Split, ...]]:
    """Do what :func:`prepared` does, but write nothing; return the workers' task and the splits."""
    from job.scoring.rejects import RowPolicy
    from job.scoring.task import ScoringTask

    spec, shards, models = claim.spec, claim.shards, claim.models
    ready = preflight.check(spec, shards, footers, models.champion, fit.threads, fit.machine, here=fit.here)
    announce(f"{BOUND[0]}: {feeds_text(ready.binding.feeds, ready.binding.by)}")
    rival = preflight.check_challenger(spec, shards, footers, models.challenger, fit, ready, announce)
    if rival is not None:
        announce(f"{BOUND[1]}: {feeds_text(rival.binding.feeds, rival.binding.by)}")
    _check_as_before(claim, ready.binding, rival)
    splits = planner.plan(shards, [footer.group_rows for footer in footers], spec.split_rows, ready.refused)
    run = _run_of(claim, splits, ready, rival)
    preflight.check_refused(run, splits, ready.told, announce)
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
        golden=ready.golden,
        challenger=rival,
        key_types=ready.key_types,
    ), splits


def _check_as_before(claim: Claim, binding: Binding, rival: Challenger | None) -> None:
    """Compare columns that feed the models by position with those of the last published night.

    Raises:
        GateError: they are others, or in another order.
        StorageError: that night cannot be read.
    """
    spec = claim.spec
    if "position" not in (binding.by, rival and rival.binding.by):
        return
    try:
        folder, before = baseline.last_good(spec.output, baseline.baselines(spec), claim.held)
    except StorageError as e:
        raise type(e)(
            f"{e}; columns feed the model by position, which is compared with the last published night: "
            f"--features=… says which they are and needs no comparison"
        ) from e
    before, where = before or claim.held, folder or spec.output
    preflight.check_same(spec, binding, before, where)
    if rival is not None:
        with challenger_spec.told(spec):
            preflight.check_same(spec, rival.binding, (before or {}).get("challenger"), where)


def _run_of(claim: Claim, splits: Sequence[Split], ready: preflight.Ready, rival: Challenger | None) -> Run:
    spec = claim.spec
    return Run(
        run_id=claim.run_id,
        output=spec.output,
        model=claim.models.champion,
        signature=ready.signature,
        shards=len(claim.shards),
        splits=len(splits),
        rows=sum(split.rows for split in splits),
        max_rejected=spec.max_rejected,
        replace=spec.if_exists == "replace",
        started_unix_s=claim.started_unix_s,
        versions=environment.versions(),
        scoring=preflight.scoring_text(spec, ready.binding, [field.name for field in ready.predictions]),
        lease=claim.lease,
        handed=not spec.wait,
        stores=spec.stores,
        ds=spec.ds,
        gates=gates.of(spec, ready.predictions, baseline.baselines(spec)),
        challenger=None if rival is None else rival.told,
    )
