"""What is measured, and the limit each number must keep. A case returns findings; ``run.py`` shows them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.compare import equal_outputs
from benchmarks.data import Dataset, ensure, first, warm
from benchmarks.measure import Measured, alternate, median_peak_bytes, median_wall_s, process, python

ROWS: Final = Dataset("rows", "columns", shards=80, shard_rows=500_000, width=10)
VECTORS: Final = Dataset("vectors", "vectors", shards=8, shard_rows=25_000, width=784)
TINY: Final = Dataset("tiny", "columns", shards=20_000, shard_rows=50, width=10)

# The loop's best batch for each model; benchmarks/reference.py tells how they were found.
SEQUENTIAL_BATCH_ROWS: Final = 16_384
CLASSIFIER_BATCH_ROWS: Final = 4_096

OVERHEAD: Final = 1.25
MEMORY_GROWTH: Final = 1.1
MEMORY_GB: Final = 1.2
HELP_S: Final = 0.5
FIRST_BATCH: Final = 1.3
PROTOCOL: Final = 1.03
NOOP_S: Final = 2.0
# To read 20,000 receipts: what resuming costs, whatever the number of rows behind them.
RECEIPTS_S: Final = 5.0
# Of the last shards' cost over the first ones'; 1 is a straight line, the rest is noise.
SHARD_GROWTH: Final = 1.5

# The least that any scoring process must do before its first batch, by the wall clock when it is done.
UNAVOIDABLE: Final = """
import sys, time
import tensorflow, apache_beam, keras
keras.models.load_model(sys.argv[1])
print(time.time())
"""


class ReportError(Exception):
    """The job's report lacks a number that a case reads."""


@dataclass(frozen=True)
class Finding:
    """One number beside its limit; ``None`` says that the number is shown and not judged.

    ``spread`` is the slowest run over the fastest of the measurement behind it.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None
    spread: float = 1.0
    detail: str = ""

    @property
    def kept(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.value <= self.limit


def ignore(side: str, measured: Measured) -> None:
    """Take no note of a run."""


@dataclass(frozen=True)
class Bench:
    """Where to work, how often, at which size, and where each measurement is told."""

    root: Path
    runs: int
    scale: float
    record: Callable[[str, int, Measured], None]

    def data(self, dataset: Dataset) -> Path:
        """Return the folder of ``dataset`` at this bench's scale, made where needed and read once."""
        scaled = replace(dataset, shards=max(1, round(dataset.shards * self.scale)))
        folder = ensure(scaled, self.root)
        warm(folder.glob("*.parquet"))
        return folder

    def model(self, name: str) -> Path:
        """Return ``NAME.keras``, trained where it is not there yet, in a process of its own."""
        path = self.root / "models" / f"{name}.keras"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            process(python("-m", "models", "train", name, "--output", str(path), "--epochs", "1"))
        return path

    def output(self, side: str) -> Path:
        """Return the folder that ``side`` writes."""
        return self.root / "out" / side

    def job(
        self, shards: Path, model: Path, side: str = "job", program: str = "job"
    ) -> Callable[[], list[str]]:
        """Return how to start the job with its defaults, onto an empty output."""
        output = self.output(side)

        def prepare() -> list[str]:
            shutil.rmtree(output, ignore_errors=True)
            pattern = str(shards / "*.parquet")
            flags = ["--input", pattern, "--model", str(model), "--output", str(output)]
            return python("-m", program, "score", *flags)

        return prepare

    def loop(self, shards: Path, model: Path, batch_rows: int, side: str = "loop") -> Callable[[], list[str]]:
        """Return how to start the loop, onto an empty output."""
        output = self.output(side)

        def prepare() -> list[str]:
            shutil.rmtree(output, ignore_errors=True)
            flags = ["--input", str(shards / "*.parquet"), "--model", str(model), "--output", str(output)]
            return python("-m", "benchmarks.reference", *flags, "--batch_size", str(batch_rows))

        return prepare

    def alternate(
        self, sides: Mapping[str, Callable[[], Sequence[str]]], note: Callable[[str, Measured], None] = ignore
    ) -> dict[str, list[Measured]]:
        """Measure ``sides`` in turns; ``note`` sees each run's output before the next one clears it."""

        def told(side: str, run: int, measured: Measured) -> None:
            self.record(side, run, measured)
            note(side, measured)

        return alternate(sides, self.runs, told)


