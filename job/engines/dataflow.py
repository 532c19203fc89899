"""Google's Dataflow: checks its flags before anything slow, names the job, and says how it ended.

A job with wrong flags fails only after minutes, on machines that cost money. Dataflow stores a job's options,
flags for Beam included, and shows them to everybody who may see the job, so flags that hold a secret are
refused.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job import storage
from job.commit.handover import Job
from job.engines.engine import Engine
from job.errors import EngineError, JobError, UsageError, one_line
from job.model import artifact
from job.spec import Run, ScoringSpec
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

NAME: Final = "DataflowRunner"
_CONSOLE: Final = "https://console.cloud.google.com/dataflow/jobs"
_SECRETS: Final = ("s3_secret_access_key", "s3_session_token", "azure_connection_string")
_PACKAGED_BY: Final = (
    *("sdk_container_image", "setup_file", "extra_packages", "requirements_file"),
    *("prebuild_sdk_container_engine",),
)
# One process per machine. Without it there is one per core, each in its own container, so that they can share
# neither a model nor the locks that divide GPUs among them.
_ONE_PROCESS: Final = "no_use_multiple_sdk_containers"
_ANSWER_S: Final = 30.0
# States in which a job does nothing any more. A job that is being cancelled is not in one of them.
_ENDED: Final = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")


class Dataflow(Engine):
    """A job on Dataflow's workers."""

    submits: ClassVar[bool] = True
    unasked: ClassVar[str] = "a job there takes minutes and is paid for, so none is run"

    def checked(self, spec: ScoringSpec) -> ScoringSpec:
        """Return ``spec``; for a template without waiting, because this command does not start the job."""
        check(spec, self.options)
        return replace(spec, wait=False) if is_template(self.options) else spec

    def check_visible(self, paths: Sequence[str], /) -> None:
        """Refuse paths on this machine's disk."""
        check_visible(paths)

    def threads(self) -> int:
        """Return 1 if there is a process per core, 0 (all cores) if there is one per machine."""
        return tensorflow_threads(self.options)

    def reads_footers(self) -> bool:
        """Return ``False``: a job for that would take minutes to start."""
        return False

    def hints(self, device: str) -> dict[str, str]:
        """Return none: GPUs are requested by Dataflow's own flag, see :meth:`checked`."""
        del device
        return {}

    def name_job(self, run: Run, /) -> None:
        """Name the job after its run and output."""
        name_job(self.options, run)

    def job(self, result: Any, run_id: str) -> Job:
        """Return the submitted job, with a link to Google's console."""
        return job(self.options, result, run_id)

    def failed(self, job: Job, error: Exception, /) -> EngineError:
        """Return an error with Dataflow's state and reason."""
        return failed(job, error)

    @classmethod
    def has_ended(cls, job: Job, beam_args: Sequence[str], /) -> bool:
        """Ask Dataflow."""
        return has_ended(job, beam_args)


def check(spec: ScoringSpec, options: PipelineOptions) -> None:
    """Check packages, flags and paths of a night on Dataflow.

    Raises:
        EngineError: packages are missing here, or a bucket for Dataflow's own files cannot be read.
        UsageError: flags are missing, or Dataflow's workers cannot do what they ask for.
    """
    _check_installed()
    given = options.get_all_options(drop_default=True)
    _check_flags(given)
    models = [path for path in (spec.model, spec.challenger) if path]
    artifacts = [path for path in models if artifact.kind_of(path).has_files]
    weights = [path for path in (spec.weights, spec.challenger_weights) if path]
    inputs = [path for path in spec.inputs if not path.startswith("@")]
    check_visible([*inputs, spec.output, *artifacts, *weights])
    if spec.device == "gpu":
        _check_gpu(given)
    for flag in ("temp_location", "staging_location"):
        if flag in given:
            _check_bucket(flag, given[flag])


def check_visible(paths: Iterable[str]) -> None:
    """Refuse paths that workers cannot see.

    Raises:
        UsageError: a path is on this machine's disk.
    """
    local = [path for path in paths if not storage.is_remote(path)]
    if local:
        raise UsageError(
            f"{local[0]}: on this machine's disk, which Dataflow's workers cannot see; copy it to a bucket "
            f"and give its gs:// path"
        )


def tensorflow_threads(options: PipelineOptions) -> int:
    """Return TensorFlow's threads: 1 with a process per core, 0 (all cores) with one per machine."""
    from apache_beam.options.pipeline_options import DebugOptions

    return 0 if _ONE_PROCESS in (options.view_as(DebugOptions).experiments or []) else 1


def name_job(options: PipelineOptions, run: Run) -> None:
    """Name a job after its run and output unless it has a name; names of active jobs must be unique."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    asked = options.view_as(GoogleCloudOptions)
    told = hashlib.sha256(f"{run.run_id} {run.output}".encode()).hexdigest()
    asked.job_name = asked.job_name or f"scoring-job-{run.run_id[:12]}-{told[:8]}"


def is_template(options: PipelineOptions) -> bool:
    """Say whether the job is only written as a template, which a Flex Template's launcher starts."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    return bool(options.view_as(GoogleCloudOptions).template_location)


