"""Checks of a Flink cluster against the options of a job. ``flink.engine`` decides when each is made."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from job.engines.engine import Check
from job.engines.flink.rest import Cluster, Overview
from job.errors import EngineError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Losing one TaskManager uses two of them.
_ATTEMPTS: Final = 5
_SHOWN: Final = 3


def of_cluster(options: PipelineOptions, cluster: Cluster) -> list[Check]:
    """Return all checks of a cluster.

    Raises:
        EngineError: it does not answer.
    """
    told = cluster.overview()
    return [
        Check("Flink", True, f"{told.version} at {cluster.url}, {told.task_managers} TaskManagers"),
        version(options, told),
        room(options, cluster),
        restarts(cluster),
        workers(options, cluster),
    ]


def version(options: PipelineOptions, told: Overview) -> Check:
    """Check that Beam has a job server for the cluster's version of Flink, and that the flags choose it."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

    name, asked = "Flink version", options.view_as(FlinkRunnerOptions)
    if asked.flink_job_server_jar or options.view_as(PortableOptions).job_endpoint:
        return Check(name, True, f"{told.version}; the job server is a given one")
    known = asked.PUBLISHED_FLINK_VERSIONS
    if told.minor not in known:
        fix = f"use a cluster of {', '.join(known)}, or give --flink_job_server_jar"
        return Check(name, False, f"the cluster is Flink {told.version}, which this Beam does not know", fix)
    if told.minor != asked.flink_version:
        fix = f"leave --flink_version out, or give {told.minor}"
        return Check(
            name, False, f"--flink_version={asked.flink_version}, and the cluster is {told.version}", fix
        )
    return Check(name, True, f"{told.version}, and Beam's job server for {asked.flink_version}")


