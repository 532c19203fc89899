"""What the files of ``deploy`` that start nights have in common: flags, nights, places and exit codes."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from job import errors
from job.cli import options
from job.errors import JobError
from job.spec import ScoringSpec
from tests.deploy.test_image import arguments, target
from tests.support.servers import kubernetes
from tests.unit.test_repository import pins

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "job.toml"
INSTALLED = "/opt/scoring-job/.venv/bin/scoring-job"
CONFIGURED = "--config=/etc/scoring-job/job.toml"
MANIFESTS = ("cronjob.yaml", "cronjob-flink.yaml")
# What may end well the next time: storage and what nobody foresaw, late input, an engine that is down.
WORTH_A_TRY = {1, 3, 7}


def text(*names: str) -> str:
    return DEPLOY.joinpath(*names).read_text()


def codes(found: str) -> set[int]:
    return {int(one) for one in re.findall(r"\d+", found)}


def constant(name: str) -> Any:
    """A constant of the DAG's file, which cannot be imported without Airflow."""
    for node in ast.parse(text("airflow", "nightly_scoring.py")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert node.value is not None
            value = node.value
            return ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value)
    raise AssertionError(name)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text("kubernetes", name)))


def job_spec(name: str) -> dict[str, Any]:
    (cron_job,) = documents(name)
    return dict(cron_job["spec"]["jobTemplate"]["spec"])


def pod(name: str) -> dict[str, Any]:
    return dict(job_spec(name)["template"]["spec"])


def in_kubernetes(tmp_path: Path) -> Path:
    """The configuration that the CronJobs mount."""
    path = tmp_path / "job.toml"
    path.write_text(documents("config.yaml")[1]["data"]["job.toml"])
    return path


def parsed(args: Sequence[str], config: Path = CONFIG) -> tuple[ScoringSpec, tuple[str, ...]]:
    """What a command line of a scheduler asks for, once the configuration lies where it says."""
    assert CONFIGURED in args
    return options.parse([f"--config={config}" if arg == CONFIGURED else arg for arg in args])


def test_no_scheduler_tries_again_what_would_fail_again() -> None:
    """A new exit code must be put on one side or the other."""
    known = {
        one.exit_code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, JobError)
    }
    assert known > WORTH_A_TRY
    never = known - WORTH_A_TRY
    (systemd,) = re.findall(r"^RestartPreventExitStatus=(.*)", text("systemd", "scoring-job.service"), re.M)
    (cron,) = re.findall(r"^ +(\d[ |\d]+)\) break", text("cron", "scoring-night"), re.M)
    assert constant("NO_RETRY") == codes(systemd) == codes(cron) == never
    for name in MANIFESTS:
        ignored, fails = job_spec(name)["podFailurePolicy"]["rules"]
        assert (ignored["action"], fails["action"]) == ("Ignore", "FailJob")
        assert set(fails["onExitCodes"]["values"]) == never


def test_the_configuration_is_of_last_night() -> None:
    before, (spec, engine), after = today(), options.parse([f"--config={CONFIG}"]), today()
    assert before <= datetime.fromisoformat(spec.ds).date() + timedelta(days=1) <= after
    assert spec.inputs == (f"/srv/scoring/features/ds={spec.ds}",)
    assert spec.output == f"/srv/scoring/predictions/ds={spec.ds}"
    assert engine == ()


def today() -> Any:
    zone = tomllib.loads(CONFIG.read_text())["timezone"]
    return datetime.now(ZoneInfo(zone)).date()


def test_the_dag_has_the_places_of_the_configuration() -> None:
    config = tomllib.loads(CONFIG.read_text())
    dag = text("airflow", "nightly_scoring.py")
    for variable, key in (("scoring_input", "input"), ("scoring_output", "output")):
        assert constant("PLACES")[variable] == config[key]
    assert f'path=f"{{INPUT}}/{config["input_marker"]}"' in dag
    assert f"'{INSTALLED}'" in dag
    assert f"'{CONFIGURED.partition('=')[2]}'" in dag


@pytest.mark.parametrize("engine", ["local", "flink", "dataflow"])
def test_the_dags_engines_are_flags_of_the_engine(engine: str) -> None:
    engines = constant("ENGINES")
    assert engines.keys() == {"local", "flink", "dataflow"}
    flags = engines[engine]
    assert parsed(["--ds=2026-02-01", CONFIGURED, *flags])[1] == flags


def test_every_scheduler_goes_by_the_zone_and_the_time_of_the_others(tmp_path: Path) -> None:
    zone = tomllib.loads(CONFIG.read_text())["timezone"]
    assert (
        constant("TIMEZONE")
        == zone
        == tomllib.loads(in_kubernetes(tmp_path).read_text())["timezone"]
        == "UTC"
    )
    assert constant("SCHEDULE") == "30 2 * * *"
    assert "OnCalendar=*-*-* 02:30:00 UTC\n" in text("systemd", "scoring-job.timer")
    assert re.search(r"^30 2 \* \* \* .*date --utc ", text("cron", "crontab"), re.M)
    for name in MANIFESTS:
        (cron_job,) = documents(name)
        assert (cron_job["spec"]["schedule"], cron_job["spec"]["timeZone"]) == ("30 2 * * *", "Etc/UTC")


