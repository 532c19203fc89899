"""Runs in Airflow's environment: reads the DAG as Airflow does, runs it, and tells what became of the nights.

``python airflow_nights.py FOLDER BACKFILL TEMPLATES DATE…`` with ``AIRFLOW_HOME`` set: BACKFILL is a command
line, which is only asked what it would run; TEMPLATES are folders, as JSON, to put a night into; a DATE is a
run's time, or ``by hand:`` and the night that a person asks for. Its last line is JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from airflow.cli.cli_parser import get_parser
from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.settings import Session
from airflow.utils.db import initdb

DAG = "nightly_scoring"
# A run's time, without a logical date where the first is missing, and its night in two places.
TIMES = (
    ("2026-11-26T02:30:00+00:00", "2026-11-26T09:00:00+00:00"),
    ("2026-11-26T23:30:00+00:00", "2026-11-26T23:30:00+00:00"),
    ("2026-03-29T00:59:00+00:00", "2026-03-29T00:59:00+00:00"),
    ("2026-03-01T02:30:00+00:00", "2026-03-01T02:30:00+00:00"),
    (None, "2026-11-26T23:30:00+00:00"),
)


def ran(dag: Any, when: str) -> dict[str, Any]:
    """Run one night to its end, by ``airflow dags test``, which knows of no run without a date."""
    _, by_hand, night = when.rpartition("by hand:")
    if by_hand:
        run = dag.test(logical_date=None, run_conf={"night": night})
    else:
        args = get_parser().parse_args(["dags", "test", DAG, when])
        # How it ends where the night has failed.
        with contextlib.suppress(SystemExit):
            args.func(args)
        (run,) = Session().query(DagRun).filter(DagRun.logical_date == datetime.fromisoformat(when))
    tasks = {one.task_id: [str(one.state), one.try_number] for one in run.get_task_instances()}
    return {"state": str(run.state), "tasks": tasks}


def nights(night_of: Any) -> list[list[str]]:
    found = []
    for logical, after in TIMES:
        run = SimpleNamespace(
            logical_date=logical and datetime.fromisoformat(logical), run_after=datetime.fromisoformat(after)
        )
        found.append([night_of(run, zone) for zone in ("UTC", "Europe/Berlin", "America/New_York")])
    return found


def would_run(command: str) -> list[str]:
    """The logical dates that a backfill would run, by the real command."""
    program, *args = shlex.split(command, comments=True)
    assert program == "airflow"
    asked = get_parser().parse_args([*args, "--dry-run"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        asked.func(asked)
    return re.findall(r"^\| (\d{4}-\d\d-\d\d \S+)", out.getvalue(), re.MULTILINE)


def main(folder: str, backfill: str, templates: str, *dates: str) -> None:
    initdb()
    bag = DagBag(folder)
    dag = bag.dags[DAG]
    runs = [ran(dag, one) for one in dates]
    module = sys.modules[type(dag.get_task("score")).__module__]
    told = {
        "errors": bag.import_errors,
        "warnings": bag.captured_warnings,
        "dags": sorted(bag.dags),
        "no_retry": sorted(module.NO_RETRY),
        "nights": nights(module.night_of),
        "places": [module.expand(one, "2026-03-01") for one in json.loads(templates)],
        "runs": runs,
        "backfill": would_run(backfill),
        "events": [event.extra for event in Session().query(AssetEvent).order_by(AssetEvent.id)],
    }
    print(f"\n{json.dumps(told)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
