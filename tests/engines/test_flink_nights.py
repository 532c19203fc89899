"""Nights on a real Flink cluster, while its processes are killed; ``make flink-test`` runs them.

They need the jar of Beam's job server for Flink. The same functions run on Beam's own job service in
tests/engines/test_boot.py, with the Python worker that the TaskManagers here start, and on Dask in
tests/engines/test_dask_nights.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.flink import jobserver
from deploy.flink.__main__ import flags
from deploy.flink.cluster import Cluster
from deploy.flink.distribution import DeployError
from tests.support import engine_checks
from tests.support.nights import Night, dense, features, saved
from tests.support.servers.flink import flink_cluster
from tests.support.store_nights import until
from tests.support.worker_pool import free_port, worker_pool

WITHIN_S = 280.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


# Asked for before all that takes time.
@pytest.fixture(scope="session")
def jar() -> Path:
    try:
        return jobserver.found(fetch=False)
    except DeployError as e:
        # Also where every test counts: no registry of ours has it.
        pytest.skip(f"NOT RUN: {e}")


@pytest.fixture(scope="module")
def running(jar: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink")) as one:
        yield one


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """The same, whatever the test before has killed."""
    running.up()
    until(lambda: running.rest().overview().free_slots == 4, within_s=90)
    return running


@pytest.fixture
def engine(cluster: Cluster, jar: Path) -> list[str]:
    return [*flags(cluster), f"--flink_job_server_jar={jar}"]


@contextlib.contextmanager
def environment(kind: str, cluster: Cluster, folder: Path) -> Iterator[tuple[list[str], int]]:
    """Where the Python workers come from, as flags, and how many processes they are."""
    if kind == "PROCESS":
        yield (
            [f"--environment_config={json.dumps({'command': str(cluster.worker)})}"],
            len(cluster.task_managers()),
        )
    elif kind == "LOOPBACK":
        yield [], 1
    else:
        # A pool is for one TaskManager: two end each other's workers.
        cluster.kill("taskmanager2")
        until(lambda: cluster.rest().overview().slots == 2, within_s=90)
        port = free_port()
        with worker_pool(folder, port):
            yield [f"--environment_config=localhost:{port}"], 1


@pytest.mark.parametrize("kind", ["PROCESS", "LOOPBACK", "EXTERNAL"])
def test_december_is_that_of_the_embedded_engine(
    jar: Path, december: list[str], cluster: Cluster, tmp_path: Path, kind: str
) -> None:
    with environment(kind, cluster, tmp_path) as (more, workers):
        where = [one for one in flags(cluster) if not one.startswith("--environment_")]
        engine = [*where, f"--flink_job_server_jar={jar}", f"--environment_type={kind}", *more]
        told = engine_checks.as_embedded(december, tmp_path, engine, WITHIN_S)
    assert (told["rows_scored"], told["splits"], len(told["workers"])) == (27_110, 31, workers)


def test_four_million_rows_are_those_of_the_embedded_engine(night: Night, engine: list[str]) -> None:
    for day in range(8):
        table = features(500_000, seed=day, first_id=day * 500_000)
        night.shard(f"part-{day}", table, group_rows=50_000)
    model = saved(dense(), night.folder / "m.keras")
    args = [f"--input={night.input}", f"--model={model}", "--keys=id"]
    args += ["--split_rows=100000", "--batch_size=8192"]
    told = engine_checks.as_embedded(args, night.folder, engine, WITHIN_S)
    assert (told["rows_scored"], told["splits"], len(told["workers"])) == (4_000_000, 40, 2)


def test_a_task_manager_that_is_killed_costs_nothing_but_time(
    night: Night, cluster: Cluster, engine: list[str]
) -> None:
    def kill(job: subprocess.Popen[bytes]) -> None:
        cluster.kill("taskmanager1")
        cluster.up()

    engine_checks.killed(night, engine, kill, splits=96, survives=True, within_s=WITHIN_S)


def test_a_python_worker_that_is_killed_costs_nothing_but_time(
    night: Night, cluster: Cluster, engine: list[str]
) -> None:
    def kill(job: subprocess.Popen[bytes]) -> None:
        workers = cluster.python_workers()
        # One beside each TaskManager, at the same time.
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGKILL)

    engine_checks.killed(night, engine, kill, splits=96, survives=True, within_s=WITHIN_S)


def test_a_job_server_that_is_killed_ends_the_command_and_frees_the_slots(
    night: Night, cluster: Cluster, engine: list[str], jar: Path
) -> None:
    def kill(job: subprocess.Popen[bytes]) -> None:
        (server,) = (
            one for one in psutil.Process(job.pid).children(recursive=True) if str(jar) in one.cmdline()
        )
        server.send_signal(signal.SIGKILL)

    engine_checks.killed(night, engine, kill, splits=96, survives=False, within_s=WITHIN_S)
    assert all(job.has_ended for job in cluster.rest().jobs())


def test_ctrl_c_frees_the_slots(night: Night, cluster: Cluster, engine: list[str]) -> None:
    night.shard("part", features(96_000), group_rows=1000)
    slow = ["--keys=id", "--features=f0,f1,f2,f3", "--split_rows=1000", "--batch_size=1000"]
    log = night.folder / "log"
    with engine_checks.start([*night.args("tests.support.slow_model:build", *slow), *engine], log) as job:
        until(lambda: engine_checks.receipts(night) >= 5, within_s=WITHIN_S)
        job.send_signal(signal.SIGINT)
        assert job.wait(60) != 0
    until(lambda: cluster.rest().overview().free_slots == 4, within_s=30)
    assert not (night.output / "_SUCCESS").exists()
