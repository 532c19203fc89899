"""A pipeline from its submission to its end: builds it, gives it the engine's resource hints, runs it.

With ``--wait``, the default, the job is part of the command. It works under the command's lease, and Ctrl-C
cancels it: a job that went on would cost money and work on an output that others may take. With ``--no_wait``
the command ends after submission. It hands the lease over to the job (see ``job.commit.handover``), which
publishes by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from job.commit import output, staging
from job.commit.handover import Ended, Job
from job.engines import choice, embedded
from job.engines.engine import Engine, no_wait
from job.errors import EngineError, JobError, in_text, one_line
from job.spec import Run, ScoringSpec
from job.terminal import library_output, signals

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from job.pipeline import ScorePlan
    from job.scoring.nights import ScoreNights

# Flink needs a few seconds to cancel; a job server of our own must not end before that.
_CANCELLED_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.5


def checked(spec: ScoringSpec, beam_args: Sequence[str]) -> ScoringSpec:
    """Check that the engine can do what a spec asks for, and return the spec adapted to it.

    Its paths are absolute.

    Raises:
        UsageError: the engine's flags and ours do not go together.
        EngineError: something that the engine needs is missing here.
    """
    if not beam_args:
        if not spec.wait:
            raise no_wait(embedded.NAME)
        return spec
    with library_output.imports():
        from apache_beam.options.pipeline_options import PipelineOptions
    return choice.engine(PipelineOptions(list(beam_args))).checked(spec)


def run(
    options: PipelineOptions, scoring: ScorePlan | ScoreNights, run: Run, announce: Callable[[str], None]
) -> Job | None:
    """Run a pipeline to its end and return ``None``; or submit it with ``--no_wait``, and return the job.

    ``run`` is the run that is scored, or the first one of several.

    Raises:
        JobError: a worker's error, or else the engine's.
    """
    import apache_beam as beam

    engine = choice.engine(options)
    engine.name_job(run)
    mark = staging.stop_mark(run.output, run.run_id) if engine.stops_by_mark else ""
    if mark:
        scoring.stop_by(mark)
    with workers_errors(engine, run.output, run.run_id), engine.ended_on_failure():
        pipeline = beam.Pipeline(runner=engine.runner(), options=options)
        # On all of it, or what differs in its hints would be a stage of its own, with a shuffle in between.
        scoring.with_resource_hints(**engine.hints(scoring.device))
        pipeline | "Score Parquet" >> scoring
        with _cancelled_by_ctrl_c() as submitted:
            # Where the pipeline is run by others, the call only submits it.
            with undisturbed(engine.submits or bool(engine.endpoint)):
                result = pipeline.run()
                job = engine.job(result, run.run_id)
                if job is not None:
                    submitted.append(partial(_cancel, result, job, announce))
                    announce(f"run {run.run_id[:12]} was submitted as {job}")
                elif mark:
                    submitted.append(partial(_stop, result, run, mark, announce))
            if job is not None and run.handed:
                output.hand_over(run.output, run.lease, job)
                return job
            try:
                state = result.wait_until_finish()
            except Exception as e:
                told = None if job is None else engine.failed(job, e)
                if told is None:
                    raise
                raise staging.failure(run.output, run.run_id) or in_text(str(e)) or told from e
    if state not in (None, "DONE"):
        left = staging.failure(run.output, run.run_id)
        raise left or EngineError(f"the engine ended the job as {state}; look at its log, then run again")
    return None


@contextmanager
def undisturbed(asked: bool) -> Iterator[None]:
    """Let a first Ctrl-C or SIGTERM wait until the body has ended, if that is ``asked`` for.

    A job can be cancelled only when its submission has ended and its number is known.
    """
    if not asked or threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals.later():
        yield


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[list[Callable[[], None]]]:
    """Yield a list of functions; call those that the body put into it if Ctrl-C ends the body."""
    submitted: list[Callable[[], None]] = []
    try:
        yield submitted
    except KeyboardInterrupt:
        for cancel in submitted:
            cancel()
        raise


def _stop(result: Any, run: Run, mark: str, announce: Callable[[str], None]) -> None:
    """Stop a job of Dask: cancel what has not begun; what has begun sees the mark before its next split."""
    told = f"run {run.run_id[:12]}"
    announce(f"stopping {told}: workers end after the splits that they are at; Ctrl-C once more leaves them")
    try:
        staging.stop(run.output, run.run_id, mark)
        result.cancel()
    except Exception as e:  # noqa: BLE001 - whatever the store or Dask raises, a person must be told
        announce(f"{told} may still be scored by its workers: {one_line(e)}")


def _cancel(result: Any, job: Job, announce: Callable[[str], None]) -> None:
    from apache_beam.runners.runner import PipelineState

    announce(f"cancelling {job}; Ctrl-C once more leaves it as it is")
    give_up_s = time.monotonic() + _CANCELLED_S
    try:
        result.cancel()
        while not PipelineState.is_terminal(state := result.state) and time.monotonic() < give_up_s:
            time.sleep(_LOOK_EVERY_S)
    except Exception as e:  # noqa: BLE001 - whatever the engine's client raises, a person must be told
        announce(f"{job} may still run, cancel it there: {one_line(e)}")
    else:
        announce(f"{job} is {state}")


def has_ended(
    beam_args: Sequence[str], announce: Callable[[str], None], loaded: Callable[[], object]
) -> Ended:
    """Return a function that asks the engine whether a job of ``--no_wait`` has ended.

    The function first waits for ``loaded``: two threads that import Beam at once get half a module.
    """

    def ask(job: Job) -> bool:
        try:
            loaded()
            ended = choice.registration(job.engine).kind().has_ended(job, beam_args)
        except Exception as e:  # noqa: BLE001 - then it may still run
            announce(f"{job}: its engine does not tell whether it has ended: {one_line(e)}")
            return False
        if ended:
            announce(f"{job} has ended without publishing: its output is free")
        return ended

    return ask


@contextmanager
def workers_errors(engine: Engine, folder: str, run_id: str) -> Iterator[None]:
    """Raise the error that a worker left in staging, if there is one, instead of the engine's own.

    A worker's error says more: engines flatten it into text.
    """
    try:
        with library_output.engine():
            yield
    except JobError:
        raise
    except Exception as e:
        raise (staging.failure(folder, run_id) or in_text(str(e)) or engine.told(e)) from e
