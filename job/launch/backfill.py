"""``job backfill``: many nights by one command, in one process and with one load of the model.

Nights go through the engine in groups, one pipeline for each group, and are published in order of their
dates. Each night has its own lease, staging and ``_SUCCESS``, as if it had been scored alone. A night that is
published already is skipped, a night that fails does not stop the others, and the same command resumes a
backfill that was killed.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from job import storage
from job.commit import protocol, staging
from job.engines import choice
from job.engines.engine import Fit
from job.errors import EngineError, JobError, UsageError, one_line, told
from job.launch import preflight, preparation, submission
from job.launch import score as launch_score
from job.launch.preparation import Outcome, Prepared
from job.model import challenger_spec, versions
from job.report import notices
from job.shards import dates
from job.spec import ModelReference, ScoringSpec
from job.storage import objects
from job.terminal import console, progress

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


# A pipeline takes 0.3 s to start on this machine, a lease in a bucket a thread: so many nights at a time.
AUTO_NIGHTS: Final = 128
# What is published by this process, which reads the receipts: a larger night has a pipeline of its own.
_MOST_SPLITS: Final = 2000


def check(template: ScoringSpec, days: Iterable[datetime.date]) -> None:
    """Check flags that make no sense for several nights.

    Raises:
        UsageError: two nights would share their input or their output, or ``--no_wait`` is given.
    """
    if template.ds:
        raise UsageError(
            f"--ds={template.ds}: backfill scores the nights from --start to --end; leave it out"
        )
    undated = [one for one in template.inputs if not dates.has_date(one)]
    if len(undated) == len(template.inputs):
        raise UsageError(f"--input={undated[0]}: each night needs rows of its own; put {{ds}} into it")
    if not dates.has_date(template.output_template):
        raise UsageError(f"--output={template.output}: each night needs one of its own; put {{ds}} into it")
    outputs: dict[str, datetime.date] = {}
    for day in days:
        folder = dates.expand(template.output_template, day)
        if (other := outputs.setdefault(folder, day)) != day:
            raise UsageError(
                f"--output={template.output}: it is {folder} for {other} and for {day}; each night needs "
                f"one of its own"
            )
    if not template.wait:
        raise UsageError("--no_wait: backfill publishes the nights in their order; leave it out")


def score(
    template: ScoringSpec,
    beam_args: Sequence[str],
    days: Iterable[datetime.date],
    *,
    nights_at_once: int,
    announce: Callable[[str], None],
) -> Iterator[Ending]:
    """Score nights and publish each; yield how each one ended, in order of their dates.

    At most ``nights_at_once`` go through the engine in one pipeline.

    Raises:
        EngineError: the engine cannot be reached.
        UsageError: a flag is wrong for every night.
    """
    objects.configure(template.stores)
    # What is not there by now comes no more.
    template = replace(template, wait_for_input_s=0.0)
    template = replace(template, model=_chosen(template.model))
    if template.challenger is not None:
        with challenger_spec.told(template):
            template = replace(template, challenger=_chosen(template.challenger))
    left = deque(days)
    # One thread, so that nights are published in their order, each beside the one before it.
    with preflight.shared(template) as key, ThreadPoolExecutor(1, "publish") as publisher:
        nights = _Nights(template, tuple(beam_args), key, announce)
        publishing: Future[list[Ending]] | None = None
        while left:
            with ExitStack() as leases:
                group = _Group(nights)
                try:
                    while left and len(group.ready) < nights_at_once and group.splits < _MOST_SPLITS:
                        group.add(left.popleft(), leases)
                    together = group.scored_together()
                except (Exception, KeyboardInterrupt):
                    # This group cannot be scored: the one before it was.
                    yield from publishing.result() if publishing else ()
                    raise
                yield from publishing.result() if publishing else ()
                publishing = None
                if together:
                    # While the next group is prepared and scored.
                    publishing = publisher.submit(group.published, leases.pop_all())
                else:
                    yield from group.endings(together=False)
        if publishing is not None:
            yield from publishing.result()


def _chosen(model: str) -> str:
    """Return the model to use for all nights. A glob or an alias is looked up once, unless it has a date."""
    if versions.stands_for_another(model) and not dates.has_date(model):
        return versions.chosen(storage.absolute(model))
    return model


@dataclass(frozen=True, eq=False)
class _Nights:
    """What the nights have in common. ``key`` is that of ``preflight.shared``."""

    template: ScoringSpec
    beam_args: tuple[str, ...]
    key: str
    announce: Callable[[str], None]
    references: dict[tuple[str, str | None, str | None, str], ModelReference] = field(default_factory=dict)
    _bound: dict[str, str] = field(default_factory=dict)

    def say(self, ds: str, line: str) -> None:
        """Announce a line about a night. Which columns feed a model is announced only when it changes."""
        what, _, told = line.partition(": ")
        if what in preparation.BOUND:
            if self._bound.get(what) == told:
                return
            self._bound[what] = told
        self.announce(f"{ds}: {line}")

    def reference(self, spec: ScoringSpec) -> ModelReference:
        """Return a night's model. Nights with the same model share one look at it."""
        asked = spec.model, spec.weights, spec.model_sha256, spec.signature
        if asked not in self.references:
            self.references[asked] = preparation.resolved(spec)
        return self.references[asked]