def test_the_last_try_is_of_the_same_night() -> None:
    """Where the job itself takes yesterday: a try on the next day would be of another night."""
    day_s, start_s = 86_400, 2.5 * 3600
    unit = text("systemd", "scoring-job.service")
    (tries,) = re.findall(r"^StartLimitBurst=(\d+)$", unit, re.M)
    hours = {
        name: int(n) for name, n in re.findall(r"^(StartLimitInterval|TimeoutStart)Sec=(\d+)h$", unit, re.M)
    }
    # The limit of starts counts only those within its time.
    assert start_s + hours["StartLimitInterval"] * 3600 < day_s
    assert start_s + int(tries) * hours["TimeoutStart"] * 3600 + 4 * 600 < day_s
    for name in MANIFESTS:
        (cron_job,) = documents(name)
        late_s = cron_job["spec"]["startingDeadlineSeconds"] + job_spec(name)["activeDeadlineSeconds"]
        assert start_s + late_s < day_s


def test_the_unit_runs_the_command(tmp_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)", text("systemd", "scoring-job.service"), re.M)
    program, command, *flags = shlex.split(line)
    assert (program, command) == (INSTALLED, "score")
    spec, _ = parsed(flags)
    # It may write nowhere else.
    assert f"\nReadWritePaths=-{Path(spec.output).parent}\n" in text("systemd", "scoring-job.service")


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_runs_the_command_of_the_image(name: str, tmp_path: Path) -> None:
    (container,) = pod(name)["containers"]
    assert arguments("ENTRYPOINT", target("launcher"))[-1] == '["python", "-m", "job"]'
    assert "scoring-launcher" in container["image"]
    assert str(pod(name)["securityContext"]["runAsUser"]) == arguments("USER", target("launcher"))[-1]
    command, *flags = container["args"]
    assert command == "score"
    spec, engine = parsed(flags, in_kubernetes(tmp_path))
    assert spec.ds in spec.output
    assert engine == (constant("ENGINES")["flink"] if "flink" in name else ())
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert f"--config={mounted['config']}/job.toml" == CONFIGURED
    assert {"name": "config", "configMap": {"name": "scoring-job"}} in pod(name)["volumes"]


@pytest.mark.parametrize("name", [*MANIFESTS, "config.yaml"])
def test_kubernetes_takes_the_manifest(name: str) -> None:
    kinds, wrong = kubernetes.problems(DEPLOY / "kubernetes" / name)
    assert wrong == []
    assert kinds == [one["kind"] for one in documents(name)]


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ('"30 2 * * *"', '"30 25 * * *"', "above maximum"),
        ("Etc/UTC", "Etc/Nowhere", "unknown time zone"),
        ("Policy: Forbid", "Policy: Never", 'supported values: "Allow", "Forbid", "Replace"'),
        ("containerName: score", "containerName: other", "must be one of the container"),
        ("backoffLimit", "backofLimit", "unknown field"),
    ],
)
def test_kubernetes_would_say_what_is_wrong(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "cronjob.yaml"
    path.write_text(text("kubernetes", "cronjob.yaml").replace(right, wrong, 1))
    assert told in " ".join(kubernetes.problems(path)[1])


def test_cloud_scheduler_launches_the_template_with_parameters_that_it_has() -> None:
    from google.cloud.dataflow_v1beta3 import LaunchFlexTemplateRequest

    body = text("cloud-scheduler", "launch.json")
    # It knows every field there is, and refuses others.
    launch = LaunchFlexTemplateRequest.from_json(body, ignore_unknown_fields=False).launch_parameter
    known = {one["name"]: one for one in json.loads(text("dataflow", "metadata.json"))["parameters"]}
    given = dict(launch.parameters)
    assert {name for name, one in known.items() if not one.get("isOptional")} <= given.keys() <= known.keys()
    for name, value in given.items():
        assert re.fullmatch(known[name]["regexes"][0], value), name
    spec_of = importlib.util.spec_from_file_location("entry_point", DEPLOY / "dataflow" / "main.py")
    assert spec_of is not None
    assert spec_of.loader is not None
    spec_of.loader.exec_module(entry_point := importlib.util.module_from_spec(spec_of))
    spec, _ = options.parse([*entry_point.flags(f"--{name}={value}" for name, value in given.items())])
    assert spec.output.endswith(f"/ds={spec.ds}")
    assert launch.job_name
    create = text("cloud-scheduler", "create")
    assert "/launch.json" in create
    assert f"'{spec.timezone}'" in create or f"/{spec.timezone} " in create


def test_airflow_is_of_one_lock() -> None:
    lines = [line for line in text("airflow", "requirements.lock").splitlines() if not line.startswith("#")]
    allowed = re.compile(r"[a-z0-9._-]+==\S+( ; [^;#@]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not allowed.fullmatch(line)] == []
    version = pins("deploy/airflow/requirements.lock")["apache-airflow"]
    assert f"apache-airflow=={version}\n" in text("airflow", "requirements.in")
    assert f"| Airflow {version} |" in (ROOT / "docs" / "schedulers.md").read_text()
