"""Which engine runs the pipeline, and how its workers are configured.

The default is Beam's ``FnApiRunner`` in this process: no download, no server, one worker thread per
core, all sharing one model. It is named rather than left to ``DirectRunner``, which first tries to
download another engine and runs on that.

Worker processes of that runner (``--direct_running_mode=multi_processing``) get none of the pipeline's
options, so their log level cannot be set by one: :func:`runner` starts them by a command that silences them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from job.engines import dask, dataflow, prism
from job.engines.dask import cores as cores
from job.errors import EngineError, JobError, UsageError, one_line
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

EMBEDDED: Final = "FnApiRunner"
DASK: Final = "DaskRunner"
FLINK: Final = "FlinkRunner"
PRISM: Final = "PrismRunner"
# Beam has it, but does not know it by its short name.
_DASK_PATH: Final = "apache_beam.runners.dask.dask_runner.DaskRunner"

_OF_ONE_PROCESS: Final = (PRISM, "DirectRunner", "BundleBasedDirectRunner")
_PORTABLE: Final = (FLINK, "PortableRunner", "SparkRunner")

# A common small GPU, and what a process with CUDA's libraries needs beside it.
_GPU_HINTS: Final = {"accelerator": "type:nvidia-tesla-t4;count:1;install-nvidia-driver", "min_ram": "12GB"}

# What Beam's embedded runner says when a worker's connection ends.
_WORKER_DIED: Final = "Channel closed prematurely"

# A job server that is just being started gets so long to answer.
_ANSWER_S: Final = 30.0

_QUIET_WORKER: Final = (
    "from job.terminal import library_output as quiet; quiet.hush(debug=False); "
    "from apache_beam.runners.worker import sdk_worker_main; sdk_worker_main.main([])"
)


def name(options: PipelineOptions) -> str:
    """Return the runner's name as Beam writes it; any case, and a name without ``Runner``, are allowed."""
    from apache_beam.options.pipeline_options import StandardOptions

    given = options.view_as(StandardOptions).runner or EMBEDDED
    for path in (*StandardOptions.ALL_KNOWN_RUNNERS, _DASK_PATH):
        known = path.rpartition(".")[2]
        if given == path or given.lower() in (known.lower(), known.lower().removesuffix("runner")):
            return str(known)
    return str(given)


def check_runner(beam_args: Sequence[str]) -> None:
    """Refuse a runner that does not exist.

    Raises:
        UsageError: ``--runner`` is neither one of Beam's nor the path of a class that can be imported.
    """
    with library_output.imports():
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    known = [*StandardOptions.KNOWN_RUNNER_NAMES, DASK]
    given = name(PipelineOptions(list(beam_args)))
    if given in known:
        return
    module, _, kind = given.rpartition(".")
    if module:
        try:
            with library_output.imports():
                if hasattr(importlib.import_module(module), kind):
                    return
            reason = f"{module} has no {kind}"
        except ImportError as e:
            reason = one_line(e)
        raise UsageError(f"--runner={given}: {reason}; give module.Class, or leave --runner out")
    # Without their common end, which would make any name look near.
    close = {other.lower().removesuffix("runner"): other for other in known}
    near = difflib.get_close_matches(given.lower().removesuffix("runner"), list(close), n=1)
    hint = f"did you mean {close[near[0]]}?" if near else f"use one of {', '.join(known)}, or module.Class"
    raise UsageError(f"--runner={given}: no such runner; {hint}")


