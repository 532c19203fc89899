"""``python -m benchmarks.scaling``: what a second worker is worth, and what a split costs.

A worker here is a Dask worker process with one thread and one core of its own, as a machine of one core would
be; TensorFlow gets one thread. The model is bound by the processor: dense layers over few columns, so that
files and scheduling hardly count. Both clusters, of one worker and of two, stand all the time and take turns.
What is compared is the time past the first batch: start-up is neither's.

On Flink, where Beam's job server is at hand, the cluster has one core or two; this has never been run.

Beside it stands what the machine itself gives: the same matrix products in one process and in two at once,
without the job. Where two cores share a memory bus, or a neighbour, that is less than 2.

A split's cost is the difference between a night of many tiny shards and one of a tenth of them, by shard.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.cases import TINY, Bench, first_batch_s
from benchmarks.data import Dataset, first
from benchmarks.measure import process, python
from tests.support.dask_cluster import ROOT, Cluster, dask_cluster

LEAST_SPEEDUP: Final = 1.8
# Forty splits: five for each of the eight slices that two threads get.
HEAVY: Final = Dataset("heavy", "columns", shards=40, shard_rows=8_192, width=10)
BATCH_ROWS: Final = 4_096
UNITS: Final = 1_024
LAYERS: Final = 6

_BUILDER: Final = f'''
"""Made by benchmarks.scaling."""
import keras


def build():
    """Return dense layers with {UNITS} units, and weights that are the same each time.

    By seeds of their own: other threads of a worker draw from the process's.
    """
    given = x = keras.Input((10,), name="x")
    for number in range({LAYERS}):
        drawn = keras.initializers.GlorotUniform(seed=number)
        x = keras.layers.Dense({UNITS}, activation="relu", kernel_initializer=drawn)(x)
    drawn = keras.initializers.GlorotUniform(seed={LAYERS})
    return keras.Model(given, keras.layers.Dense(1, kernel_initializer=drawn, name="score")(x))
'''

# The model's matrix products alone, as long as told, by one thread; prints how many there were.
_PRODUCTS: Final = f"""
import os, sys, time
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
x, w = (tf.random.normal(shape) for shape in (({BATCH_ROWS}, {UNITS}), ({UNITS}, {UNITS})))
tf.matmul(x, w).numpy()
print("ready", flush=True)
sys.stdin.readline()
end, done = time.perf_counter() + float(sys.argv[1]), 0
while time.perf_counter() < end:
    tf.matmul(x, w).numpy()
    done += 1
