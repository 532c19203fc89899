"""A pipeline from its submission to its end: waited for, cancelled, or left to itself with its lease.

``--wait`` is the default. Then the job is part of the command: it has the command's lease, and Ctrl-C cancels
it, so that nothing goes on that costs money and works on an output that others may take. With ``--no_wait``
the job is on its own: the lease is handed over to it (see ``job.commit.handover``), and it publishes by
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from job.commit import output, staging
from job.commit.handover import Ended, Job
from job.engines import choice, dask, dataflow
from job.errors import EngineError, JobError, UsageError, in_text, one_line
from job.spec import Run, ScoringSpec
from job.terminal import library_output, signals

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from job.pipeline import ScoreParquet
    from job.scoring.nights import ScoreNights

# Flink needs a few seconds to cancel; a job server of our own must not end before that.
_CANCELLED_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.5
_ANSWER_S: Final = 10.0


def checked(spec: ScoringSpec, beam_args: Sequence[str]) -> ScoringSpec:
    """Return the spec as the engine can carry it out; ``spec`` has absolute paths.

    Raises:
        UsageError: the engine's flags and ours do not go together.
        EngineError: something that the engine needs is missing here.
    """
    if not beam_args:
        if not spec.wait:
            raise _no_wait(choice.EMBEDDED)
        return spec
    with library_output.imports():
        from apache_beam.options.pipeline_options import PipelineOptions
    options = PipelineOptions(list(beam_args))
    name = choice.name(options)
    if name == dataflow.NAME:
        dataflow.check(spec, options)
        # Who starts the job may wait for it.
        return replace(spec, wait=False) if dataflow.is_template(options) else spec
    if not spec.wait and not _endpoint(options):
        raise _no_wait(name)
    return spec


def _no_wait(name: str) -> UsageError:
    return UsageError(
        f"--no_wait: the job would end with this command, because --runner={name} needs it; leave --no_wait "
        f"out, or give --runner={dataflow.NAME}, or the --job_endpoint of a job server"
    )


def _endpoint(options: PipelineOptions) -> str:
    """Return the address of a job server that is there without us."""
    from apache_beam.options.pipeline_options import PortableOptions

    asked = options.view_as(PortableOptions)
    # Workers that are threads of this process.
    here = asked.job_endpoint == "embed" or asked.environment_type == "LOOPBACK"
    return "" if here else asked.job_endpoint or ""


def run(
    options: PipelineOptions, scoring: ScoreParquet | ScoreNights, run: Run, announce: Callable[[str], None]
) -> Job | None:
    """Run a pipeline to its end; or, with a run that is to be handed over, submit it and return the job.

    ``run`` is the first one where it scores several nights.

    Raises:
        JobError: what a worker left, or the engine said.
    """
    import apache_beam as beam

    # Asked first: portable runners take their name out of the options.
    name, endpoint = choice.name(options), _endpoint(options)
    if name == dataflow.NAME:
        dataflow.name_job(options, run)
    mark = staging.stop_mark(run.output, run.run_id) if name == choice.DASK else ""
    if mark:
        scoring.stop_by(mark)
    with workers_errors(options, run.output, run.run_id), choice.ended_on_failure(options):
        pipeline = beam.Pipeline(runner=choice.runner(options), options=options)
        # On all of it, or what differs in its hints would be a stage of its own, with a shuffle in between.
        scoring.with_resource_hints(**choice.hints(options, scoring.device))
        pipeline | "Score Parquet" >> scoring
        with _cancelled_by_ctrl_c() as submitted:
            # Where the pipeline is run by others, the call only submits it.
            with undisturbed(name in (dataflow.NAME, choice.DASK) or bool(endpoint)):
                result = pipeline.run()
                job = _job(name, endpoint, options, result, run.run_id)
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
                if job is None or name != dataflow.NAME:
                    raise
                left = staging.failure(run.output, run.run_id) or in_text(str(e))
                raise left or dataflow.failed(job, e) from e
    if state not in (None, "DONE"):
        left = staging.failure(run.output, run.run_id)
        raise left or EngineError(f"the engine ended the job as {state}; look at its log, then run again")
    return None


def _job(name: str, endpoint: str, options: PipelineOptions, result: Any, run_id: str) -> Job | None:
    """Return what was submitted, ``None`` where the engine is in this process or is not told of jobs."""
    if name == dataflow.NAME:
        return dataflow.job(options, result, run_id)
    number = str(getattr(result, "_job_id", ""))
    return Job(run_id, name, number, where=endpoint) if number else None


@contextmanager
def undisturbed(asked: bool) -> Iterator[None]:
    """Raise a first Ctrl-C or SIGTERM only when the body has ended, if that is ``asked`` for.

    A job that is just being submitted can be cancelled only when it is known.
    """
    if not asked or threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals.later():
        yield


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[list[Callable[[], None]]]:
    """Do what the body has put into the list that it is given, if Ctrl-C ends it."""
    submitted: list[Callable[[], None]] = []
    try:
        yield submitted
    except KeyboardInterrupt:
        for cancel in submitted:
            cancel()
        raise


def _stop(result: Any, run: Run, mark: str, announce: Callable[[str], None]) -> None:
    """End a job of Dask: what has not begun is cancelled, and what has looks for the mark at each split."""
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
    """Return what asks the engine whether a job that was not waited for has ended.

    It waits for what is being ``loaded``: two threads that import Beam at a time get half of it.
    """

    def ask(job: Job) -> bool:
        try:
            loaded()
            if job.engine == dataflow.NAME:
                ended = dataflow.has_ended(job, beam_args)
            else:
                ended = _has_ended_at(job.where, job.id)
        except Exception as e:  # noqa: BLE001 - then it may still run
            announce(f"{job}: its engine does not tell whether it has ended: {one_line(e)}")
            return False
        if ended:
            announce(f"{job} has ended without publishing: its output is free")
        return ended

    return ask


def _has_ended_at(endpoint: str, number: str) -> bool:
    if not endpoint:
        return False
    with library_output.imports():
        from apache_beam.portability.api import beam_job_api_pb2
        from apache_beam.runners.portability.job_server import ExternalJobServer
        from apache_beam.runners.portability.portable_runner import TERMINAL_STATES
    service = ExternalJobServer(endpoint, timeout=_ANSWER_S).start()
    request = beam_job_api_pb2.GetJobStateRequest(job_id=number)
    return service.GetState(request, timeout=_ANSWER_S).state in TERMINAL_STATES


@contextmanager
def workers_errors(options: PipelineOptions, folder: str, run_id: str) -> Iterator[None]:
    """Turn what an engine raises into the error that a worker left, where there is one: it says more."""
    # Asked first: portable runners take their name out of the options.
    name = choice.name(options)
    try:
        with library_output.engine():
            yield
    except JobError:
        raise
    except Exception as e:
        left = staging.failure(folder, run_id) or in_text(str(e)) or dask.killed(e)
        raise (left or choice.told(name, e)) from e