def rows40m(bench: Bench) -> list[Finding]:
    """40 million rows of ten scalars: the job against the loop."""
    return _against_loop(bench, ROWS, "sequential", SEQUENTIAL_BATCH_ROWS)


def protocol(bench: Bench) -> list[Finding]:
    """What receipts, checksums, flushing and the recount cost: the job against itself without them."""
    shards, model = bench.data(ROWS), bench.model("sequential")
    safe, unsafe = bench.job(shards, model), bench.job(shards, model, "unsafe", "benchmarks.unsafe")
    runs = bench.alternate({"job": safe, "unsafe": unsafe})
    ratio = median_wall_s(runs["job"]) / median_wall_s(runs["unsafe"])
    return [Finding("time, over the job without its protocol", ratio, "×", PROTOCOL, _spread(runs["job"]))]


def resume(bench: Bench) -> list[Finding]:
    """The same command when every split has its receipt: against the time that scoring them took."""
    shards, model = bench.data(TINY), bench.model("sequential")
    scored, read_s, resumed, again = [], list[float](), [], []
    for run in range(bench.runs):
        command = bench.job(shards, model)()
        # Scores everything, and dies where it would publish.
        scored.append(process(bench.job(shards, model, program="benchmarks.unpublished")()))
        bench.record("scored", run, scored[-1])
        receipts = process(python("-m", "benchmarks.receipts", str(bench.output("job"))))
        bench.record("receipts", run, receipts)
        read_s.append(float(receipts.stdout.split()[0]))
        resumed.append(process(command))
        bench.record("resumed", run, resumed[-1])
        again.append(process(command))
        bench.record("again", run, again[-1])
    reused = json.loads((bench.output("job") / "_report.json").read_text())["splits_reused"]
    return [
        Finding("scoring them", median_wall_s(scored), "s"),
        Finding(f"reading {reused:,} receipts", median(read_s), "s", RECEIPTS_S),
        Finding(f"resuming {reused:,} receipts, publishing included", median_wall_s(resumed), "s"),
        Finding("once more, when they are published", median_wall_s(again), "s", NOOP_S),
    ]


def classifier(bench: Bench) -> list[Finding]:
    """200,000 rows of 784-wide lists: the job against the loop."""
    return _against_loop(bench, VECTORS, "classifier", CLASSIFIER_BATCH_ROWS)