print(done, flush=True)
"""
_PRODUCTS_S: Final = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 where two workers are not worth enough."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Workers and splits.")
    parser.add_argument("--runs", type=int, default=3, help="of each side; the median counts")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the shards, for a quick try")
    parser.add_argument("--only", choices=("workers", "splits"), help="one of the two parts")
    parser.add_argument("--flink_job_server_jar", help="of Beam's Flink runner: measures workers there too")
    parser.add_argument("--root", type=Path, default=Path("data/bench"), help="where data lies")
    asked = parser.parse_args(argv)
    root = asked.root.resolve()
    bench = Bench(root, asked.runs, asked.scale, lambda *_: None)
    kept = True
    with _clusters(root) as clusters:
        if asked.only != "splits":
            kept = _workers(bench, clusters)
            _flink(bench, asked.flink_job_server_jar)
        if asked.only != "workers":
            _splits(bench, clusters[2])
    return 0 if kept else 1


@contextmanager
def _clusters(root: Path) -> Iterator[dict[int, Cluster]]:
    """Clusters of one worker and of two, by their number."""
    library = root / "library"
    library.mkdir(parents=True, exist_ok=True)
    (library / "heavy_model.py").write_text(_BUILDER)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        found = {}
        for count in (1, 2):
            # A new one: what tells of an earlier scheduler would lead to nobody.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root)))
            cluster = stack.enter_context(dask_cluster(folder, workers=0, path=library))
            for number in range(count):
                worker = cluster.add_worker()
                # Before it has threads: those that it starts have the same.
                os.sched_setaffinity(worker.pid, {cores[number % len(cores)]})
            cluster.wait_for(count)
            found[count] = cluster
        yield found


@dataclass(frozen=True)
class Side:
    """How a job is started on an engine; ``env`` is where it runs."""

    flags: tuple[str, ...]
    env: Mapping[str, str]

    @classmethod
    def dask(cls, cluster: Cluster) -> Side:
        """Return the side that scores on a cluster."""
        flags = ("--runner=DaskRunner", f"--dask_client_address={cluster.address}")
        return cls(flags, cluster.env)


@contextmanager
def _on_dask(cluster: Cluster) -> Iterator[Side]:
    yield Side.dask(cluster)


def _workers(bench: Bench, clusters: dict[int, Cluster]) -> bool:
    found = _speedup(bench, {count: partial(_on_dask, cluster) for count, cluster in clusters.items()})
    machine = _machine(bench.runs)
    print(
        f"dask: two workers over one {found:.2f} × (limit {LEAST_SPEEDUP}); the machine alone "
        f"{machine:.2f} ×; load {os.getloadavg()[0]:.1f}"
    )
    return found >= LEAST_SPEEDUP


def _speedup(bench: Bench, sides: Mapping[int, Callable[[], AbstractContextManager[Side]]]) -> float:
    """Return how much faster two workers score than one, past the first batch."""
    shards = bench.data(HEAVY)
    seconds: dict[int, list[float]] = {count: [] for count in sides}
    # Once more than it counts: workers import TensorFlow on their first job.
    for run in range(bench.runs + 1):
        for count, start in sides.items():
            output = bench.output(f"workers-{count}-{run}-{os.getpid()}")
            features = ",".join(f"f{i}" for i in range(HEAVY.width))
            cut = (f"--batch_size={BATCH_ROWS}", f"--split_rows={HEAVY.shard_rows}")
            flags = (f"--features={features}", *cut)
            with start() as side:
                wall_s = _score(shards, "heavy_model:build", output, (*flags, *side.flags), side.env)
            past_s = wall_s - first_batch_s(output)
            print(f"{count} worker(s), run {run}: {wall_s:.1f} s, {past_s:.1f} s past the first batch")
            if run:
                seconds[count].append(past_s)
    return median(seconds[1]) / median(seconds[2])


def _score(shards: Path, model: str, output: Path, flags: Sequence[str], env: Mapping[str, str]) -> float:
    command = ("-m", "job", "score", "--input", str(shards), "--model", model, "--output", str(output))
    with _environment(env):
        return process(python(*command, *flags)).wall_s


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _machine(runs: int) -> float:
    """Return how many more matrix products two processes get done than one, each on a core of its own."""
    rates: dict[int, list[int]] = {1: [], 2: []}
    for _ in range(runs):
        for count in rates:
            rates[count].append(sum(_products(count)))
    return median(rates[2]) / median(rates[1])


def _products(count: int) -> list[int]:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        started = []
        for number in range(count):
            one = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _PRODUCTS, str(_PRODUCTS_S)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            os.sched_setaffinity(one.pid, {cores[number % len(cores)]})
            started.append(one)
        for one in started:
            assert one.stdout is not None  # noqa: S101 - it is a pipe
            one.stdout.readline()
        return [int(one.communicate("go\n")[0]) for one in started]


def _splits(bench: Bench, cluster: Cluster) -> None:
    """Print what a split costs, embedded and on Dask."""
    shards, model = bench.data(TINY), str(bench.model("sequential"))
    count = len(list(shards.glob("*.parquet")))
    few = max(1, count // 10)
    folders = {few: first(shards, few), count: shards}
    sides = {"embedded": Side((), {}), "dask, 2 workers": Side.dask(cluster)}
    walls: dict[tuple[str, int], list[float]] = {(name, n): [] for name in sides for n in folders}
    for run in range(bench.runs):
        for name, side in sides.items():
            for n, folder in folders.items():
                output = bench.output(f"splits-{n}-{run}-{os.getpid()}-{name[:4]}")
                walls[name, n].append(_score(folder, model, output, side.flags, side.env))
    for name in sides:
        little, much = (median(walls[name, n]) for n in folders)
        print(
            f"{name}: {count:,} splits {much:.1f} s, {few:,} splits {little:.1f} s: "
            f"{(much - little) / (count - few) * 1e3:.2f} ms a split; load {os.getloadavg()[0]:.1f}"
        )


def _flink(bench: Bench, jar: str | None) -> None:
    """Print the same of a Flink cluster that has one core, or two, and as many slots in use."""
    if jar is None:
        print("flink: not run (give --flink_job_server_jar)")
        return
    found = _speedup(bench, {count: partial(_on_flink, bench.root, jar, count) for count in (1, 2)})
    print(f"flink: two workers over one {found:.2f} ×; load {os.getloadavg()[0]:.1f}")


@contextmanager
def _on_flink(root: Path, jar: str, cores: int) -> Iterator[Side]:
    from deploy.flink.__main__ import flags
    from deploy.flink.cluster import Cluster as Flink
    from deploy.flink.cluster import free_port

    every, env = os.sched_getaffinity(0), {"PYTHONPATH": os.pathsep.join((str(ROOT), str(root / "library")))}
    with tempfile.TemporaryDirectory(dir=root) as folder:
        flink = Flink(Path(folder))
        try:
            # What is started now has them, the Python workers too; and the job asks Flink how many there are.
            os.sched_setaffinity(0, sorted(every)[:cores])
            with _environment(env):
                flink.up(free_port())
            os.sched_setaffinity(0, every)
            given = (f"--flink_job_server_jar={jar}", f"--parallelism={cores}")
            yield Side((*flags(flink), *given), env)
        finally:
            os.sched_setaffinity(0, every)
            flink.down()


if __name__ == "__main__":
    sys.exit(main())
