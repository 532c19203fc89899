"""``job doctor``: checks the engine, its workers and the paths of a night before the night is submitted.

The calls behind the checks run at the same time, each in its own thread with a time limit; the checks come in
a fixed order. A server may accept a connection and never answer, or a client may retry without end. The
doctor then stops waiting and leaves the thread behind, see ``anything_overdue``.

The workers are asked last, by a small job (``job.doctor.probe``), and only if the engine answers. Files are
written only below ``OUTPUT/_staging/doctor-…``, which is removed at the end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from job import secrets, storage
from job.doctor import engine, workers
from job.doctor import paths as doctor_paths
from job.engines import choice
from job.engines.engine import Check
from job.errors import EngineError, JobError, ModelError, StorageError, UsageError, one_line
from job.launch import submission
from job.shards import inputs
from job.spec import ScoringSpec
from job.storage import objects
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
# A listing of ten thousand shards takes seconds, a model of gigabytes in a bucket longer.
_PLACES_S: Final = 15.0
_HUNG_S: Final = 1.0
_MODEL_S: Final = 60.0
_ENGINE_S: Final = 30.0
# If another call did not come back.
_AFTER_ANOTHER_S: Final = 15.0
# Stands for a model that cannot be used, so that the other paths can be checked.
_NO_MODEL: Final = "no_model:here"
_MARKS: Final = {True: "ok", False: "not ok", None: "not seen"}
# Threads that were left behind.
_overdue: Final[list[threading.Thread]] = []


def lines(check: Check) -> Iterator[str]:
    """Yield the lines that are printed of a check, without secrets."""
    yield secrets.scrub(f"{_MARKS[check.ok]:<8}  {check.name}: {check.told}")
    if check.fix:
        yield secrets.scrub(f"{'':<8}  → {check.fix}")


def is_well(check: Check) -> bool:
    """Say whether nothing is known to be wrong; a check that could not be made counts as well."""
    return check.ok is not False


def exit_if_overdue(code: int) -> None:
    """End this process at once if a call has not come back: Python would wait for its thread at exit."""
    if anything_overdue():
        sys.stdout.flush()
        os._exit(code)


def examine(
    spec: ScoringSpec, beam_args: Sequence[str], *, limit_s: float = workers.LIMIT_S
) -> Iterator[Check]:
    """Yield all checks of a night, in order.

    Args:
        spec: the night.
        beam_args: flags for Beam, unchanged.
        limit_s: how long the workers may take to answer, in seconds.

    Raises:
        UsageError: the scheme of a path is not supported.
    """
    objects.configure(spec.stores)
    try:
        night = _Night(spec)
    except StorageError as e:
        # From the client of a store. Without it no path can be checked.
        yield Check.of_error("credentials", e)
        return
    answers = doctor_paths.AnswerFolder(night.spec)
    try:
        writing = Call("output", lambda: answers.write(night.spec), limit_s=_PLACES_S)
        yield _this_machine(night.schemes, beam_args)
        options, checks = _engine(beam_args)
        # The flags that `score` would refuse at its start.
        flags = Call("flags", partial(submission.checked, night.spec, beam_args), limit_s=_ENGINE_S)
        checks.append(flags.check(lambda _: Check("flags", True, "the engine and this job take them")))
        yield from checks
        yield from night.checks(options)
        yield _unseen("output", options, [night.spec.output]) or writing.check(
            lambda held: doctor_paths.output_check(night.spec, held)
        )
        engine_answers = all(map(is_well, checks)) and not anything_overdue()
        yield from _workers(night, beam_args, options, answers.folder, limit_s if engine_answers else 0.0)
    finally:
        Call("removal", answers.remove, limit_s=_HUNG_S if anything_overdue() else _PLACES_S).wait()


class _Night:
    """The calls that check a night's paths; all start at once."""

    def __init__(self, spec: ScoringSpec) -> None:
        wrong_model = None
        try:
            spec = inputs.absolute(spec)
        except ModelError as e:
            wrong_model = Check.of_error("model", e)
            spec = inputs.absolute(replace(spec, model=_NO_MODEL, challenger=None))
        self.spec, self._wrong_model = spec, wrong_model
        paths = (*(one.removeprefix("@") for one in spec.inputs), spec.model, spec.weights or "", spec.output)
        self.schemes = [one for one in objects.SCHEMES if any(path.startswith(f"{one}://") for path in paths)]
        self.listing = Call("input", lambda: doctor_paths.shards(spec), limit_s=_PLACES_S)
        self.model = Call(
            "model", lambda: None if wrong_model else doctor_paths.model(spec), limit_s=_MODEL_S
        )

    def checks(self, options: PipelineOptions | None) -> Iterator[Check]:
        """Yield the checks of the paths, and those that depend on them."""
        for scheme in self.schemes:
            name = doctor_paths.credentials_name(scheme)
            call = Call(name, partial(doctor_paths.credentials, scheme), limit_s=_ENGINE_S)
            yield call.check(partial(doctor_paths.credentials_check, scheme))
        listed = self.listing.check(doctor_paths.shards_check)
        yield _unseen("input", options, [shard.path for shard in self.listing.value or ()]) or listed
        yield (
            self._wrong_model
            or _unseen("model", options, inputs.model_files(self.spec))
            or self.model.check(lambda found: doctor_paths.model_check(_required(found)))
        )
        local = not storage.is_remote(self.spec.output) and not _unseen("", options, [self.spec.output])
        if self.listing.value and local:
            shards = self.listing.value
            yield Call("disk", lambda: doctor_paths.disk(self.spec, shards), limit_s=_PLACES_S).check(
                _as_it_is
            )
        for flag, path in engine.temporary_places(options) if options else ():
            call = Call(flag, partial(doctor_paths.temporary, path), limit_s=_ENGINE_S)
            yield call.check(partial(Check, flag, True))


