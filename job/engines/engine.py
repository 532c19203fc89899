"""What an engine is to a night: one of Beam's runners, as the command's flags ask for it.

:class:`Engine` does what suits any runner. An engine that needs something else is one subclass in a module of
its own, listed in ``choice.ENGINES``; nothing outside this package asks which engine it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.commit.handover import Job
from job.engines.checks import Check
from job.errors import EngineError, JobError, UsageError, one_line
from job.spec import Run, ScoringSpec
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# A job server that is just being started gets so long to answer.
_ANSWER_S: Final = 30.0
# One that is asked about a job has been there for long.
_STATE_S: Final = 10.0

# A common small GPU, and what a process with CUDA's libraries needs beside it.
_GPU_HINTS: Final = {"accelerator": "type:nvidia-tesla-t4;count:1;install-nvidia-driver", "min_ram": "12GB"}


@dataclass(frozen=True)
class Fit:
    """How the pipeline is fitted to an engine.

    ``threads``: TensorFlow's, within one operation, so that all workers together use every core once; 0
    leaves it to the workers, of which there are ``processes`` on each machine (0: one for each core; -1: that
    is not known, and TensorFlow chooses). ``slices`` and ``overlaps``: see ``pipeline.ScorePlan``.
    ``here`` says that the rows are scored on this machine. ``machine``: see ``model.acquire``.
    """

    threads: int
    slices: int = 1
    overlaps: bool = True
    processes: int = -1
    here: bool = False
    machine: str = ""


class Engine:
    """A runner that Beam has, or that somebody else wrote. ``name`` is as Beam writes it.

    It is made before the pipeline, as portable runners take their name out of the ``options``; ``endpoint``
    is the address of a job server that is there without this process, else empty.

    Attributes:
        title: what the lines of ``job doctor`` about it are called; empty where it has none.
        submits: whether Beam's ``run`` only submits the job, which others run.
        stops_by_mark: whether workers look for a file that tells them to stop, as the engine does not end
            what they have begun.
        unasked: why no job may be run only to ask the workers; empty where one may.
        recomputes: whether a step runs anew for each other step that wants its outcome.
    """

    title: ClassVar[str] = ""
    submits: ClassVar[bool] = False
    stops_by_mark: ClassVar[bool] = False
    unasked: ClassVar[str] = ""
    recomputes: ClassVar[bool] = False

    def __init__(self, name: str, options: PipelineOptions) -> None:
        self.name, self.options = name, options
        self.endpoint = _endpoint(options)

    # Before the night.

    @classmethod
    def learn_flags(cls) -> None:
        """Let Beam know flags of the engine that Beam does not know by itself."""

    def fill(self, _given: Collection[str], /) -> None:
        """Set the options that suit the engine and are not among the flags ``given``."""

    def checked(self, spec: ScoringSpec) -> ScoringSpec:
        """Return the spec, of absolute paths, as the engine can carry it out.

        Raises:
            UsageError: the engine's flags and ours do not go together.
            EngineError: something that the engine needs is missing here.
        """
        if not spec.wait and not self.endpoint:
            raise no_wait(self.name)
        return spec

    def check_visible(self, _paths: Sequence[str], /) -> None:
        """Raise ``UsageError`` where a path is on this machine's disk and no worker is."""

    def fit(self, key: str = "") -> Fit:
        """Return what suits the engine; one that is a cluster is asked.

        ``key`` is not empty where all workers of a machine are to share one model.

        Raises:
            EngineError: it does not answer, or cannot run the job.
        """
        return Fit(self.threads(), processes=self.processes(), machine=key)

    def threads(self) -> int:
        """Return TensorFlow's threads within one operation, so that all workers use every core once.

        0 leaves the choice to TensorFlow, where this process does not know the workers.
        """
        return 0

    def processes(self) -> int:
        """Return how many worker processes one machine has, 0 for one a core, -1 where that is not known."""
        return -1

    def reads_footers(self) -> bool:
        """Say whether its workers are to read the footers of very many shards."""
        return True

    # The pipeline.

    def runner(self) -> Any:
        """Return what ``beam.Pipeline`` takes as its runner; ``None`` leaves it to the options.

        Raises:
            EngineError: ``--job_endpoint`` does not answer, the engine's program is missing, or the cluster
                cannot run the job.
        """
        from apache_beam.options.pipeline_options import PortableOptions

        endpoint = self.options.view_as(PortableOptions).job_endpoint
        if endpoint and endpoint != "embed":
            _check_answers(endpoint)
        return None

    def hints(self, device: str) -> dict[str, str]:
        """Return what workers of the pipeline should have, beyond what ``--resource_hint`` asks for."""
        from apache_beam.options.pipeline_options import StandardOptions

        if device != "gpu":
            return {}
        given = self.options.view_as(StandardOptions).resource_hints or ()
        names = {hint.partition("=")[0] for hint in given}
        return {hint: value for hint, value in _GPU_HINTS.items() if hint not in names}

    # The job.

    def name_job(self, _run: Run, /) -> None:
        """Name the job in the options, where the engine wants a name."""

    def job(self, result: Any, run_id: str) -> Job | None:
        """Return what was submitted, ``None`` where the engine is in this process or is not told of jobs."""
        number = str(getattr(result, "_job_id", ""))
        return Job(run_id, self.name, number, where=self.endpoint) if number else None

    def ended_on_failure(self) -> AbstractContextManager[None]:
        """End the engine's job with the body's error, also where the engine would go on with it."""
        return nullcontext()

    def failed(self, _job: Job, _error: Exception, /) -> Exception | None:
        """Return what is to be said of a job that was waited for in vain; ``None``: what Beam said."""
        return None

    def told(self, error: Exception) -> Exception:
        """Return what to raise for an ``error`` that the runner raised and that no worker left."""
        if isinstance(error, JobError):
            return error
        return EngineError(
            f"--runner={self.name} cannot be started, or failed: {one_line(error)}; see more with --debug, "
            f"or leave --runner out to score on this machine"
        )

    @classmethod
    def has_ended(cls, job: Job, _beam_args: Sequence[str], /) -> bool:
        """Ask the engine whether a job has ended, for whatever reason.

        Raises:
            Exception: it does not tell.
        """
        return bool(job.where) and _has_ended_at(job.where, job.id)

    # What ``job doctor`` looks at.

    def described(self) -> str:
        """Return which engine it is, in a few words."""
        return self.name

    def checks(self) -> list[Check]:
        """Return what there is to say about it before a night; it may take a while."""
        return []

    def workers_beside(self) -> str:
        """Return an address that is on the workers' machines, empty where that is this machine."""
        from apache_beam.options.pipeline_options import PortableOptions

        return str(self.options.view_as(PortableOptions).job_endpoint or "")

    def ask_workers(self, _expression: str, _limit_s: float, /) -> list[Mapping[str, Any]] | None:
        """Return the value of an expression in each worker; ``None`` where that takes a job."""
        return None


