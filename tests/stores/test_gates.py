"""A night in buckets that a gate refuses, and that is released there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from job.commit import output
from tests.support.nights import run_cli
from tests.support.store_nights import FLAGS, ROWS, StoreNight


def command(night: StoreNight, day: int, shards: str, *flags: str) -> list[str]:
    paths = (f"--input={night.path(f'in/{shards}')}", f"--model={night.path('m.keras')}")
    return ["score", *paths, f"--output={night.path('gated/{ds}')}", f"--ds=2013-12-0{day}", *FLAGS, *flags]


def report(night: StoreNight, day: int) -> dict[str, Any]:
    return dict(json.loads(night.files(f"gated/2013-12-0{day}")["_report.json"]))


def test_a_refused_night_is_released_from_its_bucket(
    night_in_store: StoreNight, capfd: pytest.CaptureFixture[str]
) -> None:
    night = night_in_store
    code, _, err = run_cli(capfd, *command(night, 1, "*.parquet"))
    assert code == 0, err
    gate = "--max_rows_change=0.5"
    code, _, err = run_cli(capfd, *command(night, 3, "part-0.parquet", gate))
    before = night.path("gated/2013-12-01")
    assert (code, f"-65.9% against the 176 of the last good night ({before})" in err) == (5, True), err
    name, folder = "gated/2013-12-03", night.path("gated/2013-12-03")
    assert {path.split("/")[0] for path in night.files(name)} == {"_staging"}
    (run_id,) = output.leftovers(folder, "")
    code, out, err = run_cli(capfd, "clean", folder)
    assert (code, "kept, refused: 60 rows" in out, output.leftovers(folder, "")) == (0, True, [run_id]), err
    code, out, err = run_cli(capfd, "publish", folder, f"--run_id={run_id}")
    assert code == 0, err
    found = night.files(name)
    assert set(found) == {"_SUCCESS", "_manifest.json", "_report.html", "_report.json", "part-0.parquet"}
    assert night.bucket.uploads(f"{name}/") == []
    assert len(json.loads(found["_manifest.json"])["released"]["refused"]) == 1
    assert report(night, 3)["rows_scored"] == ROWS
    code, _, err = run_cli(capfd, *command(night, 4, "part-2.parquet", gate))
    assert code == 0, err
    told = report(night, 4)["compared"]
    assert (told["baseline"], told["rows_change"], told["refused"]) == (folder, 0.0, [])
