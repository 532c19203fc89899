"""An engine: one of Beam's runners with the options of a command, and what ``job doctor`` finds out about it.

:class:`Engine` does what suits any runner. A runner that needs something else has a subclass in its own
module, listed in ``choice.ENGINES``. Nothing outside this package asks which engine it has.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.commit.handover import Job
from job.errors import EngineError, JobError, UsageError, one_line
from job.spec import Run, ScoringSpec
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# For a job server that is still starting.
_ANSWER_S: Final = 30.0
# For a job server that has run a job.
_STATE_S: Final = 10.0

# A common small GPU, and the memory that a process with CUDA's libraries needs.
_GPU_HINTS: Final = {"accelerator": "type:nvidia-tesla-t4;count:1;install-nvidia-driver", "min_ram": "12GB"}


@dataclass(frozen=True)
class Check:
    """One line of ``job doctor``: what was checked, whether it is well, and what was found.

    ``ok`` is ``None`` if it could not be checked; ``told`` then says why. ``fix`` says what to do, and is
    empty if all is well.
    """

    name: str
    ok: bool | None
    told: str
    fix: str = ""

    @classmethod
    def of_error(cls, name: str, error: JobError) -> Check:
        """Return an error as a failed check; the last part of its message is the fix."""
        told, _, fix = str(error).rpartition("; ")
        return cls(name, False, told, fix) if told else cls(name, False, fix, "correct it")


@dataclass(frozen=True)
class Fit:
    """How the pipeline is fitted to an engine.

    Attributes:
        threads: TensorFlow's threads within one operation, so that all workers together use each core once. 0
            leaves the number to each worker, which divides its machine's cores by ``processes``.
        slices: see ``pipeline.ScorePlan``.
        overlaps: see ``pipeline.ScorePlan``.
        processes: worker processes on each machine; 0 is one per core, -1 is unknown: TensorFlow chooses.
        here: whether the rows are scored on this machine.
        machine: see ``job.model.loading.acquire``.
    """

    threads: int
    slices: int = 1
    overlaps: bool = True
    processes: int = -1
    here: bool = False
    machine: str = ""


class Engine:
    """A runner with its options; ``name`` is as Beam spells it.

    It is made before the pipeline, since portable runners remove their name from the ``options``.

    Attributes:
        title: the name of its checks in ``job doctor``; empty if it has none.
        submits: whether Beam's ``run`` returns once the job is submitted.
        stops_by_mark: whether workers look for a file that tells them to stop, because the engine does not
            stop work that has begun.
        unasked: why the doctor may not run a job on it; empty if it may.
        recomputes: whether a step runs again for each other step that uses its result.
        endpoint: the address of a job server that runs without this process; empty if there is none.
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
        """Register the engine's own flags with Beam, if Beam does not have them by itself."""

    def fill(self, _given: Collection[str], /) -> None:
        """Set the options that suit the engine and are not among the flags ``given``."""

    def checked(self, spec: ScoringSpec) -> ScoringSpec:
        """Return ``spec``, whose paths are absolute, changed if the engine requires it.

        Raises:
            UsageError: the engine's flags contradict the job's.
            EngineError: something that the engine needs is missing on this machine.
        """
        if not spec.wait and not self.endpoint:
            raise no_wait(self.name)
        return spec

    def check_visible(self, _paths: Sequence[str], /) -> None:
        """Raise ``UsageError`` if a path is on this machine's disk and the workers are elsewhere."""

    def fit(self, key: str = "") -> Fit:
        """Return how the pipeline is fitted to the engine; a cluster is asked for its size.

        ``key`` is not empty if all workers of a machine are to share one model.

        Raises:
            EngineError: the cluster does not answer, or cannot run the job.
        """
        return Fit(self.threads(), processes=self.processes(), machine=key)

    def threads(self) -> int:
        """Return TensorFlow's threads within one operation, so that all workers together use each core once.

        0 if this process does not know the workers, see :class:`Fit`.
        """
        return 0

    def processes(self) -> int:
        """Return the number of worker processes on each machine; 0 is one per core, -1 is unknown."""
        return -1

    def reads_footers(self) -> bool:
        """Say whether workers, and not this process, read the footers when there are very many shards."""
        return True

    # The pipeline.

    def runner(self) -> Any:
        """Return the runner for ``beam.Pipeline``; ``None`` leaves it to the options.

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
        """Return Beam's resource hints for ``--device``, except those that ``--resource_hint`` gives."""
        from apache_beam.options.pipeline_options import StandardOptions

        if device != "gpu":
            return {}
        given = self.options.view_as(StandardOptions).resource_hints or ()
        names = {hint.partition("=")[0] for hint in given}
        return {hint: value for hint, value in _GPU_HINTS.items() if hint not in names}

    # The job.

    def name_job(self, _run: Run, /) -> None:
        """Set the job's name in the options, if the engine needs one."""

    def job(self, result: Any, run_id: str) -> Job | None:
        """Return the submitted job; ``None`` if the engine has no jobs that outlive this process."""
        number = str(getattr(result, "_job_id", ""))
        return Job(run_id, self.name, number, where=self.endpoint) if number else None

    def ended_on_failure(self) -> AbstractContextManager[None]:
        """Cancel the engine's job if the body raises and the engine would not cancel it by itself."""
        return nullcontext()

    def failed(self, _job: Job, _error: Exception, /) -> Exception | None:
        """Return the error of a job that failed or could not be waited for; ``None`` leaves Beam's."""
        return None

    def told(self, error: Exception) -> Exception:
        """Return what to raise for an ``error`` of the runner if no worker left an error of its own."""
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
            Exception: the engine does not answer.
        """
        return bool(job.where) and _has_ended_at(job.where, job.id)

    # For ``job doctor``.

    def described(self) -> str:
        """Return a short description of the engine."""
        return self.name

    def checks(self) -> list[Check]:
        """Return its checks for ``job doctor``; this may take seconds."""
        return []

    def workers_beside(self) -> str:
        """Return an address on the workers' machines; empty if they run on this machine."""
        from apache_beam.options.pipeline_options import PortableOptions

        return str(self.options.view_as(PortableOptions).job_endpoint or "")

    def ask_workers(self, _expression: str, _limit_s: float, /) -> list[Mapping[str, Any]] | None:
        """Return the value of an expression on each worker; ``None`` if only a Beam job can ask them."""
        return None


class JobServer(Engine):
    """A runner behind Beam's job server; a flag gives the number of worker processes on each machine."""

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
    """Return the error of ``--no_wait`` on an engine that ends with this command."""
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

    # Beam would wait for five minutes and then raise an error without a text.
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
