"""The job on a real Dask cluster: a scheduler and workers as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.engines import dask
from tests.support.dask_cluster import ROOT, Cluster, dask_cluster
from tests.support.engine_checks import receipts_of as receipts
from tests.support.jobs import Done, Forked, Job, Zygote
from tests.support.nights import Night, dense, features, matrix, saved
from tests.support.store_nights import until

# Takes a quarter of a second for each batch, so that a worker can be killed in the middle of a night.
SLOWLY = """
import time
import keras
import tensorflow as tf

class Slowly(keras.layers.Layer):
    def call(self, x):
        y = tf.py_function(lambda v: (time.sleep(0.25), v)[1], [x], x.dtype)
        y.set_shape(x.shape)
        return y

def build():
    # Not by the common generators: other threads of a worker may draw from them at the same time.
    seeded = keras.initializers.GlorotUniform(seed=1)
    given = keras.Input((4,), name="x")
    return keras.Model(given, keras.layers.Dense(1, name="score", kernel_initializer=seeded)(Slowly()(given)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    (folder / "slowly_built.py").write_text(SLOWLY)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, library: Path, warm: Zygote) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("cluster"), path=library, warm=warm) as one:
        yield one


def started(night: Night, args: list[str], cluster: Cluster, warm: Zygote, command: str = "score") -> Forked:
    """The command, on its way."""
    engine = (f"--dask_client_address={cluster.address}", "--dask_connection_timeout=20")
    log, out = str(night.folder / "log"), str(night.folder / "out.log")
    line = (command, *args, "--runner=DaskRunner", *engine)
    return warm.process(Job(line, log, out=out, module="job", path=str(cluster.path or "")))


def run(night: Night, args: list[str], cluster: Cluster, warm: Zygote) -> Done:
    return started(night, args, cluster, warm).done


def report(night: Night) -> dict[str, Any]:
    return dict(json.loads((night.output / "_report.json").read_text()))


