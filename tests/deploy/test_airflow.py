"""The DAG of ``deploy/airflow`` in the real Airflow, which runs the real job: nights, a kill, a refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from job.shards import dates
from tests.support.jobs import Zygote
from tests.support.nights import dense, features, saved, visible
from tests.support.servers import airflow
from tests.support.servers.stores import ROOT

FOLDER = ROOT / "deploy" / "airflow"
DOCS = ROOT / "docs" / "schedulers.md"
FIRST, KILLED, BROKEN, SMALL = (f"2026-11-{day}" for day in (21, 22, 23, 24))
TEMPLATES = ("o/ds={ds}", "{ds-1}/{ds_nodash}", "o/{ds:%Y/%m/%d}/{ds_nodash+7}", "o/{ds-60:%Y%%%j}/ds")
SHARDS = 4
ROWS = 50

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Nights:
    """What Airflow told, and where the job has put what it scored."""

    told: dict[str, Any]
    folder: Path

    def report(self, night: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "out" / f"ds={night}" / "_report.json").read_text()))


def command(folder: Path, python: Path) -> Path:
    """The job's command, as a machine has it for Airflow: one path."""
    path = folder / "scoring-job"
    command = f"{python} -m tests.support.crashing_command"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {command} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, warm: Zygote) -> Nights:
    python = airflow.built()
    folder = tmp_path_factory.mktemp("airflow")
    saved(dense(), folder / "m.keras")
    for number, night in enumerate((FIRST, KILLED, BROKEN, SMALL)):
        shards = folder / "in" / f"ds={night}"
        shards.mkdir(parents=True)
        # Of the last one most did not come.
        for shard in range(1 if night == SMALL else SHARDS):
            pq.write_table(features(ROWS, seed=10 * number + shard), shards / f"part-{shard}.parquet")
        (shards / "_SUCCESS").touch()
    # Whoever wrote it had no room left.
    (folder / "in" / f"ds={BROKEN}" / "part-0.parquet").write_bytes(b"PAR1")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    env |= {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW_VAR_SCORING_COMMAND": str(command(folder, warm.python)),
        "AIRFLOW_VAR_SCORING_CONFIG": str(folder / "job.toml"),
        "AIRFLOW_VAR_SCORING_INPUT": f"{folder}/in/ds={{ds}}",
        "AIRFLOW_VAR_SCORING_OUTPUT": f"{folder}/out/ds={{ds:%Y-%m-%d}}",
        "KILLED_NIGHT": KILLED,
        "KILLED_MARK": str(folder / "killed"),
    }
    (folder / "job.toml").write_text(
        f'model = "{folder}/m.keras"\nkeys = ["id"]\nsplit_rows = {ROWS}\nmax_rows_change = 0.5\n'
    )
    (backfill,) = re.findall(r"^airflow backfill create .*$", DOCS.read_text(), re.M)
    driver = [
        python,
        ROOT / "tests" / "support" / "airflow_nights.py",
        FOLDER,
        backfill,
        json.dumps(TEMPLATES),
    ]
    times = [*(f"2026-11-{day}T02:30:00+00:00" for day in (22, 23)), f"by hand:{BROKEN}"]
    times.append("2026-11-25T02:30:00+00:00")
    log = folder / "log"
    with log.open("w") as out:
        done = subprocess.run([*driver, *times], cwd=folder, env=env, stdout=out, stderr=out, timeout=500)
    assert done.returncode == 0, log.read_text()[-5000:]
    return Nights(json.loads(log.read_text().splitlines()[-1]), folder)


def test_airflow_reads_the_dag_without_a_warning(nights: Nights) -> None:
    assert nights.told["errors"] == nights.told["warnings"] == {}
    assert nights.told["dags"] == ["nightly_scoring"]


def test_nights_are_scored_verified_and_told(nights: Nights) -> None:
    first, killed, *_ = nights.told["runs"]
    assert first == {
        "state": "success",
        "tasks": {"input_is_there": ["success", 1], "score": ["success", 1], "verify": ["success", 1]},
    }
    assert killed["state"] == "success"
    outputs = [{"night": night, "output": f"{nights.folder}/out/ds={night}"} for night in (FIRST, KILLED)]
    assert nights.told["events"] == outputs
    for one in outputs:
        files = visible(Path(one["output"]))
        assert [pq.read_metadata(file).num_rows for file in files] == [ROWS] * SHARDS


def test_a_killed_night_is_tried_again_and_resumes(nights: Nights) -> None:
    killed = nights.told["runs"][1]
    assert (nights.folder / "killed").exists()
    assert killed["tasks"]["score"] == ["success", 2]
    assert nights.report(FIRST)["splits_reused"] == 0
    assert 2 <= nights.report(KILLED)["splits_reused"] < SHARDS


def test_what_would_fail_again_is_not_tried_again(nights: Nights) -> None:
    refused = nights.told["runs"][2]
    assert refused["state"] == "failed"
    assert refused["tasks"]["score"] == ["failed", 1]
    assert refused["tasks"]["verify"] == ["upstream_failed", 0]
    assert "score ended with exit code 4" in (nights.folder / "log").read_text()
    assert not visible(nights.folder / "out" / f"ds={BROKEN}")


def test_a_gate_refuses_a_night_that_lost_its_rows(nights: Nights) -> None:
    """Against the last good one, which is two nights before, since the one between them was not published."""
    refused = nights.told["runs"][3]
    assert refused["state"] == "failed"
    assert refused["tasks"]["score"] == ["failed", 1]
    log = (nights.folder / "log").read_text()
    assert "score ended with exit code 5" in log
    assert (
        f"-75.0% against the {SHARDS * ROWS} of the last good night ({nights.folder}/out/ds={KILLED})" in log
    )
    assert not visible(nights.folder / "out" / f"ds={SMALL}")


def test_a_backfill_is_of_the_nights_that_failed_or_were_missed(nights: Nights) -> None:
    """As docs/schedulers.md has it: of the nights 20 to 25, two are published and one was refused."""
    runs = (21, 24, 25, 26)
    assert nights.told["backfill"] == [f"2026-11-{day} 02:30:00+00:00" for day in runs]


def test_places_are_those_of_the_job(nights: Nights) -> None:
    assert nights.told["places"] == [dates.expand(one, date(2026, 3, 1)) for one in TEMPLATES]


def test_the_night_is_the_day_before_the_run_where_it_runs(nights: Nights) -> None:
    assert nights.told["nights"] == [
        ["2026-11-25", "2026-11-25", "2026-11-24"],
        ["2026-11-25", "2026-11-26", "2026-11-25"],
        ["2026-03-28", "2026-03-28", "2026-03-27"],
        ["2026-02-28", "2026-02-28", "2026-02-27"],
        ["2026-11-25", "2026-11-26", "2026-11-25"],
    ]