def memory(bench: Bench) -> list[Finding]:
    """Peak memory must not follow the number of rows: 40 million against the first 4 million."""
    shards, model = bench.data(ROWS), bench.model("sequential")
    tenth = first(shards, max(1, len(list(shards.glob("*.parquet"))) // 10))
    runs = bench.alternate({"all": bench.job(shards, model), "tenth": bench.job(tenth, model)})
    all_bytes, tenth_bytes = median_peak_bytes(runs["all"]), median_peak_bytes(runs["tenth"])
    return [
        Finding("peak, all rows over a tenth", all_bytes / tenth_bytes, "×", MEMORY_GROWTH),
        Finding("peak, all rows", all_bytes / 1e9, "GB", MEMORY_GB),
        Finding("peak, a tenth", tenth_bytes / 1e9, "GB"),
    ]


def startup(bench: Bench) -> list[Finding]:
    """How long a person waits: for help, and for the first predicted batch over what cannot be avoided."""
    shards, model = first(bench.data(ROWS), 1), bench.model("sequential")
    helped, waited, least = [], [], []
    for run in range(bench.runs):
        helped.append(process(python("-m", "job", "score", "--help")))
        bench.record("help", run, helped[-1])
        bench.record("job", run, process(bench.job(shards, model)()))
        waited.append(first_batch_s(bench.output("job")))
        imported = process(python("-c", UNAVOIDABLE, str(model)))
        bench.record("unavoidable", run, imported)
        least.append(float(imported.stdout) - imported.started)
    ratio = median(waited) / median(least)
    detail = f"{median(waited):.2f} s, imports and load alone {median(least):.2f} s"
    return [
        Finding("job score --help", median_wall_s(helped), "s", HELP_S, _spread(helped)),
        Finding("first batch over imports and load", ratio, "×", FIRST_BATCH, detail=detail),
    ]


def tiny_shards(bench: Bench) -> list[Finding]:
    """20,000 shards of 50 rows, and the first 2,000 and 5,000: each shard must cost the same."""
    shards, model = bench.data(TINY), bench.model("sequential")
    count = len(list(shards.glob("*.parquet")))
    counts = [max(1, count // 10), max(2, count // 4), max(3, count)]
    folders = [first(shards, number) for number in counts]
    sides = {
        f"job-{number}": bench.job(folder, model) for number, folder in zip(counts, folders, strict=True)
    }
    sides[f"loop-{counts[0]}"] = bench.loop(folders[0], model, SEQUENTIAL_BATCH_ROWS)
    runs = bench.alternate(sides)
    process(bench.job(folders[0], model)())
    equal_outputs(bench.output("job"), bench.output("loop"))
    few, some, many = (median_wall_s(runs[f"job-{number}"]) for number in counts)
    early_ms = (some - few) / (counts[1] - counts[0]) * 1e3
    late_ms = (many - some) / (counts[2] - counts[1]) * 1e3
    return [
        Finding(f"{number:,} shards", median_wall_s(runs[f"job-{number}"]), "s", spread=_spread(taken))
        for number, taken in zip(counts, (runs[f"job-{number}"] for number in counts), strict=True)
    ] + [
        Finding(f"loop, {counts[0]:,} shards", median_wall_s(runs[f"loop-{counts[0]}"]), "s"),
        Finding("a shard, early", early_ms, "ms"),
        Finding("a shard, late", late_ms, "ms"),
        # The floor stands in for a difference that noise has made negative.
        Finding("a late shard over an early one", late_ms / max(early_ms, 1e-3), "×", SHARD_GROWTH),
    ]


CASES: Final[Mapping[str, Callable[[Bench], list[Finding]]]] = {
    case.__name__: case for case in (rows40m, protocol, classifier, memory, resume, startup, tiny_shards)
}


def first_batch_s(output: Path) -> float:
    """Return the seconds from the start of the job's process to its first predicted batch.

    Raises:
        ReportError: neither report nor manifest holds ``first_batch_s``.
    """
    for name in ("_report.json", "_manifest.json"):
        if (output / name).exists():
            told = json.loads((output / name).read_text())
            if told.get("first_batch_s") is not None:
                return float(told["first_batch_s"])
    raise ReportError(f"no first_batch_s in {output}/_report.json or _manifest.json")


def _against_loop(bench: Bench, dataset: Dataset, network: str, batch_rows: int) -> list[Finding]:
    shards, model = bench.data(dataset), bench.model(network)
    # Seconds after the first batch: what is left when both start-ups are taken away.
    after: dict[str, list[float]] = {"job": [], "loop": []}

    def note(side: str, measured: Measured) -> None:
        if side == "job":
            first_s = first_batch_s(bench.output(side))
        else:
            first_s = json.loads(measured.stdout)["first_batch_at"] - measured.started
        after[side].append(measured.wall_s - first_s)

    sides = {"job": bench.job(shards, model), "loop": bench.loop(shards, model, batch_rows)}
    runs = bench.alternate(sides, note)
    rows = equal_outputs(bench.output("job"), bench.output("loop"))
    wall_s = {side: median_wall_s(taken) for side, taken in runs.items()}
    cpu_s = {side: median(run.cpu_s for run in taken) for side, taken in runs.items()}
    steady_s = {side: median(seconds) for side, seconds in after.items()}
    spread = max(map(_spread, runs.values()))
    return [
        Finding(
            "job over loop", wall_s["job"] / wall_s["loop"], "×", OVERHEAD, spread, f"{rows:,} equal rows"
        ),
        Finding("job over loop, past the first batch", steady_s["job"] / steady_s["loop"], "×"),
        # Barely moved by other work on the machine, unlike the wall clock.
        Finding("job over loop, processor time", cpu_s["job"] / cpu_s["loop"], "×"),
        *(Finding(side, wall_s[side], "s", spread=_spread(runs[side])) for side in sides),
        *(
            Finding(f"{side}, past the first batch", rows / steady_s[side] / 1e6, "M rows/s")
            for side in sides
        ),
        *(Finding(f"{side}, peak", median_peak_bytes(runs[side]) / 1e9, "GB") for side in sides),
    ]


def _spread(runs: Sequence[Measured]) -> float:
    times = [run.wall_s for run in runs]
    return max(times) / min(times)