class _Group:
    """Nights that go through the engine together. ``ready`` are those with splits to score, by date."""

    def __init__(self, nights: _Nights) -> None:
        self._nights = nights
        self._ended: dict[str, Ending] = {}
        self._outputs: dict[str, str] = {}
        self._options: PipelineOptions | None = None
        self._fit: Fit | None = None
        self.ready: dict[str, Prepared] = {}

    @property
    def splits(self) -> int:
        """Return how many splits there are to score."""
        return sum(len(ready.splits) - len(ready.finished) for ready in self.ready.values())

    def add(self, day: datetime.date, leases: ExitStack) -> None:
        """Prepare a night, or note how it ended. Its lease is handed to ``leases``."""
        spec = dates.of_night(self._nights.template, day)
        self._outputs[spec.ds] = storage.absolute(spec.output)

        def prepare() -> Outcome | None:
            with ExitStack() as own:
                claim = own.enter_context(
                    preparation.claimed(
                        spec,
                        self._nights.beam_args,
                        self._told(spec.ds),
                        _loaded,
                        self._nights.reference,
                        lambda: self._engine()[1],
                        time.time(),
                    )
                )
                if isinstance(claim, Outcome):
                    return claim
                footers = preparation.read_footers(claim, self._nights.beam_args, _loaded)
                fit = self._engine()[1]
                self.ready[spec.ds] = preparation.prepared(claim, footers, fit, self._told(spec.ds))
                leases.enter_context(own.pop_all())
                return None

        self._end(spec.ds, prepare)

    def published(self, leases: ExitStack) -> list[Ending]:
        """Publish the nights that were scored together, give up their leases, and return how each ended."""
        with leases:
            return list(self.endings(together=True))

    def endings(self, *, together: bool) -> Iterator[Ending]:
        """Yield how each night ended, in the order in which they were added.

        Nights that were scored ``together`` are only published here; else each is scored by itself first.
        """
        for ds in self._outputs:
            if (ready := self.ready.get(ds)) is not None:
                self._end(
                    ds,
                    functools.partial(_published, ready)
                    if together
                    else functools.partial(self._alone, ds, ready),
                )
            yield self._ended[ds]

    def scored_together(self) -> bool:
        """Score all nights that are ready in one pipeline. Return whether that succeeded."""
        if len(self.ready) < 2:
            return False
        from job.scoring.nights import ScoreNights, alike

        chosen, fit = self._engine()
        ready = list(self.ready.values())
        scoring = ScoreNights(
            tuple(one.plan for one in ready), alike([one.task for one in ready]), fit.slices, fit.overlaps
        )

        def finished_rows() -> int:
            return sum(one.finished_rows() for one in ready)

        rows, reused = (
            sum(one.task.run.rows for one in ready),
            sum(one.rows_of(one.finished) for one in ready),
        )
        try:
            with progress.shown(rows, reused, finished_rows=None if fit.here else finished_rows):
                submission.run(chosen, scoring, ready[0].task.run, self._nights.announce)
        except Exception as e:  # noqa: BLE001 - whatever it was, it may be of one night only
            self._nights.announce(f"{told(e)}; each of {len(ready)} nights is tried by itself")
            return False
        finally:
            self._options = None
        return True

    def _alone(self, ds: str, ready: Prepared) -> Outcome:
        _raise_what_is_left(ready)
        chosen, fit = self._engine()
        self._options = None
        return launch_score.finish(ready, fit, chosen, self._told(ds))

    def _engine(self) -> tuple[PipelineOptions, Fit]:
        """Return unused pipeline options, and what suits the engine.

        Portable runners take the runner's name out of the options, so they serve one pipeline only.
        """
        if self._options is None:
            self._options = choice.beam_options(self._nights.beam_args)
        if self._fit is None:
            self._fit = choice.engine(self._options).fit(self._nights.key)
        return self._options, self._fit

    def _end(self, ds: str, step: Callable[[], Outcome | None]) -> None:
        """Run one step of a night, and note its outcome or its error."""
        output = self._outputs[ds]
        try:
            outcome = step()
        except EngineError:
            # It will not be there for the next night either.
            raise
        except JobError as e:
            self._ended[ds] = Ending(ds, output, error=e)
        except Exception as e:  # noqa: BLE001 - the night's, and not the others'
            self._ended[ds] = Ending(ds, output, error=JobError(f"unexpected {one_line(e)}"))
        else:
            if outcome is not None:
                self._ended[ds] = Ending(ds, output, outcome)

    def _told(self, ds: str) -> Callable[[str], None]:
        return functools.partial(self._nights.say, ds)


