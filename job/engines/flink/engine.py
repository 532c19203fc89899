"""A job on Flink: default options, checks before it starts, and cancelling it.

The cluster is asked at ``--flink_master``, the address to which Beam's job server submits. With ``[auto]`` or
``[local]`` there is no cluster to ask: the job server finds or starts one by itself.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.engines.engine import Check, Fit, JobServer, cores
from job.engines.flink import checks as flink_checks
from job.engines.flink import job_server
from job.engines.flink.rest import Cluster, TaskManager
from job.errors import EngineError
from job.terminal import progress

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# By Beam's default the workers end between the stages of a job, and each would load the model again.
_KEEP_WORKERS_MS: Final = 60_000
_ENDS_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.2


class Flink(JobServer):
    """A Flink cluster, behind a job server that runs already or that Beam starts."""

    title: ClassVar[str] = "Flink"

    def fill(self, given: Collection[str], /) -> None:
        """Use the cluster's version and all its free slots, and keep workers between stages."""
        fill(self.options, given)

    def fit(self, key: str = "") -> Fit:
        """Return the fit of a job that can run; :meth:`runner` checks again, right before the job starts."""
        refuse(self.options)
        announce(self.options)
        return super().fit(key)

    def threads(self) -> int:
        """Return each slot's share of its machine's cores."""
        return threads(self.options)

    def runner(self) -> Any:
        """Return the runner of a job that can run; fetch the job server's jar if Beam is to start one."""
        found = super().runner()
        refuse(self.options)
        return found

    def ended_on_failure(self) -> AbstractContextManager[None]:
        """Cancel the job on the cluster."""
        return ended_on_failure(self.options)

    def checks(self) -> list[Check]:
        """Return the checks of Java, the job server and the cluster."""
        return checks(self.options)

    def workers_beside(self) -> str:
        """Return the cluster's address: the job server may be on another machine."""
        cluster = cluster_of(self.options)
        return cluster.url if cluster else ""


def fill(options: PipelineOptions, given: Collection[str]) -> None:
    """Set the options that suit the cluster and are not among the flags ``given``.

    If the cluster does not answer, :func:`refuse` says so later.
    """
    from apache_beam.options.pipeline_options import (
        FlinkRunnerOptions,
        GoogleCloudOptions,
        PortableOptions,
    )

    if "--environment_cache_millis" not in given:
        options.view_as(PortableOptions).environment_cache_millis = _KEEP_WORKERS_MS
    named = options.view_as(GoogleCloudOptions)
    if not named.job_name:
        # The job is found again by this name. Beam keeps the option among Google's.
        named.job_name = f"scoring-job-{uuid.uuid4().hex[:12]}"
    flink = options.view_as(FlinkRunnerOptions)
    cluster = Cluster.at(flink.flink_master)
    if cluster is None:
        return
    with suppress(EngineError):
        told = cluster.overview()
        if "--flink_version" not in given and told.minor in flink.PUBLISHED_FLINK_VERSIONS:
            flink.flink_version = told.minor
        if "--parallelism" not in given and told.free_slots:
            flink.parallelism = told.free_slots


def refuse(options: PipelineOptions) -> None:
    """Refuse a job that cannot run, and fetch the job server's jar if Beam is to start one.

    Raises:
        EngineError: the cluster does not answer or has no room, its version is unknown to Beam, or the jar or
            Java is missing.
    """
    cluster = cluster_of(options)
    found: list[Check] = []
    if cluster is not None:
        found += [flink_checks.version(options, cluster.overview()), flink_checks.room(options, cluster)]
    if job_server.is_started(options):
        found.append(job_server.java(options, ask=False))
        # Last, because it may be a download.
        if not any(check.ok is False for check in found):
            found.append(job_server.jar(options, fetch=True))
    for check in found:
        if check.ok is False:
            raise EngineError(f"--runner=FlinkRunner: {check.told}; {check.fix}")