def _unseen(name: str, options: PipelineOptions | None, paths: Sequence[str]) -> Check | None:
    """Return a failed check if the engine's workers cannot see ``paths`` of this machine, else ``None``."""
    try:
        if options is not None:
            choice.engine(options).check_visible(paths)
    except UsageError as e:
        return Check.of_error(name, e)
    return None


def _this_machine(schemes: Sequence[str], beam_args: Sequence[str]) -> Check:
    extras = [doctor_paths.EXTRAS[scheme] for scheme in schemes]
    extras += choice.extras(beam_args)
    call = Call("this machine", partial(engine.this_machine, extras), limit_s=_ENGINE_S)
    return call.check(_as_it_is)


def _engine(beam_args: Sequence[str]) -> tuple[PipelineOptions | None, list[Check]]:
    """Return Beam's options and the engine's checks; no options for the default engine or an unknown one."""
    if not beam_args:
        return None, [engine.runner(None)]
    try:
        with library_output.imports():
            options = choice.beam_options(beam_args)
    except EngineError as e:
        return None, [Check.of_error("runner", e)]
    calls = [Call(name, act, limit_s=_ENGINE_S) for name, act in engine.calls(options).items()]
    found = [engine.runner(options)]
    for call in calls:
        several = call.wait()
        found += several if isinstance(several, list) else [several]
    return options, found


def _workers(
    night: _Night, beam_args: Sequence[str], options: PipelineOptions | None, folder: str, limit_s: float
) -> Iterator[Check]:
    if options is not None and (why := choice.engine(options).unasked):
        yield Check("workers", None, why)
        return
    if not limit_s:
        yield Check("workers", None, "they are asked when the lines above do not stand in the way")
        return
    shards, model = night.listing.value, night.model.value
    about = workers.About(
        model=night.spec.model if model else "",
        shard=shards[0].path if shards else "",
        gpu=(model.reference.backend if model else "tensorflow") if night.spec.device == "gpu" else "",
    )

    def ask() -> workers.Outcome:
        return workers.ask(night.spec, beam_args, about, folder, limit_s=limit_s)

    asked = Call("workers", ask, limit_s=limit_s + 2 * workers.MORE_S)
    found: list[Check] = []

    def told_all(outcome: workers.Outcome) -> Check:
        digest, size = (model.reference.digest, model.size_bytes) if model else ("", 0)
        first, *rest = workers.checks(outcome, engine.log_of(options), digest, size, limit_s)
        found.extend(rest)
        return first

    yield asked.check(told_all)
    yield from found


def _as_it_is(check: Check) -> Check:
    return check


def _required(found: doctor_paths.Model | None) -> doctor_paths.Model:
    if found is None:
        raise ModelError("there is no model; see --model")
    return found


class Call(Generic[T]):
    """A call of ``act``, started at once in a thread.

    After :meth:`wait`, ``came`` says whether it returned in time; then ``value`` is what it returned.
    """

    def __init__(self, name: str, act: Callable[[], T], *, limit_s: float) -> None:
        self.name = name
        self.value: T | None = None
        self.came = False
        self._error: BaseException | None = None
        self._limit_s, self._began_s = limit_s, time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True, name=f"check of {name}")
        self._thread.start()

    def _run(self, act: Callable[[], T]) -> None:
        try:
            self.value = act()
            self.came = True
        except BaseException as e:  # noqa: BLE001 - wait() returns it as a check
            self._error = e
            # Shown with --debug.
            _LOG.info("%s\n%s", self.name, "".join(traceback.format_exception(e)))

    def wait(self) -> T | Check:
        """Return the value, or a failed check if there is none."""
        # If a call did not come back, others may be waiting for the same server: wait less for them.
        limit_s = min(self._limit_s, _AFTER_ANOTHER_S) if anything_overdue() else self._limit_s
        self._thread.join(max(0.0, self._began_s + limit_s - time.monotonic()))
        if self._thread.is_alive():
            _overdue.append(self._thread)
            told = f"no answer within {limit_s:.0f} s"
            return Check(self.name, False, told, "see whether it is up, and reached from here")
        if self.came:
            return self.value  # type: ignore[return-value]
        if isinstance(self._error, JobError):
            return Check.of_error(self.name, self._error)
        return Check(self.name, False, one_line(self._error or RuntimeError()), "see more with --debug")

    def check(self, told: Callable[[T], Check]) -> Check:
        """Return the check that ``told`` makes of the value, or a failed check if there is none."""
        found = self.wait()
        return found if isinstance(found, Check) and not self.came else told(self.value)  # type: ignore[arg-type]


def anything_overdue() -> bool:
    """Say whether a thread was left behind; Python would wait at exit for what it has started."""
    return any(thread.is_alive() for thread in _overdue)
