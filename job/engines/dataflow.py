"""Google's Dataflow: what it needs to be told, found out before anything slow, and how a job there ends.

A job that cannot run fails there only after minutes, on machines that cost money. Dataflow keeps a job's
options, the command's flags for Beam among them, and shows them to whoever may see the job: so flags that
hold a secret are refused.
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
# One process a machine. Without it there is one a core, each in a container of its own, so that they share
# neither a model nor the locks by which they would share GPUs out.
_ONE_PROCESS: Final = "no_use_multiple_sdk_containers"
_ANSWER_S: Final = 30.0
# States in which nothing of a job goes on. One that is being cancelled is not among them.
_ENDED: Final = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")


class Dataflow(Engine):
    """A job on Dataflow's workers."""

    submits: ClassVar[bool] = True
    unasked: ClassVar[str] = "a job there takes minutes and is paid for, so none is run"

    def checked(self, spec: ScoringSpec) -> ScoringSpec:
        """Return the spec; who starts the job of a template may wait for it, this command cannot."""
        check(spec, self.options)
        return replace(spec, wait=False) if is_template(self.options) else spec

    def check_visible(self, paths: Sequence[str], /) -> None:
        """Refuse paths on this machine's disk."""
        check_visible(paths)

    def threads(self) -> int:
        """Return 1 where each core has a process, 0 (all cores) where a machine has one."""
        return tensorflow_threads(self.options)

    def reads_footers(self) -> bool:
        """Return that they are read here: a job of its own would take minutes to start."""
        return False

    def hints(self, device: str) -> dict[str, str]:
        """Return nothing: Dataflow's own flag asks for its GPUs, and is checked."""
        del device
        return {}

    def name_job(self, run: Run, /) -> None:
        """Name the job after what it does."""
        name_job(self.options, run)

    def job(self, result: Any, run_id: str) -> Job:
        """Return what was submitted, with a link to Google's console."""
        return job(self.options, result, run_id)

    def failed(self, job: Job, error: Exception, /) -> EngineError:
        """Return the state and the reason that Dataflow gives."""
        return failed(job, error)

    @classmethod
    def has_ended(cls, job: Job, beam_args: Sequence[str], /) -> bool:
        """Ask Dataflow."""
        return has_ended(job, beam_args)


def check(spec: ScoringSpec, options: PipelineOptions) -> None:
    """Refuse what cannot work.

    Raises:
        EngineError: packages are missing here, or a bucket for Dataflow's own files cannot be had.
        UsageError: flags are missing, or ask for what Dataflow's workers cannot do.
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
    """Return TensorFlow's threads: 1 where each core has a process, 0 (all cores) where a machine has one."""
    from apache_beam.options.pipeline_options import DebugOptions

    return 0 if _ONE_PROCESS in (options.view_as(DebugOptions).experiments or []) else 1


def name_job(options: PipelineOptions, run: Run) -> None:
    """Name a job after what it does, where it has no name: Dataflow lets no two of one name be active."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    asked = options.view_as(GoogleCloudOptions)
    told = hashlib.sha256(f"{run.run_id} {run.output}".encode()).hexdigest()
    asked.job_name = asked.job_name or f"scoring-job-{run.run_id[:12]}-{told[:8]}"


def is_template(options: PipelineOptions) -> bool:
    """Say whether the job is only written down, for somebody else to start it: a Flex Template's launcher."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    return bool(options.view_as(GoogleCloudOptions).template_location)


def job(options: PipelineOptions, result: Any, run_id: str) -> Job:
    """Return what was submitted; a job of a template has no number yet and is known by its name."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    asked = options.view_as(GoogleCloudOptions)
    if not result.has_job:
        return Job(run_id, NAME, asked.job_name, f"{_CONSOLE}?project={asked.project}")
    number = result.job_id()
    link = f"{_CONSOLE}/{asked.region}/{number}?project={asked.project}"
    where = json.dumps({"project_id": asked.project, "location": asked.region})
    return Job(run_id, NAME, number, link, where)


def failed(job: Job, error: Exception) -> EngineError:
    """Return what is to be said of a job that was waited for in vain, by what Beam raised."""
    # By its name: this module imports no Beam.
    if type(error).__name__ != "DataflowRuntimeException":
        return EngineError(f"{job} may still run, but cannot be waited for: {one_line(error)}; look there")
    state, _, cause = str(error).partition(", Error:")
    told = " ".join(cause.split()).removesuffix("None")
    why = f": {told}" if told else ", and Dataflow gives no reason"
    return EngineError(f"{job} ended as {state.rpartition(' ')[2]}{why}; run again to resume")


def has_ended(job: Job, beam_args: Sequence[str]) -> bool:
    """Ask Dataflow whether a job has ended, for whatever reason.

    Raises:
        Exception: it does not tell.
    """
    if not job.where:
        return False
    _check_installed()
    with library_output.imports():
        from apache_beam.internal.gcp.auth import get_service_credentials
        from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
        from google.cloud.dataflow import JobsV1Beta3Client
    # Not by Beam's own client, which repeats itself for minutes.
    asked = PipelineOptions(list(beam_args)).view_as(GoogleCloudOptions)
    endpoint = {"api_endpoint": asked.dataflow_endpoint.removeprefix("https://")}
    client = JobsV1Beta3Client(credentials=get_service_credentials(asked), client_options=endpoint)
    request = {**json.loads(job.where), "job_id": job.id}
    state = client.get_job(request, timeout=_ANSWER_S).current_state.name
    return state.removeprefix("JOB_STATE_") in _ENDED


def _check_installed() -> None:
    try:
        with library_output.imports():
            # Without httplib2's Beam asks without credentials, without apitools it repeats what is refused.
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
    # Beam would repeat itself for minutes.
    try:
        storage.size_bytes(storage.join(path, "_"))
    except JobError as e:
        raise EngineError(f"--{flag}={path}: {e}") from e