class JobServer(Engine):
    """A runner behind Beam's job server, with as many worker processes a machine as a flag says."""

    def processes(self) -> int:
        """Return ``--sdk_worker_parallelism``."""
        from apache_beam.options.pipeline_options import PortableOptions

        return int(self.options.view_as(PortableOptions).sdk_worker_parallelism or 0)


class OneProcess(Engine):
    """A runner that has all its workers in one process."""

    def processes(self) -> int:
        """Return 1."""
        return 1


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def no_wait(name: str) -> UsageError:
    """Return what to say where a job cannot go on without this command."""
    return UsageError(
        f"--no_wait: the job would end with this command, because --runner={name} needs it; leave --no_wait "
        f"out, or give --runner=DataflowRunner, or the --job_endpoint of a job server"
    )


def _endpoint(options: PipelineOptions) -> str:
    from apache_beam.options.pipeline_options import PortableOptions

    asked = options.view_as(PortableOptions)
    # Workers that are threads of this process.
    here = asked.job_endpoint == "embed" or asked.environment_type == "LOOPBACK"
    return "" if here else asked.job_endpoint or ""


def _check_answers(endpoint: str) -> None:
    from apache_beam.runners.portability.job_server import ExternalJobServer

    # Beam itself would wait for five minutes, and then raise an error without a text.
    try:
        ExternalJobServer(endpoint, timeout=_ANSWER_S).start()
    except Exception as e:
        raise EngineError(
            f"--job_endpoint={endpoint}: no answer within {_ANSWER_S:.0f} s; start the job server there, or "
            f"correct the address"
        ) from e


def _has_ended_at(endpoint: str, number: str) -> bool:
    with library_output.imports():
        from apache_beam.portability.api import beam_job_api_pb2
        from apache_beam.runners.portability.job_server import ExternalJobServer
        from apache_beam.runners.portability.portable_runner import TERMINAL_STATES
    service = ExternalJobServer(endpoint, timeout=_STATE_S).start()
    request = beam_job_api_pb2.GetJobStateRequest(job_id=number)
    return service.GetState(request, timeout=_STATE_S).state in TERMINAL_STATES
