"""What the engine's own metrics say of a run: the same as its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from job.engines import choice
from job.pipeline import ScorePlan
from job.report.run_report import STAGES
from job.scoring import worker
from job.spec import Receipt
from tests.support.nights import Night, Planned, dense, features, saved
from tests.support.receipts import receipt, split


def run(planned: Planned) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Counters, distributions and the report of a run on two threads."""
    pipeline = beam.Pipeline(options=choice.beam_options(["--direct_num_workers=2"]))
    pipeline | ScorePlan(planned.path, planned.task)
    found = pipeline.run()
    assert found.wait_until_finish() == "DONE"
    told = found.metrics().query(beam.metrics.MetricsFilter().with_namespace(worker.NAMESPACE))
    counters = {one.key.metric.name: one.committed for one in told["counters"]}
    distributions = {one.key.metric.name: one.committed for one in told["distributions"]}
    return counters, distributions, json.loads((Path(planned.task.run.output) / "_report.json").read_text())


def planned(night: Night) -> Planned:
    """Eight splits of 250 rows; every 25th row is rejected."""
    for i in range(2):
        table = features(1000, seed=i, first_id=1000 * i)
        values = [None if row % 25 == 0 else value for row, value in enumerate(table["f1"].to_pylist())]
        night.shard(f"part-{i}", table.set_column(2, "f1", pa.array(values, pa.float32())), group_rows=250)
    flags = ("--keys=id", "--split_rows=250", "--batch_size=100", "--max_rejected=0.1")
    return night.planned(saved(dense(), night.folder / "m.keras"), *flags)


def test_they_agree_with_the_report(night: Night) -> None:
    counters, distributions, report = run(planned(night))
    assert counters == {
        "splits_scored": 8,
        "splits_reused": 0,
        "rows_read": 2000,
        "rows_scored": 1920,
        "rows_rejected": 80,
        "batches": 24,
        "bytes_written": report["files_bytes"],
        "model_loads": 1,
    }
    assert len(report["loads"]) == 1
    for name in ("rows_read", "rows_scored", "rows_rejected", "batches"):
        assert counters[name] == report[name]
    for stage in STAGES:
        spent = distributions.pop(f"{stage}_us")
        # Each of eight splits is rounded by itself.
        assert spent.sum == pytest.approx(report[f"{stage}_s"] * 1e6, abs=4)
        assert (spent.count, spent.sum >= spent.max >= spent.min) == (8, True)
        assert spent.sum > 0
    (batch_rows,) = distributions.values()
    assert (batch_rows.count, batch_rows.min, batch_rows.max) == (8, 100, 100)


def test_a_resumed_run_counts_what_it_found_as_its_report_does(night: Night) -> None:
    from job.commit import staging
    from job.scoring.split import score_split

    plan = planned(night)
    for one in plan.splits[:3]:
        staging.write_receipt(plan.task.run.output, score_split(one, plan.task, plan.loaded))
    counters, _, report = run(plan)
    assert (counters["splits_scored"], counters["splits_reused"]) == (5, 3)
    assert report["splits_reused"] == 3
    assert (counters["rows_read"], counters["rows_scored"]) == (report["rows_read"], report["rows_scored"])


@pytest.fixture
def one(tmp_path: Path) -> Receipt:
    return receipt(tmp_path, split("a", 7), rows_scored=5, rows_rejected=2, read_s=0.0123456, batch_rows=4)


def test_a_split_by_hand(one: Receipt) -> None:
    assert worker.totals(replace(one, file_bytes=77)) == {
        "splits_scored": 1,
        "splits_reused": 0,
        "rows_read": 7,
        "rows_scored": 5,
        "rows_rejected": 2,
        "batches": 2,
        "bytes_written": 77,
    }
    assert worker.values(one) == {
        "read_us": 12346,
        "bind_us": 100_000,
        "predict_us": 100_000,
        "write_us": 100_000,
        "batch_rows": 4,
    }
    # A split whose shard was refused.
    assert worker.values(replace(one, batches=0)) == {}


def test_a_load_counts_once_in_each_run_that_it_served(one: Receipt) -> None:
    told = [
        replace(one, run_id="run 1", load="load 1"),
        replace(one, run_id="run 1", load="load 1"),
        replace(one, run_id="run 1", load="load 2"),
        replace(one, run_id="run 2", load="load 1"),
        # Of another process, perhaps long ago.
        replace(one, run_id="run 2", load="load 3", reused=True),
        replace(one, run_id="run 2", load=""),
    ]
    assert [worker.is_new_load(one) for one in told] == [True, False, True, True, False, False]


def test_without_an_engine_that_counts_nothing_fails(one: Receipt) -> None:
    assert list(worker.CountReceipts().process(one)) == [one]