def job(options: PipelineOptions, result: Any, run_id: str) -> Job:
    """Return the submitted job; a template's job has no number yet and goes by its name."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    asked = options.view_as(GoogleCloudOptions)
    if not result.has_job:
        return Job(run_id, NAME, asked.job_name, f"{_CONSOLE}?project={asked.project}")
    number = result.job_id()
    link = f"{_CONSOLE}/{asked.region}/{number}?project={asked.project}"
    where = json.dumps({"project_id": asked.project, "location": asked.region})
    return Job(run_id, NAME, number, link, where)


def failed(job: Job, error: Exception) -> EngineError:
    """Return the error of a job that failed or could not be waited for, made from Beam's ``error``."""
    # Known by its name, because this module does not import Beam.
    if type(error).__name__ != "DataflowRuntimeException":
        return EngineError(f"{job} may still run, but cannot be waited for: {one_line(error)}; look there")
    state, _, cause = str(error).partition(", Error:")
    told = " ".join(cause.split()).removesuffix("None")
    why = f": {told}" if told else ", and Dataflow gives no reason"
    return EngineError(f"{job} ended as {state.rpartition(' ')[2]}{why}; run again to resume")


def has_ended(job: Job, beam_args: Sequence[str]) -> bool:
    """Ask Dataflow whether a job has ended, for whatever reason.

    Raises:
        Exception: Dataflow does not answer.
    """
    if not job.where:
        return False
    _check_installed()
    with library_output.imports():
        from apache_beam.internal.gcp.auth import get_service_credentials
        from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
        from google.cloud.dataflow import JobsV1Beta3Client
    # Beam's own client would retry for minutes.
    asked = PipelineOptions(list(beam_args)).view_as(GoogleCloudOptions)
    endpoint = {"api_endpoint": asked.dataflow_endpoint.removeprefix("https://")}
    client = JobsV1Beta3Client(credentials=get_service_credentials(asked), client_options=endpoint)
    request = {**json.loads(job.where), "job_id": job.id}
    state = client.get_job(request, timeout=_ANSWER_S).current_state.name
    return state.removeprefix("JOB_STATE_") in _ENDED


def _check_installed() -> None:
    try:
        with library_output.imports():
            # Without httplib2 Beam sends no credentials; without apitools it retries refused requests.
            for module in (
                "google.cloud.storage",
                "google.cloud.dataflow",
                "google_auth_httplib2",
                "apitools",
            ):
                importlib.import_module(module)
    except ImportError as e:
        raise EngineError(
            f"--runner={NAME} needs packages that are not installed: pip install 'scoring-job[dataflow]'"
        ) from e


def _check_flags(given: dict[str, Any]) -> None:
    missing = [f"--{name}" for name in ("project", "region", "temp_location") if not given.get(name)]
    if missing:
        raise UsageError(f"--runner={NAME} needs {', '.join(missing)} as well")
    for name in ("temp_location", "staging_location"):
        if not str(given.get(name, "gs://")).startswith("gs://"):
            raise UsageError(f"--{name}={given[name]}: must be in a bucket, as in gs://bucket/temp")
    shown = [f"--{name}" for name in _SECRETS if given.get(name)]
    if shown:
        raise UsageError(
            f"{', '.join(shown)}: Dataflow would keep and show it with the job; let the workers' image or "
            f"service account bring the credentials"
        )
    if not any(given.get(name) for name in _PACKAGED_BY):
        raise UsageError(
            f"--runner={NAME}: its workers would not have this package; give --sdk_container_image=IMAGE, "
            f"made from the Dockerfile, or --setup_file=./setup.py"
        )


def _check_gpu(given: dict[str, Any]) -> None:
    if not _asks_for_gpu(given):
        raise UsageError(
            "--device=gpu: the workers have no GPU; add --dataflow_service_options="
            "'worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver'"
        )
    if _ONE_PROCESS not in (given.get("experiments") or ()):
        raise UsageError(
            f"--device=gpu: Dataflow starts a process for each core, and all would load the model into the "
            f"machine's GPU; add --experiments={_ONE_PROCESS}"
        )


def _asks_for_gpu(given: dict[str, Any]) -> bool:
    asked = [*given.get("dataflow_service_options", []), *given.get("experiments", [])]
    hints = given.get("resource_hints") or []
    return any(one.startswith("worker_accelerator=") for one in asked) or any(
        "accelerator" in one for one in hints
    )


def _check_bucket(flag: str, path: str) -> None:
    # Beam would retry for minutes.
    try:
        storage.size_bytes(storage.join(path, "_"))
    except JobError as e:
        raise EngineError(f"--{flag}={path}: {e}") from e