def room(options: PipelineOptions, cluster: Cluster) -> Check:
    """Check that the cluster has enough free slots for ``--parallelism``.

    Raises:
        EngineError: the cluster does not answer.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    name, told = "free slots", cluster.overview()
    asked: int = options.view_as(FlinkRunnerOptions).parallelism
    found = f"{told.free_slots} of {told.slots} slots at {cluster.url} are free"
    if cluster.grows() and asked < 1:
        told_so = (
            f"{found}, and it starts TaskManagers as needed, but only as many as a job asks for: one slot"
        )
        return Check(name, False, told_so, "give --parallelism")
    if cluster.grows():
        return Check(name, True, f"{found}; it starts TaskManagers as needed")
    if not told.slots:
        return Check(name, False, f"{cluster.url} has no TaskManagers", "start some")
    if asked > told.slots:
        told_so = f"--parallelism={asked}, and {cluster.url} has {told.slots} slots in all"
        return Check(name, False, told_so, f"give at most {told.slots}, or start TaskManagers")
    if told.free_slots < max(1, asked):
        jobs = [job for job in cluster.jobs() if not job.has_ended]
        held = ", held by " + ", ".join(f"{job.name} ({job.id})" for job in jobs[:_SHOWN]) if jobs else ""
        fix = "start TaskManagers"
        if jobs:
            # One of them may be left from a command that was killed.
            fix = (
                f"wait, or `curl -X PATCH {cluster.url}/jobs/{jobs[0].id}` cancels it, or start TaskManagers"
            )
        # Flink would wait for five minutes and then fail.
        return Check(name, False, f"{found}{held}; the job asks for {max(1, asked)}", fix)
    return Check(name, True, found)


def restarts(cluster: Cluster) -> Check:
    """Check that a job survives a worker that is killed.

    Raises:
        EngineError: the cluster does not answer.
    """
    name, config = "restart strategy", cluster.config()
    kind = config.get("restart-strategy.type") or config.get("restart-strategy") or "none"
    told = f"restart-strategy.type: {kind}"
    fix = f"in Flink's config.yaml set restart-strategy.type: fixed-delay and …attempts: {_ATTEMPTS} or more"
    if kind in ("none", "off", "disable"):
        return Check(name, False, f"{told}: a worker that is killed ends the job", fix)
    if kind in ("fixed-delay", "fixeddelay"):
        attempts = int(config.get("restart-strategy.fixed-delay.attempts", "1"))
        return Check(
            name, attempts >= _ATTEMPTS, f"{told}, {attempts} attempts", fix if attempts < _ATTEMPTS else ""
        )
    return Check(name, True, told)


def workers(options: PipelineOptions, cluster: Cluster) -> Check:
    """Check that each TaskManager gets its own Python workers.

    Raises:
        EngineError: the cluster does not answer.
    """
    from apache_beam.options.pipeline_options import PortableOptions, SetupOptions, WorkerOptions

    name, portable = "Python workers", options.view_as(PortableOptions)
    kind, config = portable.environment_type or "DOCKER", portable.environment_config or ""
    hosts = Counter(one.host for one in cluster.task_managers())
    if kind == "LOOPBACK":
        if away := sorted(host for host in hosts if not is_here(host)):
            told = f"LOOPBACK scores in this process, which the TaskManager at {away[0]} cannot reach"
            return Check(name, False, told, "use EXTERNAL or PROCESS")
        return Check(name, True, "LOOPBACK: in this process")
    if kind == "EXTERNAL":
        try:
            address = pool_address(config)
        except EngineError as e:
            return Check.of_error(name, e)
        return _pool(address or portable.lookup_environment_option("external_service_address", ""), hosts)
    image = config or options.view_as(WorkerOptions).sdk_container_image
    if kind == "DOCKER" and not (image or options.view_as(SetupOptions).setup_file):
        told = (
            "--environment_type is DOCKER by default, with Beam's image, which has neither this job nor Keras"
        )
        return Check(name, False, told, "give --environment_config=IMAGE, or another --environment_type")
    return Check(name, True, f"{kind} {config}".strip())


def pool_address(config: str) -> str:
    """Return the address of a worker pool from ``--environment_config``, which may be JSON.

    Raises:
        EngineError: it is neither an address nor JSON with a url.
    """
    try:
        return str(json.loads(config)["url"]) if config.startswith("{") else config
    except (ValueError, KeyError) as e:
        raise EngineError(f"--environment_config={config}: no JSON with a url; correct it") from e


def _pool(address: str, hosts: Counter[str]) -> Check:
    name, host = "Python workers", address.rpartition(":")[0]
    # A loopback address is another machine for each TaskManager's machine.
    shared = max(hosts.values(), default=0) if is_loopback(host) else hosts.total()
    if shared > 1:
        told = (
            f"{shared} TaskManagers share the worker pool at {address}: they count their workers alike, so "
            f"one ends the other's and the job hangs"
        )
        return Check(
            name, False, told, "a pool beside each TaskManager, PROCESS, or one TaskManager of more slots"
        )
    return Check(name, True, f"EXTERNAL, the pool at {address} as each TaskManager sees it")


def endpoint(options: PipelineOptions) -> Check:
    """Return the check of a job server that runs already, whose version is not known."""
    from apache_beam.options.pipeline_options import PortableOptions
    from apache_beam.version import __version__ as beam

    at = options.view_as(PortableOptions).job_endpoint
    told = f"at {at}; it does not tell its version, which must be Beam {beam} for the cluster's Flink"
    return Check("job server version", None, told)


def staging(options: PipelineOptions) -> Check:
    """Check the folder in which the job server keeps staged files."""
    from apache_beam.options.pipeline_options import JobServerOptions

    name, folder = "staging folder", options.view_as(JobServerOptions).artifacts_dir
    if not folder:
        return Check(name, True, "a temporary one beside the job server")
    if "://" in folder:
        return Check(name, None, f"{folder}: not looked at")
    if Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Check(name, True, folder)
    told = f"--artifacts_dir={folder}: no folder that can be written to"
    return Check(name, False, told, "make it, or leave the flag out")


def is_loopback(host: str) -> bool:
    """Say whether a host is a loopback address or its name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_here(host: str) -> bool:
    """Say whether a host is this machine."""
    if is_loopback(host) or host in (socket.gethostname(), socket.getfqdn()):
        return True
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        try:
            # Only an address of this machine can be bound.
            one.bind((host, 0))
        except OSError:
            return False
    return True
