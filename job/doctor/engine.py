"""The engine that was chosen, as ``job doctor`` sees it from the launching machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement

from job import clusters, engines, flink, flink_checks, host, ports, prism
from job.checks import Check
from job.errors import EngineError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

ANSWER_S: Final = 5.0
_DISTRIBUTION: Final = "scoring-job"
_ENVIRONMENTS: Final = {"EXTERNAL": "worker pool", "PROCESS": "workers' command"}


def this_machine(extras: Sequence[str]) -> Check:
    """Say what runs here, and whether it is what the package asks for."""
    told = f"{engines.cores()} cores; {', '.join(' '.join(one) for one in host.versions())}"
    try:
        wrong = _unmet(extras)
    except PackageNotFoundError:
        # Run from its sources, it does not say what it needs.
        return Check("this machine", None, f"{told}; {_DISTRIBUTION} is not installed", "pip install it")
    if wrong:
        fix = f"pip install '{_DISTRIBUTION}{'[' + ','.join(extras) + ']' if extras else ''}'"
        return Check("this machine", False, f"{told}; but {', '.join(wrong)}", fix)
    return Check("this machine", True, told)


def _unmet(extras: Sequence[str]) -> list[str]:
    unmet = []
    for line in requires(_DISTRIBUTION) or ():
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = ""
        if not found or not wanted.specifier.contains(found, prereleases=True):
            unmet.append(f"{wanted.name} is {found or 'not installed'}, and must be {wanted.specifier}")
    return unmet


def runner(options: PipelineOptions | None) -> Check:
    """Say which engine it is; ``None`` stands for the default."""
    if options is None:
        told = f"{engines.EMBEDDED}, {engines.cores()} threads of this process"
        return Check("runner", True, told)
    name = engines.name(options)
    if name != engines.EMBEDDED:
        return Check("runner", True, name)
    from apache_beam.options.pipeline_options import DirectOptions

    direct = options.view_as(DirectOptions)
    told = f"{name}, {direct.direct_num_workers} workers by {direct.direct_running_mode}"
    return Check("runner", True, told)


def questions(options: PipelineOptions) -> dict[str, Callable[[], list[Check]]]:
    """Return what there is to look at for this engine, by name; each may take a while."""
    name = engines.name(options)
    found: dict[str, Callable[[], list[Check]]] = {}
    if name == engines.DASK:
        found["Dask"] = lambda: [_dask(options)]
    if name == engines.PRISM:
        found["Prism"] = lambda: [_prism(options)]
    if name == engines.FLINK:
        found["Flink"] = lambda: flink.checks(options)
    endpoint = _portable(options).job_endpoint
    if endpoint and endpoint != "embed":
        found["job endpoint"] = lambda: [_endpoint(endpoint)]
    kind = _portable(options).environment_type
    if kind and kind != "LOOPBACK":
        found[_ENVIRONMENTS.get(kind, "workers' environment")] = lambda: [_environment(options, kind)]
    return found


def temporary_places(options: PipelineOptions) -> list[tuple[str, str]]:
    """Return the flags that name a place for the engine's own files, with their values."""
    given = options.get_all_options(drop_default=True)
    return [
        (f"--{name}", str(given[name])) for name in ("temp_location", "staging_location") if name in given
    ]


def log_of(options: PipelineOptions | None) -> str:
    """Return where the workers' own words are."""
    if options is None or not (config := _portable(options).environment_config):
        return "the log of the engine and of its workers"
    if _portable(options).environment_type == "EXTERNAL":
        return f"the log of the worker pool at {config}, whose `python` must import apache_beam"
    return "the log of the engine and of its workers"


def _portable(options: PipelineOptions) -> Any:
    from apache_beam.options.pipeline_options import PortableOptions

    return options.view_as(PortableOptions)


def _dask(options: PipelineOptions) -> Check:
    cluster = clusters.look(options)
    where = clusters.address(options)
    told = f"the scheduler at {where} answers" if where else "Beam starts a cluster on this machine"
    return Check("Dask", True, f"{told}; {cluster.threads} worker threads")


def _prism(options: PipelineOptions) -> Check:
    found = prism.program(options)
    if not found:
        told = "Beam has no program of Prism here, and would download one from github.com"
        return Check("Prism", None, told, f"`{prism.how_to_build()}`, and --prism_location=$PWD/prism")
    return Check("Prism", True, found)


def _endpoint(endpoint: str) -> Check:
    ports.check_grpc(endpoint, ANSWER_S)
    return Check("job endpoint", True, f"{endpoint} answers")


def _environment(options: PipelineOptions, kind: str) -> Check:
    config = _portable(options).environment_config or ""
    # Beside the workers' engine, not beside the job server, which may be two machines.
    where = _portable(options).job_endpoint
    if engines.name(options) == engines.FLINK:
        cluster = flink.cluster_of(options)
        where = cluster.url if cluster else ""
    here = not where or ports.is_here(where)
    if kind == "EXTERNAL":
        return _pool(flink_checks.pool_address(config), here=here)
    if kind == "PROCESS":
        return _command(config, here=here)
    told = f"--environment_type={kind}: the engine starts its workers itself"
    return Check("workers' environment", None, told, "see below what they answer")


def _pool(address: str, *, here: bool) -> Check:
    name = _ENVIRONMENTS["EXTERNAL"]
    if not here and ports.is_here(address):
        told = f"{address} is beside each of the engine's workers, and not here"
        return Check(name, None, told, "see below what they answer")
    ports.check_grpc(address, ANSWER_S)
    if not ports.is_here(address):
        return Check(
            name, True, f"{address} answers; whether it is alone on its port is seen only on its machine"
        )
    listening = ports.listeners(ports.split(address)[1])
    if len(listening) > 1:
        told = f"{address} is shared by {', '.join(listening)}; which of them gets a job is left to chance"
        return Check(name, False, told, "end all but one, or give each a port")
    return Check(name, True, f"{address} answers, {', '.join(listening)} alone")


def _command(config: str, *, here: bool) -> Check:
    name = _ENVIRONMENTS["PROCESS"]
    try:
        command = str(json.loads(config)["command"]) if config.startswith("{") else config
    except (ValueError, KeyError) as e:
        raise EngineError(f"--environment_config={config}: no JSON with a command; correct it") from e
    if not here:
        told = f"{command} is started on the engine's machines"
        return Check(name, None, told, "see below what they answer")
    program = command if os.path.isabs(command) else shutil.which(command)
    if not program or not os.access(program, os.X_OK):
        raise EngineError(f"--environment_config: {command} cannot be started here; correct the path")
    return Check(name, True, f"{program} can be started")
