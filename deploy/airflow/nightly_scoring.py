"""The nightly scoring as an Airflow DAG: wait for the input, score it, verify it, tell whoever reads it.

Copy this file into the DAG folder of Airflow 3, which has apache-airflow-providers-standard. Airflow only
starts the job's command, which has an environment of its own. What is scored, and how, is in the job's
configuration; docs/schedulers.md has the variables.

The **night** is the day whose rows are scored: the day before the run's own day in ``TIMEZONE``. It is worked
out here, because ``{{ ds }}`` of a cron schedule is the day of the run itself, and in UTC.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol
from zoneinfo import ZoneInfo

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import (
    DAG,
    Asset,
    BaseOperator,
    BaseSensorOperator,
    CronTriggerTimetable,
    ObjectStoragePath,
    Param,
    Variable,
)
from airflow.sdk.exceptions import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import Context

SCHEDULE: Final = "30 2 * * *"
TIMEZONE: Final = "UTC"
# Where a night is scored, by the variable scoring_engine: flags of the engine, see docs/engines.md.
ENGINES: Final = {
    "local": (),
    "flink": (
        "--runner=FlinkRunner",
        "--flink_master=flink-jobmanager:8081",
        "--job_endpoint=flink-job-server:8099",
        "--environment_type=EXTERNAL",
        "--environment_config=localhost:50000",
    ),
    "dataflow": (
        "--runner=DataflowRunner",
        "--project=PROJECT",
        "--region=europe-west1",
        "--temp_location=gs://BUCKET/temp",
        "--sdk_container_image=REGISTRY/scoring-worker:TAG",
    ),
}
# The same command would end the same way again: wrong usage, a model or columns that do not fit, too many
# bad rows or a gate that refused, an output that holds another run. Somebody must look, at once. All else
# (storage, input that is not there yet, the engine, a kill) is worth another try, which resumes.
NO_RETRY: Final = frozenset({2, 4, 5, 6})

PREDICTIONS: Final = Asset("scoring-predictions")
NIGHT: Final = "{{ params.night or night_of(dag_run) }}"
PLACES: Final = {
    "scoring_input": "/srv/scoring/features/ds={ds}",
    "scoring_output": "/srv/scoring/predictions/ds={ds}",
}
INPUT: Final = "{{ place('scoring_input', params.night or night_of(dag_run)) }}"
OUTPUT: Final = "{{ place('scoring_output', params.night or night_of(dag_run)) }}"
CONFIG: Final = "{{ var.value.get('scoring_config', '/etc/scoring-job/job.toml') }}"


class Run(Protocol):
    """What a run tells of its time; ``logical_date`` is missing where an event or the API started it."""

    logical_date: datetime | None
    run_after: datetime


def night_of(run: Run, timezone: str = TIMEZONE) -> str:
    """Return the night of a run, as in ``2026-11-25``."""
    day = (run.logical_date or run.run_after).astimezone(ZoneInfo(timezone)).date()
    return (day - timedelta(days=1)).isoformat()


def template(variable: str) -> str:
    """Return the folder of every night, with the placeholders of its date."""
    return str(Variable.get(variable, default=PLACES[variable]))


def place(variable: str, night: str) -> str:
    """Return the folder of a night."""
    return expand(template(variable), night)


def expand(path: str, night: str) -> str:
    """Return a folder with the dates of a night in it, as the job understands them."""

    def dated(found: re.Match[str]) -> str:
        nodash, shift, form = found.groups()
        day = date.fromisoformat(night) + timedelta(days=int(shift or 0))
        return day.strftime(form or ("%Y%m%d" if nodash else "%Y-%m-%d"))

    return re.sub(r"\{ds(_nodash)?([+-][0-9]{1,5})?(?::([^{}]+))?\}", dated, path)


class FileIsThere(BaseSensorOperator):
    """Waits for a file, on a disk or, by Airflow's own connections, in a bucket."""

    template_fields = ("path",)

    def __init__(self, *, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's signature
        """Look once."""
        return bool(ObjectStoragePath(self.path).exists())


class ScoringJob(BaseOperator):
    """Runs one command of the job, without a shell; its exit code says whether another try is worth it."""

    template_fields = ("arguments", "command", "engine", "event")

    def __init__(self, *, arguments: list[str], with_engine: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments
        self.command = "{{ var.value.get('scoring_command', '/opt/scoring-job/.venv/bin/scoring-job') }}"
        self.engine = "{{ var.value.get('scoring_engine', 'local') }}" if with_engine else "local"
        # Whoever is started by the event must know which night it tells of.
        self.event = {"night": NIGHT, "output": OUTPUT}
        self.hook = SubprocessHook()

    def execute(self, context: Context) -> None:
        """Run it; what it prints is in the task's log."""
        if self.engine not in ENGINES:
            raise AirflowFailException(f"scoring_engine={self.engine}: must be one of {', '.join(ENGINES)}")
        done = self.hook.run_command([self.command, *self.arguments, *ENGINES[self.engine]])
        if done.exit_code:
            told = f"{self.arguments[0]} ended with exit code {done.exit_code}: {done.output}"
            raise (AirflowFailException if done.exit_code in NO_RETRY else AirflowException)(told)
        for asset in self.outlets:
            context["outlet_events"][asset].extra = self.event

    def on_kill(self) -> None:
        """End the job, which resumes with the next try."""
        self.hook.send_sigterm()


with DAG(
    dag_id="nightly_scoring",
    description="Score last night's shards, verify the predictions and tell those who read them",
    # Not the bare string: what a date means would then depend on create_cron_data_intervals.
    schedule=CronTriggerTimetable(SCHEDULE, timezone=TIMEZONE),
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo(TIMEZONE)),
    # Missed nights: `airflow backfill create`, or `job backfill`; what is published is not scored again.
    catchup=False,
    max_active_runs=1,
    params={
        "night": Param(
            None,
            type=["null", "string"],
            format="date",
            description="The night to score; else the day before",
        )
    },
    # Airflow's default_task_retry_delay, of five minutes, lies between the tries.
    default_args={"retries": 3, "execution_timeout": timedelta(hours=6)},
    user_defined_macros={"night_of": night_of, "place": place, "template": template},
    tags=["scoring"],
) as nightly_scoring:
    input_is_there = FileIsThere(
        task_id="input_is_there",
        path=f"{INPUT}/_SUCCESS",
        # It frees its slot between two looks, and gives up in the morning; that is not retried.
        mode="reschedule",
        poke_interval=300,
        timeout=5 * 3600,
    )
    score = ScoringJob(
        task_id="score",
        # Places as they are given: only where the date is a placeholder does the job find earlier nights,
        # which its gates compare this one with.
        arguments=[
            "score",
            f"--config={CONFIG}",
            f"--ds={NIGHT}",
            "--input={{ template('scoring_input') }}",
            "--output={{ template('scoring_output') }}",
        ],
        with_engine=True,
    )
    verify = ScoringJob(task_id="verify", arguments=["verify", OUTPUT], outlets=[PREDICTIONS])

    input_is_there >> score >> verify
