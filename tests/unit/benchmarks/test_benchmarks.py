"""The measuring tools, at sizes of a second: data, the loop, processes, comparisons and verdicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import cases, data, receipts, reference, run, scaling, sizes
from benchmarks.cases import RECEIPTS_S, Bench, Finding
from benchmarks.compare import UnequalOutputsError, equal_outputs
from benchmarks.data import Dataset
from benchmarks.measure import CommandFailedError, Measured, alternate, environment, process, python
from job.commit import staging
from job.shards import planner
from tests.support.receipts import RUN_ID, receipt, split

SCALARS = Dataset("rows", "columns", shards=3, shard_rows=1_000, width=4)
VECTORS = Dataset("vectors", "vectors", shards=2, shard_rows=300, width=6)


def measured(wall_s: float, peak_rss_bytes: int = 1, stdout: str = "") -> Measured:
    return Measured(wall_s=wall_s, cpu_s=0.0, peak_rss_bytes=peak_rss_bytes, started=0.0, stdout=stdout)


@pytest.mark.parametrize(
    ("dataset", "schema"),
    [
        (SCALARS, {f"f{index}": pa.float32() for index in range(4)}),
        (VECTORS, {"image": pa.list_(pa.float32(), 6)}),
    ],
    ids=["columns", "vectors"],
)
def test_data_has_the_rows_and_types_it_says(
    dataset: Dataset, schema: dict[str, pa.DataType], tmp_path: Path
) -> None:
    folder = data.ensure(dataset, tmp_path)
    shards = sorted(folder.glob("*.parquet"))
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [dataset.shard_rows] * dataset.shards
    for shard in shards:
        table = pq.read_table(shard)
        assert dict(zip(table.column_names, table.schema.types, strict=True)) == schema


def test_no_two_shards_and_no_two_columns_are_alike() -> None:
    first, second = (data.table(SCALARS, shard) for shard in (0, 1))
    columns = [table.column(name).to_numpy() for table in (first, second) for name in table.column_names]
    assert len({column.tobytes() for column in columns}) == 8
    assert data.table(SCALARS, 0) == first
    values = np.concatenate(columns)
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_data_is_made_once_and_again_when_the_recipe_differs(tmp_path: Path) -> None:
    folder = data.ensure(SCALARS, tmp_path)
    stamp = (folder / "shard-00000.parquet").stat().st_mtime_ns
    assert data.ensure(SCALARS, tmp_path) == folder
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns == stamp
    (folder / data.COMPLETE).write_text("another recipe")
    data.ensure(SCALARS, tmp_path)
    assert (folder / "shard-00000.parquet").stat().st_mtime_ns != stamp
    assert [path.name for path in tmp_path.iterdir()] == ["rows-3x1000"]


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Dataset("rows", "columns", shards=0, shard_rows=1, width=1)


def test_first_links_the_first_shards(tmp_path: Path) -> None:
    folder = data.ensure(SCALARS, tmp_path)
    for _ in range(2):
        linked = data.first(folder, 2)
        assert sorted(path.name for path in linked.iterdir()) == [
            "shard-00000.parquet",
            "shard-00001.parquet",
        ]
    with pytest.raises(ValueError, match="holds 3 shards, 4"):
        data.first(folder, 4)


def network(width: int, outputs: int) -> object:
    import keras

    keras.utils.set_random_seed(7)
    return keras.Sequential([keras.Input((width,)), keras.layers.Dense(outputs, activation="tanh")])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dataset", "outputs"), [(SCALARS, 1), (VECTORS, 3)], ids=["columns", "vectors"])
def test_the_loop_predicts_what_the_model_predicts(
    dataset: Dataset, outputs: int, threads: int, tmp_path: Path
) -> None:
    model = network(dataset.width, outputs)
    shards = sorted(data.ensure(dataset, tmp_path).glob("*.parquet"))
    written = tmp_path / "out"
    # 64 divides neither 1,000 nor 300: the last batch of each shard is a short one.
    assert reference.run(shards, model, written, batch_rows=64, threads=threads) == dataset.rows
    for shard in shards:
        table = pq.read_table(shard)
        if dataset.layout == "columns":
            features = np.column_stack([column.to_numpy() for column in table.itercolumns()])
        else:
            features = np.array(table.column(0).to_pylist(), np.float32)
        expected = model.predict(features, verbose=0)  # type: ignore[attr-defined]
        got = pq.read_table(written / shard.name).column(0)
        assert got.type == (pa.float32() if outputs == 1 else pa.list_(pa.float32(), outputs))
        values = np.array(got.to_pylist(), np.float32).reshape(len(got), -1)
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def test_the_loop_says_when_no_shard_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = str(tmp_path / "none-*.parquet")
    assert reference.main(["--input", pattern, "--model", "x.keras", "--output", str(tmp_path / "out")]) == 3
    assert pattern in capsys.readouterr().err


# Run in a process of its own: a child's peak begins at the size of its parent, and pytest grows large.
MEASURE_TWO = """
from benchmarks.measure import process, python
hold = "import time; held = bytearray(300_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.3)"
for run in (process(python("-c", "")), process(python("-c", hold))):
    print(run.peak_rss_bytes, run.wall_s)