def check_rows(night: Night, model: Any, shards: list[pa.Table]) -> None:
    """Each row once, and as one ``Model.predict`` has it."""
    scored, rows = night.scored(), pa.concat_tables(shards)
    assert scored["id"].to_pylist() == rows["id"].to_pylist()
    expected = model.predict(matrix(rows), verbose=0, batch_size=8192)[:, 0]
    np.testing.assert_allclose(scored.column(1).to_numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_four_million_rows_are_those_of_the_embedded_engine(
    night: Night, cluster: Cluster, warm: Zygote
) -> None:
    shards = [features(500_000, seed=day, first_id=day * 500_000) for day in range(8)]
    for day, table in enumerate(shards):
        night.shard(f"part-{day}", table, group_rows=50_000)
    model = dense()
    path = saved(model, night.folder / "m.keras")
    flags = ("--keys=id", "--split_rows=100000", "--batch_size=8192")
    job, per_worker = started(night, night.args(path, *flags), cluster, warm), Counter[str]()
    while job.poll() is None:
        with contextlib.suppress(OSError):
            # Gone, when the night is published.
            per_worker = Counter(receipt["worker"] for receipt in receipts(night)) or per_worker
        time.sleep(0.05)
    assert job.wait() == 0, job.done.text
    told = report(night)
    # Both were at work, and the slower one had its share: a quarter, where it was the last to have the model.
    assert len(per_worker) == 2
    assert min(per_worker.values()) >= per_worker.total() // 4 >= 5, per_worker
    # Each process has loaded it once, though the engine sets a DoFn up for every partition.
    assert len(told["loads"]) == len(told["workers"]) == 2
    assert (told["rows_scored"], told["splits"]) == (4_000_000, 40)
    # Equal batches, so equal to the bit.
    night.check_as_embedded(path, *flags)
    check_rows(night, model, shards)


def slow_flags() -> list[str]:
    return ["--keys=id", "--features=f0,f1,f2,f3", "--split_rows=1000", "--batch_size=1000"]


def slow_night(night: Night, splits: int = 24) -> list[str]:
    night.shard("part", features(splits * 1000), group_rows=1000)
    return night.args("slowly_built:build", *slow_flags())


def check_slow_night(night: Night, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(library)
    import slowly_built  # type: ignore[import-not-found]

    check_rows(night, slowly_built.build(), [features(24_000)])
    assert not (night.output / "_staging").exists()


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_job_and_the_same_command_completes_the_night(
    night: Night,
    tmp_path: Path,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster,
    warm: Zygote,
) -> None:
    args = slow_night(night)
    with dask_cluster(tmp_path / "cluster", path=library, warm=warm) as doomed:
        job = started(night, args, doomed, warm)
        until(lambda: len(receipts(night)) >= 4 or job.poll() is not None, within_s=100)
        assert job.poll() is None, job.done.text
        doomed.scheduler.kill()
        assert job.wait(60) in (1, 7), job.done.text
    said = job.done.text
    assert "Traceback" not in said, said
    assert sum(line.startswith("error: ") for line in said.splitlines()) == 1
    assert not (night.output / "_SUCCESS").exists()
    # Its workers may still finish the splits that they are at.
    held = len(receipts(night))
    done = run(night, args, cluster, warm)
    assert done.code == 0, done.text
    assert report(night)["splits_reused"] >= held > 0
    check_slow_night(night, library, monkeypatch)


def at_work(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


def stopped(night: Night, job: Forked, cluster: Cluster) -> int:
    """Press Ctrl-C in mid-run, see that the workers stop, and return how many splits were finished before."""
    until(lambda: len(receipts(night)) >= 2 or job.poll() is not None, within_s=100)
    assert job.poll() is None, job.done.text
    os.kill(job.pid, signal.SIGINT)
    assert job.wait(30) == 130, job.done.text
    assert "stopping run" in job.done.text
    held = len(receipts(night))
    with cluster.client() as client:
        # The scheduler has forgotten them by now.
        until(lambda: not any(client.run(at_work).values()), within_s=20)
    # Each worker has ended the split that it was at, and taken no other.
    assert 2 <= len(receipts(night)) <= held + 2 < 12
    return held


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_of_a_backfill_and_the_same_command_goes_on(
    night: Night, cluster: Cluster, warm: Zygote
) -> None:
    for day in ("2026-03-01", "2026-03-02"):
        night.shard(f"{day}/part", features(24_000), group_rows=1000)
    paths = [f"--input={night.input}/{{ds}}", f"--output={night.output}/{{ds}}", "--model=slowly_built:build"]
    args = [*paths, "--start=2026-03-01", "--end=2026-03-02", *slow_flags()]
    stopped(night, started(night, args, cluster, warm, "backfill"), cluster)
    assert not list(night.output.glob("*/_SUCCESS"))
    job = started(night, args, cluster, warm, "backfill")
    assert job.wait(100) == 0, job.done.text
    assert len(list(night.output.glob("*/_SUCCESS"))) == 2
    assert not list(night.output.glob("*/_staging"))


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_same_command_goes_on(
    night: Night, cluster: Cluster, warm: Zygote
) -> None:
    # Slices of six splits: two are under way, and Dask ends no task that has begun.
    args = slow_night(night, splits=48)
    held = stopped(night, started(night, args, cluster, warm), cluster)
    assert not (night.output / "_SUCCESS").exists()
    done = run(night, args, cluster, warm)
    assert done.code == 0, done.text
    told = report(night)
    assert told["splits"] == 48
    assert held <= told["splits_reused"] <= held + 2
    assert not (night.output / "_staging").exists()


def test_a_scheduler_that_does_not_answer_is_told_in_one_line(night: Night) -> None:
    night.shard("part", features(100))
    args = night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")
    start_s = time.monotonic()
    engine = ["--runner=dask", "--dask_client_address=tcp://127.0.0.1:9", "--dask_connection_timeout=2"]
    # With its own imports: what these have to say is not heard either.
    done = subprocess.run(
        [sys.executable, "-m", "job", "score", *args, *engine],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert time.monotonic() - start_s < 60
    assert done.returncode == 7
    (line,) = done.stderr.splitlines()
    assert "tcp://127.0.0.1:9" in line
    assert "dask scheduler" in line
    assert not (night.output / "_SUCCESS").exists()


def test_a_cluster_without_workers_is_told(night: Night, tmp_path: Path, warm: Zygote) -> None:
    night.shard("part", features(100))
    args = night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")
    with dask_cluster(tmp_path / "cluster", workers=0, warm=warm) as empty:
        done = run(night, args, empty, warm)
    assert done.code == 7
    assert "has no workers" in done.text


def test_without_dask_the_extra_is_named(night: Night) -> None:
    night.shard("part", features(100))
    args = night.args(saved(dense(), night.folder / "m.keras"), "--keys=id", "--runner=DaskRunner")
    hidden = (
        "import sys; sys.modules['dask'] = None; from job.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, "score", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, "scoring-job[dask]" in done.stderr) == (7, True), done.stderr


@pytest.mark.parametrize(
    ("workers", "cores", "threads", "cores_per_thread"),
    [
        # Two processes share a machine of eight cores; another has two cores for one thread.
        ([("a", 2), ("a", 2), ("b", 1)], [8, 8, 2], 5, 2),
        ([("a", 1), ("a", 1)], [2, 2], 2, 1),
        ([("a", 1)], [16], 1, 16),
        # More threads than cores still get one each.
        ([("a", 4), ("a", 4)], [2, 2], 8, 1),
    ],
)
def test_cores_are_shared_by_all_threads_of_a_machine(
    workers: list[tuple[str, int]], cores: list[int], threads: int, cores_per_thread: int
) -> None:
    addresses = [f"tcp://{host}:{port}" for port, (host, _) in enumerate(workers)]
    told = {
        address: {"host": host, "nthreads": count}
        for address, (host, count) in zip(addresses, workers, strict=True)
    }
    found = dask._cluster(told, dict(zip(addresses, cores, strict=True)))
    assert found == dask.Cluster(threads, cores_per_thread)