def announce(options: PipelineOptions) -> None:
    """Say how many slots the job takes; the number does not change while it runs."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    cluster, asked = cluster_of(options), options.view_as(FlinkRunnerOptions).parallelism
    if cluster is not None:
        told = cluster.overview()
        found = f"{told.free_slots} of {told.slots} slots at {cluster.url} are free"
        progress.say(f"Flink: the job takes {asked} slots (--parallelism); {found}")


def threads(options: PipelineOptions) -> int:
    """Return TensorFlow's threads within one operation, so that all slots of a machine use each core once.

    0 if the machines are not known: TensorFlow chooses.

    Raises:
        EngineError: the cluster does not answer.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

    cluster = cluster_of(options)
    asked = options.view_as(FlinkRunnerOptions).parallelism
    if cluster is None:
        # A cluster that the job server starts has a slot per core, and its workers are in this process.
        return max(1, cores() // asked) if asked > 0 else int(job_server.is_started(options))
    if options.view_as(PortableOptions).environment_type == "LOOPBACK":
        return max(1, cores() // asked) if asked > 0 else 1
    return _share(cluster.task_managers(), asked)


def _share(members: Collection[TaskManager], parallelism: int) -> int:
    slots: Counter[str] = Counter()
    for one in members:
        slots[one.host] += one.slots
    shares = []
    for one in members:
        busy = min(slots[one.host], parallelism) if parallelism > 0 else slots[one.host]
        shares.append(max(1, one.cores // max(1, busy)))
    return min(shares, default=0)


@contextmanager
def ended_on_failure(options: PipelineOptions) -> Iterator[None]:
    """Cancel the job that the body has started if the body ends by an error or by Ctrl-C.

    Beam's client and job server may end without telling the cluster. The job would then run on and keep its
    slots.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    cluster, name = cluster_of(options), options.view_as(GoogleCloudOptions).job_name
    if cluster is None or not name:
        yield
        return
    before = {job.id for job in cluster.jobs()}
    try:
        yield
    except BaseException:
        # The body's error is the one to report.
        with suppress(EngineError):
            cancel(cluster, name, before)
        raise


def cancel(cluster: Cluster, name: str, but: Collection[str] = ()) -> list[str]:
    """Cancel the running jobs called ``name`` except those in ``but``; return the ids of those that ended."""
    free = cluster.overview().free_slots
    found = [job.id for job in cluster.jobs() if job.name == name and job.id not in but and not job.has_ended]
    for one in found:
        cluster.cancel(one)
    give_up_s = time.monotonic() + _ENDS_WITHIN_S
    left, waits = set(found), bool(found)
    while waits and time.monotonic() < give_up_s:
        left &= {job.id for job in cluster.jobs() if not job.has_ended}
        # Slots become free a moment after the job has ended.
        waits = bool(left) or cluster.overview().free_slots <= free
        time.sleep(_POLL_S)
    for one in found:
        state = f"does not end: see {cluster.url}" if one in left else "cancelled"
        progress.say(f"Flink job {one} ({name}): {state}")
    return [one for one in found if one not in left]


def checks(options: PipelineOptions) -> list[Check]:
    """Return the checks of Flink for ``job doctor``."""
    started, cluster = job_server.is_started(options), cluster_of(options)
    found = [job_server.java(options, ask=True), job_server.jar(options, fetch=False)] if started else []
    minor = ""
    if cluster is None:
        told = "--flink_master names no address: the job server finds or starts a cluster by itself"
        found.append(Check("Flink", None, told))
    else:
        try:
            found += flink_checks.of_cluster(options, cluster)
            minor = cluster.overview().minor
        except EngineError as e:
            found.append(Check.of_error("Flink", e))
    found.append(job_server.version(options, minor) if started else flink_checks.endpoint(options))
    found.append(flink_checks.staging(options))
    return found


def cluster_of(options: PipelineOptions) -> Cluster | None:
    """Return the cluster that the flags name; ``None`` if only the job server knows it."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    master: Any = options.view_as(FlinkRunnerOptions).flink_master
    return Cluster.at(master)
