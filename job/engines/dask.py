"""Dask: asks the scheduler for the size of the cluster, and cuts the plan to fit it.

Beam's ``DaskRunner`` turns a pipeline into Dask bags: elements stay in the partition in which they were
created, ``Reshuffle`` does nothing, and what a DoFn returns from ``finish_bundle`` is dropped (see
``apache_beam/runners/dask`` of 2.77). So the plan is cut into slices, and each becomes a partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.engines.engine import Check, Engine, Fit, cores
from job.errors import EngineError, one_line
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# Several, so that a faster worker can take more of them.
SLICES_PER_THREAD: Final = 4
_ANSWER_S: Final = 30.0


class Dask(Engine):
    """A Dask cluster that runs already, or one that Beam starts on this machine."""

    title: ClassVar[str] = "Dask"
    submits: ClassVar[bool] = True
    stops_by_mark: ClassVar[bool] = True
    recomputes: ClassVar[bool] = True

    @classmethod
    def learn_flags(cls) -> None:
        """Import the runner, which registers its flags."""
        flags()

    def fill(self, given: Collection[str], /) -> None:
        """Put each slice into a partition of its own; Beam's default is 128 elements in one."""
        del given
        asked = self.options.view_as(flags())
        if not asked.npartitions and not asked.partition_size:
            asked.partition_size = 1

    def fit(self, key: str = "") -> Fit:
        """Return the fit: a few slices for each thread of the cluster."""
        cluster = cluster_of(self.options)
        slices = SLICES_PER_THREAD * cluster.threads
        return Fit(cluster.cores_per_thread, slices, overlaps=False, machine=key)

    def told(self, error: Exception) -> Exception:
        """Return an error that says what to do if several workers died."""
        return killed(error) or super().told(error)

    def checks(self) -> list[Check]:
        """Return the check whether the scheduler answers."""
        cluster = cluster_of(self.options)
        where = address(self.options)
        told = f"the scheduler at {where} answers" if where else "Beam starts a cluster on this machine"
        return [Check(self.title, True, f"{told}; {cluster.threads} worker threads")]

    def ask_workers(self, expression: str, limit_s: float, /) -> list[Mapping[str, Any]]:
        """Return the value of an expression on each worker, and the scheduler's versions."""
        with client(self.options, limit_s) as cluster:
            scheduler = cluster.get_versions(check=False)["scheduler"]["packages"]
            # The scheduler needs no other packages.
            names = ("python", "dask", "distributed", "cloudpickle")
            versions = {name: str(scheduler[name]).removesuffix(".final.0") for name in names}
            answers = cluster.run(eval, expression, on_error="return")
        told: list[Mapping[str, Any]] = [
            {"worker": f"the scheduler {cluster.scheduler.address}", "versions": versions}
        ]
        for worker, answer in answers.items():
            failed = isinstance(answer, BaseException)
            told.append({"worker": worker, "package": one_line(answer)} if failed else answer)
        return told


@dataclass(frozen=True)
class Cluster:
    """The size of a cluster.

    ``threads`` is the sum over all workers; ``cores_per_thread`` is that of the worker with the fewest.
    """

    threads: int
    cores_per_thread: int


def flags() -> type[PipelineOptions]:
    """Import the engine's own flags, which registers them with Beam.

    Raises:
        EngineError: Dask is not installed.
    """
    try:
        from apache_beam.runners.dask.dask_runner import DaskOptions
    except ImportError as e:
        raise EngineError(
            "--runner=DaskRunner needs a package that is not installed: pip install 'scoring-job[dask]'"
        ) from e
    # Its log says that a scheduler is gone; the pipeline's error says it too.
    library_output.hush_all_of("distributed")
    return DaskOptions  # type: ignore[no-any-return]


def cluster_of(options: PipelineOptions) -> Cluster:
    """Ask the scheduler for the size of its cluster.

    Raises:
        EngineError: Dask is not installed, the scheduler does not answer, or it has no workers.
    """
    where = address(options)
    if not where:
        # Beam starts a cluster on this machine.
        return Cluster(cores(), 1)
    try:
        with client(options) as scheduler:
            workers = scheduler.scheduler_info(n_workers=-1)["workers"]
            held: dict[str, int] = scheduler.run(cores)
    except Exception as e:
        raise EngineError(
            f"--runner=DaskRunner: no answer from the scheduler at {where} ({one_line(e)}); start one with "
            f"`dask scheduler`, or correct --dask_client_address"
        ) from e
    if not workers:
        raise EngineError(
            f"--runner=DaskRunner: the scheduler at {where} has no workers; start some with `dask worker`"
        )
    return _cluster(workers, held)


def address(options: PipelineOptions) -> str:
    """Return the scheduler's address, or its file; empty if Beam starts a cluster."""
    asked = options.view_as(flags())
    return str(asked.address or asked.scheduler_file or "")


def client(options: PipelineOptions, timeout_s: float = _ANSWER_S) -> Any:
    """Return a client of the cluster that the flags name, or of one that it starts. The caller closes it."""
    asked = options.view_as(flags()).get_all_options(drop_default=True, current_only=True)
    told = {name: asked[name] for name in ("address", "scheduler_file", "timeout") if name in asked}
    from dask import distributed

    return distributed.Client(**{"timeout": timeout_s, **told}, set_as_default=False)


def killed(error: Exception) -> EngineError | None:
    """Return the error for a task that Dask gave up because its workers died; ``None`` for other errors."""
    # Known by its name, because Dask may not be installed.
    if type(error).__name__ != "KilledWorker":
        return None
    return EngineError(
        "--runner=DaskRunner: workers died one after the other of the same slice of the plan; a nanny ends a "
        "worker at 95% of its memory limit: see its log, give `dask worker` a larger --memory-limit or start "
        "fewer workers on a machine, and run again to resume"
    )


def _cluster(workers: dict[str, Any], held: dict[str, int]) -> Cluster:
    threads = {address: int(worker["nthreads"]) for address, worker in workers.items()}
    on_host: Counter[str] = Counter()
    for address, worker in workers.items():
        on_host[worker["host"]] += threads[address]
    shares = [
        count // on_host[workers[address]["host"]] for address, count in held.items() if address in workers
    ]
    return Cluster(sum(threads.values()), max(1, min(shares, default=1)))