"""


def test_a_process_is_measured_by_the_system() -> None:
    quick, large = process(python("-c", MEASURE_TWO)).stdout.splitlines()
    assert float(quick.split()[0]) < 200e6
    assert 300e6 < float(large.split()[0]) < 500e6
    assert 0.3 < float(large.split()[1]) < 30


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(CommandFailedError, match=r"exit code 3 .*…no reason"):
        process([sys.executable, "-c", "import sys; print('no reason', file=sys.stderr); sys.exit(3)"])


def test_sides_take_turns() -> None:
    seen: list[tuple[str, int]] = []
    sides: dict[str, Callable[[], list[str]]] = {side: lambda: python("-c", "") for side in ("job", "loop")}
    runs = alternate(sides, 2, lambda side, run, _: seen.append((side, run)))
    assert seen == [("job", 0), ("loop", 0), ("job", 1), ("loop", 1)]
    assert {side: len(taken) for side, taken in runs.items()} == {"job": 2, "loop": 2}


def test_the_environment_names_machine_and_versions() -> None:
    machine = environment()
    assert {"cpu", "cores", "memory_bytes", "tensorflow", "apache-beam", "commit"} <= set(machine)
    json.dumps(machine)


def write(folder: Path, **files: list[float]) -> Path:
    folder.mkdir()
    for name, values in files.items():
        pq.write_table(pa.table({"prediction": pa.array(values, pa.float32())}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.00001]}, "row 1"),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, "2, 1"),
        ({"a": [1.0]}, {"a": [1.0], "b": [1.0]}, "b.parquet"),
        ({"a": [float("nan")]}, {"a": [1.0]}, "row 0"),
        ({}, {}, "0 files"),
    ],
)
def test_unequal_outputs_are_told_apart(
    ours: dict[str, list[float]], theirs: dict[str, list[float]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnequalOutputsError, match=message):
        equal_outputs(write(tmp_path / "ours", **ours), write(tmp_path / "theirs", **theirs))


def test_equal_outputs_may_differ_by_a_rounding(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", a=[1.0, 100.0], b=[3.0], _left=[0.0])
    assert equal_outputs(ours, write(tmp_path / "theirs", a=[1.0000001, 100.00001], b=[3.0])) == 3


@pytest.mark.parametrize(
    ("value", "limit", "kept"),
    [(1.25, 1.25, True), (1.26, 1.25, False), (9.0, None, True), (float("nan"), 1, False)],
)
def test_a_finding_is_kept_up_to_its_limit(value: float, limit: float | None, kept: bool) -> None:
    assert Finding("job over loop", value, "×", limit).kept is kept


def test_first_batch_is_read_from_the_report_before_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(cases.ReportError, match="first_batch_s"):
        cases.first_batch_s(tmp_path)
    (tmp_path / "_manifest.json").write_text('{"first_batch_s": 7.5}')
    (tmp_path / "_report.json").write_text('{"first_batch_s": null}')
    assert cases.first_batch_s(tmp_path) == 7.5
    (tmp_path / "_report.json").write_text('{"first_batch_s": 2.25}')
    assert cases.first_batch_s(tmp_path) == 2.25


def fake_case(kept: bool) -> Callable[[Bench], list[Finding]]:
    def case(bench: Bench) -> list[Finding]:
        bench.record("job", 0, measured(1.5, peak_rss_bytes=2_000_000_000))
        return [Finding("job over loop", 1.1 if kept else 1.4, "×", 1.25, spread=1.3)]

    return case


@pytest.mark.parametrize(("kept", "code", "verdict"), [(True, 0, "kept (noisy)"), (False, 1, "not kept")])
def test_run_keeps_every_number_and_ends_with_a_verdict(
    kept: bool,
    code: int,
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "CASES", {"rows40m": fake_case(kept)})
    assert run.main(["--root", str(tmp_path), "--case", "rows40m", "--runs", "1"]) == code
    measurement, finding = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (measurement["side"], measurement["wall_s"], measurement["peak_rss_bytes"]) == ("job", 1.5, 2e9)
    assert (finding["what"], finding["limit"], finding["kept"]) == ("job over loop", 1.25, kept)
    assert measurement["environment"] == finding["environment"]
    printed = capsys.readouterr().out
    assert verdict in printed
    assert "1.50 s, 2.00 GB" in printed


def test_receipts_are_all_read_or_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [split(f"part-{i}") for i in range(3)]
    staging.write_plan(str(tmp_path), RUN_ID, splits)
    monkeypatch.setattr(sys, "argv", ["receipts", str(tmp_path)])
    for i, (one, code) in enumerate(zip(splits, (1, 1, 0), strict=True)):
        staging.write_receipt(str(tmp_path), receipt(tmp_path, one))
        assert receipts.main() == code
        seconds, read = capsys.readouterr().out.split()
        assert int(read) == i + 1
        assert 0 < float(seconds) < RECEIPTS_S


@pytest.mark.slow
def test_sizes_are_those_of_the_files_that_a_run_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes.main(["--splits=100"]) == 0
    told = {line[:46].strip(): line[46:].split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert len(told) == 21
    shards, groups = [sizes._shard(i) for i in range(100)], [sizes._groups(i) for i in range(100)]
    splits = planner.plan(shards, groups, 2_000_000)
    plan = Path(staging.write_plan(str(tmp_path), RUN_ID, splits)).stat().st_size
    assert told["file: plan.jsonl"][0] == f"{plan / 100:.0f}"
    staging.write_receipt(str(tmp_path), replace(sizes._receipt(splits[7], 7), run_id=RUN_ID))
    (path,) = tmp_path.rglob("receipts/**/*.json")
    mean = float(told["file: receipts, one a split"][0].replace(",", ""))
    assert path.stat().st_size == pytest.approx(mean, rel=0.02)


def test_an_engine_that_is_not_there_is_told_to_have_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling._flink(Bench(tmp_path, 1, 1.0, lambda *_: None), None)
    assert capsys.readouterr().out == "flink: not run (give --flink_job_server_jar)\n"