def _published(ready: Prepared) -> Outcome:
    _raise_what_is_left(ready)
    return Outcome(protocol.publish(ready.task.run, ()), already_published=False)


def _raise_what_is_left(ready: Prepared) -> None:
    run = ready.task.run
    if (left := staging.failure(run.output, run.run_id)) is not None:
        raise left


def _loaded() -> object:
    # Not kept quiet: what is announced meanwhile must be seen.
    from job import pipeline
    from job.scoring import nights

    return nights, pipeline


# How nights ended, and what is told of them together.

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Ending:
    """How one night ended: with an outcome, or with an error."""

    ds: str
    output: str
    outcome: Outcome | None = None
    error: JobError | None = None

    @property
    def exit_code(self) -> int:
        """Return the exit code that ``score`` would have ended with."""
        return self.error.exit_code if self.error else 0

    @property
    def told(self) -> str:
        """Return how it ended in a word or two, for the table."""
        if self.outcome is None:
            return "failed"
        if self.outcome.kept:
            return "kept, of another run"
        return "already published" if self.outcome.already_published else "published"

    def noted(self) -> Ending:
        """Add it to the JSON line and the webhook's message, see ``job.report.notices``."""
        report = None if self.outcome is None else self.outcome.published
        done_before = self.outcome is not None and self.outcome.already_published
        notices.add(self.ds, self.output, report, self.error, already_published=done_before)
        return self


def exit_code(endings: Sequence[Ending]) -> int:
    """Return 0 if no night failed, the exit code of those that failed if they share one, and else 1."""
    codes = {ending.exit_code for ending in endings} - {0}
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def table(endings: Sequence[Ending]) -> Table:
    """Return a line for each night, and how many ended how."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, show_footer=True)
    counts = Counter(ending.told for ending in endings)
    total = ", ".join(
        f"{number:,} {told}" for told, number in sorted(counts.items(), key=lambda one: -one[1])
    )
    published = [ending.outcome.report for ending in endings if ending.outcome is not None]
    rows, rejected = sum(one.rows_read for one in published), sum(one.rows_rejected for one in published)
    shown.add_column("night", footer=f"{len(endings):,} nights", no_wrap=True)
    shown.add_column("rows", footer=f"{rows:,}", justify="right", no_wrap=True)
    shown.add_column("rejected", footer=f"{rejected:,}", justify="right", no_wrap=True)
    shown.add_column("", footer=total, overflow="fold")
    for ending in endings:
        if ending.outcome is None:
            shown.add_row(ending.ds, "", "", console.cell(f"exit {ending.exit_code}: {ending.error}"))
        else:
            report = ending.outcome.report
            shown.add_row(ending.ds, f"{report.rows_read:,}", f"{report.rows_rejected:,}", ending.told)
    return shown
