"""How long an eagerly built model takes to predict, by the way it is asked, and what a loop leaves behind.

    python -m benchmarks.eager

Every way runs in a process of its own, twice, the second time in reverse order; the better
median counts, so that a busy machine is not taken for a slow call. Each process checks
that its predictions are those of ``model(x)`` before its time is believed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

ROWS = 1000
SECONDS = 3.0
# Fewer say nothing about what a loop leaves behind.
CALLS = 300
WARM_CALLS = 20
TOLERANCE = 1e-5


NAMES = (
    "predict(x)",
    "predict(x, batch_size=1000)",
    "predict_on_batch(x)",
    "model(x)",
    "predict_on_batch(x), run_functions_eagerly",
    "predict_on_batch(x), jit_compile=True",
    "predict_on_batch(x), jit_compile=True, a new size each call",
)


@dataclass(frozen=True)
class Timing:
    """One way of predicting: ``call_ms`` is a median, ``grown_kib`` the peak memory added per 1,000 calls."""

    way: str
    first_ms: float
    call_ms: float
    grown_kib: float
    calls: int


def ways() -> dict[str, Callable[[], Callable[[], object]]]:
    """Return, by name, what prepares one way of predicting ``ROWS`` rows and hands back the call to time."""
    import keras
    import tensorflow as tf

    from models import sequential

    rows = np.random.default_rng(0).standard_normal((ROWS, 10), dtype=np.float32)

    def built(**compiled: object) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = sequential.build()
        if compiled:
            model.compile(**compiled)
        return model

    def of(model: keras.Model) -> Callable[[], object]:
        return lambda: model.predict_on_batch(rows)

    def direct() -> Callable[[], object]:
        model = built()
        return lambda: model(rows, training=False)

    def predict(batch_size: int | None) -> Callable[[], Callable[[], object]]:
        def prepared() -> Callable[[], object]:
            model = built()
            return lambda: model.predict(rows, batch_size=batch_size, verbose=0)

        return prepared

    def functions_eagerly() -> Callable[[], object]:
        tf.config.run_functions_eagerly(True)
        return of(built())

    def new_sizes() -> Callable[[], object]:
        model = built(jit_compile=True)
        sizes = iter(range(ROWS, 0, -1))
        return lambda: model.predict_on_batch(rows[: next(sizes)])

    prepared = (
        predict(None),
        predict(ROWS),
        lambda: of(built()),
        direct,
        functions_eagerly,
        lambda: of(built(jit_compile=True)),
        new_sizes,
    )
    return dict(zip(NAMES, prepared, strict=True))


def measure(way: str) -> Timing:
    """Time one way in this process for ``SECONDS`` seconds and at least ``CALLS`` calls.

    Raises:
        RuntimeError: it does not predict what ``model(x)`` does.
    """
    prepared = ways()
    expected = np.asarray(prepared["model(x)"]()())
    call = prepared[way]()
    started = time.perf_counter()
    found = np.asarray(call())
    first_s = time.perf_counter() - started
    if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise RuntimeError(
            f"{way} is {np.abs(found - expected).max()} away from model(x); times mean nothing"
        )
    for _ in range(WARM_CALLS):
        call()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken_s: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(taken_s) < CALLS:
        started = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - started)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    return Timing(
        way, first_s * 1e3, statistics.median(taken_s) * 1e3, grown_kib * 1e3 / len(taken_s), len(taken_s)
    )


def _in_own_process(way: str) -> Timing:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.eager", "--way", way],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def table() -> str:
    """Measure every way and return the table that ``docs/eager.md`` shows."""
    rounds = [_in_own_process(way) for way in (*NAMES, *reversed(NAMES))]
    best = {way: min((one for one in rounds if one.way == way), key=lambda one: one.call_ms) for way in NAMES}
    lines = [
        f"{os.cpu_count()} cores, {ROWS:,} rows of 10 numbers, `models.sequential`",
        "",
        "| call | first, ms | then, ms | thousand rows/s | KiB grown in 1,000 calls |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{one.way}` | {one.first_ms:.0f} | {one.call_ms:.2f} "
        f"| {ROWS / one.call_ms:,.0f} | {one.grown_kib:,.0f} |"
        for one in best.values()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run ``python -m benchmarks.eager``."""
    parse = argparse.ArgumentParser(prog="python -m benchmarks.eager", description=__doc__)
    parse.add_argument("--way", choices=NAMES, help="measure one way in this process, and print JSON")
    asked = parse.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(json.dumps(asdict(measure(asked.way))) if asked.way else table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
