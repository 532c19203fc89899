"""Nights on a Dask cluster that was started as the documentation says, under a nanny."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import engine_checks
from tests.support.dask_cluster import Cluster, dask_cluster
from tests.support.nights import Night
from tests.support.store_nights import until

pytestmark = pytest.mark.slow

WITHIN_S = 100.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("cluster"), nanny=True) as one:
        yield one


@pytest.fixture
def engine(cluster: Cluster) -> list[str]:
    return ["--runner=DaskRunner", f"--dask_client_address={cluster.address}"]


@pytest.fixture(scope="module")
def embedded(december: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("embedded")
    engine_checks.here([*december, f"--output={output}"])
    return output


@pytest.mark.parametrize("sharing", ["process", "machine"])
def test_december_is_that_of_the_embedded_engine(
    night: Night, december: list[str], embedded: Path, engine: list[str], sharing: str
) -> None:
    engine_checks.here([*december, f"--output={night.output}", f"--model_sharing={sharing}", *engine])
    told = engine_checks.compared(night.output, embedded, shared=sharing == "machine")
    assert (told["rows_scored"], told["splits"], len(told["workers"])) == (27_110, 31, 2)


@pytest.mark.usefixtures("forks")
def test_a_worker_that_is_killed_costs_nothing_but_time(
    night: Night, cluster: Cluster, engine: list[str]
) -> None:
    def at_work() -> Counter[str]:
        return Counter(one["worker"] for one in engine_checks.receipts_of(night))

    def kill(job: subprocess.Popen[bytes]) -> None:
        until(lambda: len(at_work()) == 2, within_s=30)
        # From when both have the model: about equally.
        before = at_work()
        until(lambda: (at_work() - before).total() >= 10, within_s=30)
        assert min((at_work() - before).values()) >= 4, (before, at_work())
        with cluster.client() as client:
            pids = client.run(os.getpid)
        os.kill(min(pids.values()), signal.SIGKILL)

    told = engine_checks.killed(night, engine, kill, splits=40, survives=True, within_s=WITHIN_S)
    # The nanny may have started another one in time.
    assert len(told["loads"]) == len(told["workers"]) in (2, 3)
    cluster.wait_for(2)