def beam_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Return the pipeline options for these flags, with defaults filled in that suit the engine."""
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

    options = PipelineOptions(list(beam_args))
    # Beam cannot tell a flag that was left out from one that asks for Beam's default.
    given = {arg.partition("=")[0] for arg in beam_args}
    if name(options) == DASK:
        _use_dask(options)
    if name(options) == FLINK:
        # Here and below only for it: an HTTP client and what that imports would be a part of every start.
        from job.engines.flink import engine as flink_engine

        flink_engine.fill(options, given)
    if name(options) == EMBEDDED:
        options.view_as(StandardOptions).runner = EMBEDDED
        direct = options.view_as(DirectOptions)
        if "--direct_running_mode" not in given:
            direct.direct_running_mode = "multi_threading"
        if "--direct_num_workers" not in given:
            direct.direct_num_workers = cores()
    return options


def _use_dask(options: PipelineOptions) -> None:
    from apache_beam.options.pipeline_options import StandardOptions

    options.view_as(StandardOptions).runner = _DASK_PATH
    asked = options.view_as(dask.flags())
    if not asked.npartitions and not asked.partition_size:
        # Each element that the pipeline begins with by itself; Beam's default is 128 together.
        asked.partition_size = 1


@dataclass(frozen=True)
class Fit:
    """How the pipeline is fitted to an engine.

    ``threads``: TensorFlow's, within one operation, so that all workers together use every core once; 0
    leaves it to the workers, of which there are ``processes`` on each machine (0: one for each core; -1: that
    is not known, and TensorFlow chooses). ``slices`` and ``overlaps``: see ``pipeline.ScoreParquet``.
    ``here`` says that the rows are scored on this machine. ``machine``: see ``model.acquire``.
    """

    threads: int
    slices: int = 1
    overlaps: bool = True
    processes: int = -1
    here: bool = False
    machine: str = ""


def fit(options: PipelineOptions, key: str = "") -> Fit:
    """Return what suits the engine; one that is a cluster is asked.

    ``key`` is not empty where all workers of a machine are to share one model.

    Raises:
        EngineError: it does not answer, or cannot run the job.
    """
    engine = name(options)
    if engine == EMBEDDED:
        # Threads of one process share a model anyway.
        machine = "" if scores_here(options) else key
        return Fit(tensorflow_threads(options), here=True, machine=machine)
    if engine == FLINK:
        from job.engines.flink import engine as flink_engine

        # Here and again where the pipeline starts: the sooner it is told, the less is in vain.
        flink_engine.refuse(options)
        flink_engine.announce(options)
        return Fit(flink_engine.threads(options), processes=_processes(options), machine=key)
    if engine != DASK:
        return Fit(tensorflow_threads(options), processes=_processes(options), machine=key)
    cluster = dask.look(options)
    slices = dask.SLICES_PER_THREAD * cluster.threads
    return Fit(cluster.cores_per_thread, slices, overlaps=False, machine=key)


def _processes(options: PipelineOptions) -> int:
    """Return how many worker processes one machine has, 0 for one a core, -1 where that is not known."""
    from apache_beam.options.pipeline_options import PortableOptions

    engine = name(options)
    if engine in _OF_ONE_PROCESS:
        return 1
    if engine in _PORTABLE:
        return int(options.view_as(PortableOptions).sdk_worker_parallelism or 0)
    return -1


def hints(options: PipelineOptions, device: str) -> dict[str, str]:
    """Return what workers of the pipeline should have, beyond what ``--resource_hint`` asks for."""
    from apache_beam.options.pipeline_options import StandardOptions

    # Dataflow's own flag asks for its GPUs, and is checked.
    if device != "gpu" or name(options) == dataflow.NAME:
        return {}
    given = {hint.partition("=")[0] for hint in options.view_as(StandardOptions).resource_hints or ()}
    return {hint: value for hint, value in _GPU_HINTS.items() if hint not in given}


def check_visible(options: PipelineOptions, paths: Sequence[str]) -> None:
    """Refuse paths that workers cannot see.

    Raises:
        UsageError: a path is on this machine's disk, and no worker is.
    """
    if name(options) == dataflow.NAME:
        dataflow.check_visible(paths)


def runner(options: PipelineOptions) -> Any:
    """Return what ``beam.Pipeline`` takes as its runner; ``None`` leaves it to the options.

    Raises:
        EngineError: ``--job_endpoint`` does not answer, the engine's program is missing, or the cluster
            cannot run the job.
    """
    from apache_beam.options.pipeline_options import DirectOptions, PortableOptions

    if name(options) == PRISM:
        prism.program(options)
    if name(options) != EMBEDDED:
        endpoint = options.view_as(PortableOptions).job_endpoint
        if endpoint and endpoint != "embed":
            _check_answers(endpoint)
        if name(options) == FLINK:
            from job.engines.flink import engine as flink_engine

            flink_engine.refuse(options)
        return None
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing" or os.environ.get(library_output.TF_LEVEL) == "0":
        return None
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    # Left at multi_processing, the mode would put Beam's own command in the place of this one.
    direct.direct_running_mode = "in_memory"
    command = shlex.join([sys.executable, "-c", _QUIET_WORKER])
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


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


def ended_on_failure(options: PipelineOptions) -> AbstractContextManager[None]:
    """End the engine's job with the body's error, also where the engine would go on with it."""
    if name(options) != FLINK:
        return nullcontext()
    from job.engines.flink import engine as flink_engine

    return flink_engine.ended_on_failure(options)


def scores_here(options: PipelineOptions) -> bool:
    """Say whether the rows are scored in this process; to be asked before :func:`runner`."""
    from apache_beam.options.pipeline_options import DirectOptions

    mode = options.view_as(DirectOptions).direct_running_mode
    return name(options) == EMBEDDED and mode != "multi_processing"


def told(name: str, error: Exception) -> Exception:
    """Return what to raise for an ``error`` that the runner ``name`` raised and that no worker left."""
    if name == EMBEDDED and _WORKER_DIED in str(error):
        return JobError(
            "a worker process died in mid-run; the kernel kills one when memory is short; run again to "
            "resume, with fewer of them (--direct_num_workers) if it recurs"
        )
    if isinstance(error, JobError) or name == EMBEDDED:
        return error
    return EngineError(
        f"--runner={name} cannot be started, or failed: {one_line(error)}; see more with --debug, or leave "
        f"--runner out to score on this machine"
    )


def tensorflow_threads(options: PipelineOptions) -> int:
    """Return TensorFlow's threads within one operation, so that all workers together use every core once.

    0 leaves the choice to TensorFlow, where this process does not know the workers.
    """
    from apache_beam.options.pipeline_options import DirectOptions

    if name(options) == dataflow.NAME:
        return dataflow.tensorflow_threads(options)
    if name(options) != EMBEDDED:
        return 0
    direct = options.view_as(DirectOptions)
    workers = 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or cores()
    return max(1, cores() // workers)
