"""What ``job plan`` says of a night, and that it leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.launch import forecast
from tests.support.nights import Night, dense, features, run_cli, saved


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def planned(night: Night) -> Night:
    """Three shards of 100, 40 and 60 rows in groups of 20."""
    for i, rows in enumerate((100, 40, 60)):
        night.shard("abc"[i], features(rows, seed=i, first_id=100 * i), group_rows=20)
    saved(dense(), night.folder / "m.keras")
    return night


def told(night: Night, capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    code, out, err = run_cli(
        capfd, "plan", *night.args(night.folder / "m.keras", "--keys=id", *flags), "--json"
    )
    assert code == 0, err
    assert out.count("\n") == 1
    return dict(json.loads(out))


def test_a_night_is_counted_and_a_sample_is_scored(
    planned: Night, capfd: pytest.CaptureFixture[str], own_temporary_folder: Path
) -> None:
    found = told(planned, capfd, "--split_rows=40")
    assert (found["rows"], found["shards"], found["splits"], found["largest_split_rows"]) == (200, 3, 6, 40)
    assert found["shard_bytes"] == sum(path.stat().st_size for path in planned.input.iterdir())
    # The first, the fourth and the last split: of 40, 40 and 20 rows.
    assert (found["sample_rows"], found["sample_rejected"], found["reasons"]) == (100, 0, [])
    assert (found["columns"], found["predictions"]) == (["f0", "f1", "f2", "f3"], ["prediction"])
    rate = found["rows_per_s"]
    assert rate > 0
    for workers, seconds in found["scoring_s"].items():
        assert seconds == pytest.approx(max(200 / int(workers), 40) / rate)
    assert found["memory_bytes"] > 100e6
    assert found["held"] == "no night yet"
    assert not planned.output.exists()
    # The model of a process is shared by the next, and has its own files; the sample has left none.
    assert not [*own_temporary_folder.glob("scoring-job-sample-*")]


def test_the_sample_is_no_larger_than_it_need_be(
    planned: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "SAMPLE_ROWS", 20)
    assert told(planned, capfd)["sample_rows"] == 60


def test_it_is_the_run_that_score_makes(planned: Night, capfd: pytest.CaptureFixture[str]) -> None:
    run_id = told(planned, capfd)["run_id"]
    assert planned.score(planned.folder / "m.keras", "--keys=id").run_id == run_id
    assert told(planned, capfd)["held"] == "this very run is published there: score would do nothing"
    other = told(planned, capfd, "--batch_size=7")
    assert other["run_id"] != run_id
    assert other["held"].startswith(f"run {run_id[:12]} is published there: --if_exists says")


def test_bad_rows_of_the_sample_are_told(planned: Night, capfd: pytest.CaptureFixture[str]) -> None:
    values = pa.array([None] * 30 + [0.5] * 30, pa.float32())
    planned.shard("c", features(60).set_column(2, "f1", values), group_rows=20)
    found = told(planned, capfd)
    assert (found["sample_rejected"], found["reasons"]) == (30, [["null", 30]])
    code, out, _ = run_cli(capfd, "plan", *planned.args(planned.folder / "m.keras", "--keys=id"))
    assert code == 0
    assert "200 rows, 30 rejected: 30 null" in " ".join(out.split())


@pytest.mark.parametrize(
    ("flags", "code"),
    [(["--on_null=fail"], 5), (["--features=f9"], 4), (["--batch_size=0"], 2), (["--input=/nowhere"], 3)],
)
def test_it_ends_as_score_would(
    planned: Night, capfd: pytest.CaptureFixture[str], flags: list[str], code: int
) -> None:
    values = pa.array([None] * 60, pa.float32())
    planned.shard("c", features(60).set_column(2, "f1", values), group_rows=20)
    given = planned.args(planned.folder / "m.keras", "--keys=id")
    found, out, err = run_cli(
        capfd, "plan", *(given[1:] if flags[0].startswith("--input") else given), *flags
    )
    assert (found, out) == (code, "")
    assert err.startswith(("error: ", "model inputs: "))
    assert [line.partition(":")[0] for line in err.splitlines()][-1] == "error"
    assert not planned.output.exists()
