"""A run's flags as a file: what it may hold, who overrides whom, and the line of a mistake."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.cli import options
from job.errors import UsageError
from tests.support.nights import Night, dense, features, run_cli, saved

BASE = """\
input = "a/ds={ds}"
model = "m.keras"
output = 'out/{ds}'
"""
FLAGS = ["--input=a/ds={ds}", "--model=m.keras", "--output=out/{ds}"]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "night.toml"
    path.write_text(text)
    return f"--config={path}"


def refusal(tmp_path: Path, text: str, *flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        options.parse([written(tmp_path, text), *flags])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/night.toml")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/night.toml")


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", []),
        ("keys = 'id'", ["--keys=id"]),
        ("keys = ['id', 'a,b', ' x']", ['--keys="id","a,b"," x"']),
        ("keys = []", []),
        (
            "cast = {price = 'float32', 'a,b' = 'decimal128(10,2)'}",
            ['--cast=price=float32,"a,b=decimal128(10,2)"'],
        ),
        ("batch_size = 4096", ["--batch_size=4096"]),
        ("batch_size = 'auto'", ["--batch_size=auto"]),
        ("max_rejected = 0.5", ["--max_rejected=0.5"]),
        ("max_rejected = 1e-3", ["--max_rejected=1e-3"]),
        ("trust_model = true", ["--trust_model"]),
        ("trust_model = false", []),
        ("no_wait = true", ["--no_wait"]),
        ("ds = 2026-11-25", ["--ds=2026-11-25"]),
        ("wait_for_input = '2h'", ["--wait_for_input=2h"]),
        ("on_null = 'fill=0'", ["--on_null=fill=0"]),
        ("[engine]\nrunner = 'FlinkRunner'\nparallelism = 4", ["--runner=FlinkRunner", "--parallelism=4"]),
        ("[engine]\nstreaming = true\nsave_main_session = false", ["--streaming"]),
        ("[engine]\nexperiments = ['a', 'b=c']", ["--experiments=a", "--experiments=b=c"]),
    ],
)
def test_a_file_says_what_the_flags_say(tmp_path: Path, text: str, flags: list[str]) -> None:
    day = [] if "ds =" in text else ["--ds=2026-11-24"]
    found = options.parse([written(tmp_path, BASE + text), *day])
    assert found == options.parse([*FLAGS, *flags, *day])


@pytest.mark.parametrize(
    ("text", "flags", "wanted"),
    [
        ("batch_size = 4096", ["--batch_size=7"], ["--batch_size=7"]),
        ("keys = ['id', 'day']", ["--keys", "x"], ["--keys=x"]),
        ("no_wait = true", ["--wait"], ["--wait"]),
        ("wait = true", ["--no_wait"], ["--no_wait"]),
        # A mistake that does not count is none.
        ("batch_size = 'many'", ["--batch_size=7"], ["--batch_size=7"]),
        ("trust_model = true", ["--trust_model=false"], []),
        ("trust_model = false", ["--trust_model=true"], ["--trust_model"]),
        ("[engine]\nrunner = 'FlinkRunner'", ["--runner=PrismRunner"], ["--runner=PrismRunner"]),
        ("[engine]\nparallelism = 4", ["--parallelism", "2"], ["--parallelism", "2"]),
        ("[engine]\nparallelism = 4", ["--", "--own=1"], ["--parallelism=4", "--", "--own=1"]),
    ],
)
def test_the_command_line_comes_first(tmp_path: Path, text: str, flags: list[str], wanted: list[str]) -> None:
    found = options.parse([written(tmp_path, BASE + text), *flags])
    assert found == options.parse([*FLAGS, *wanted])


def test_inputs_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, BASE.replace('"a/ds={ds}"', '["a", "b"]'))
    assert options.parse([config, "--ds=2026-11-25"])[0].inputs == ("a", "b")
    assert options.parse([config, "--input=c", "--ds=2026-11-25"])[0].inputs == ("c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size = 1", ":4: bach_size: no flag of the job; did you mean batch_size?"),
        ("\n\nrunner = 'x'", ":6: runner: no flag of the job; a flag of the engine goes below [engine]"),
        ("batch_size = 0", ":4: --batch_size=0: must be a whole number"),
        ("'batch_size' = 0", ":4: --batch_size=0: must be a whole number"),
        ("batch_size = true", ":4: batch_size: true is no value that --batch_size could have"),
        ("keys = ['id', ['x']]", ':4: keys: ["x"] is no value'),
        ("keys = ['id', 'id']", ":4: --keys: id is listed more than once"),
        ("keys = {}", ":4: keys: {} is no value"),
        ("cast = {a = 1}\ncast.b = 2", ":5: no TOML: "),
        ("cast.a = 'float32'\ncast.b = true", ":4: cast: true is no value"),
        ("trust_model = 'yes'", ':4: trust_model: "yes" must be true or false'),
        ("model = 'n.keras'", ":4: no TOML: "),
        ("batch_size =", ":4: no TOML: "),
        ("config = 'other.toml'", ":4: config: goes on the command line"),
        ("print_config = true", ":4: print_config: goes on the command line"),
        ("[night]\nx = 1", ":4: night: no flag of the job"),
        ("engine = 'flink'", ":4: engine: must be a table, [engine]"),
        ("[engine]\nbatch_size = 1", ":5: batch_size: a flag of the job; it goes above [engine]"),
        ("[engine]\nrunnr = 'x'", ":5: unknown flag --runnr; did you mean --runner?"),
        ("[engine]\nrunner = {}", ":5: runner: {} is no value"),
        ("# ds = 1\nds = 2026-11-25T01:00:00", ":5: --ds=2026-11-25 01:00:00: must be a date"),
        (
            "[engine]\nrunner = 'FlnkRunner'",
            ":5: --runner=FlnkRunner: no such runner; did you mean FlinkRunner?",
        ),
        ("timezone = 'Berlin'", ":4: --timezone=Berlin: no such time zone"),
        ("weights = 'x.weights.h5'", ":4: --weights=x.weights.h5 goes only with"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, BASE + text).startswith(message)


def test_a_mistake_of_the_command_line_is_told_as_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--batch_size=x: "):
        options.parse([written(tmp_path, BASE + "batch_size = 1"), "--batch_size=x"])


def test_a_switch_is_on_or_off() -> None:
    with pytest.raises(UsageError, match="--trust_model is given twice, as true and false"):
        options.parse([*FLAGS, "--trust_model=false", "--trust_model"])
    # Their opposites say it.
    with pytest.raises(UsageError, match=r"^--wait: ignored explicit argument 'false'"):
        options.parse([*FLAGS, "--wait=false"])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"^--config={tmp_path}: {tmp_path}: cannot be read: Is a directory"
    ):
        options.parse([f"--config={tmp_path}"])


def test_a_file_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--config=/nowhere/x\.toml: no such file$"):
        options.parse(["--config=/nowhere/x.toml"])
    with pytest.raises(UsageError, match="--config is given twice"):
        options.parse(["--config=a.toml", "--config=b.toml"])
    (tmp_path / "night.toml").write_bytes(b"model = '\xff'")
    with pytest.raises(UsageError, match="no TOML: 'utf-8' codec"):
        options.parse([f"--config={tmp_path}/night.toml"])


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
NAMES = st.lists(TEXTS, min_size=1, max_size=3, unique=True)
OWN: dict[str, st.SearchStrategy[Any]] = {
    "keys": NAMES,
    "features": NAMES,
    "batch_size": st.integers(1, 10**6),
    "max_rejected": st.sampled_from([0.0, 0.25, 1e-5, 1]),
    "trust_model": st.booleans(),
    "device": st.sampled_from(["cpu", "gpu"]),
    "on_null": st.sampled_from(["nan", "fill=1.5"]),
    "wait_for_input": st.sampled_from(["90m", "0s"]),
    "requester_pays": TEXTS,
}


@pytest.mark.slow
@given(st.fixed_dictionaries({}, optional=OWN))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_printed_says_the_same_when_it_is_read(tmp_path: Path, own: dict[str, Any]) -> None:
    flags = [
        *FLAGS,
        "--ds=2026-11-25",
        "--runner=FlinkRunner",
        "--experiments=a",
        "--experiments=b",
        "--streaming",
    ]
    for name, value in own.items():
        if isinstance(value, list):
            quoted = ",".join('"{}"'.format(item.replace('"', '""')) for item in value)
            flags.append(f"--{name}={quoted}")
        elif value is True:
            flags.append(f"--{name}")
        elif value is not False:
            flags.append(f"--{name}={value}")
    with options.parsed(flags) as asked:
        printed = asked.printed(asked.night)
    tomllib.loads(printed)
    assert options.parse([written(tmp_path, printed)]) == options.parse(flags)


def test_a_night_is_scored_by_its_file(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    night.shard("ds=2026-11-25/a", features(20))
    saved(dense(), night.folder / "m.keras")
    text = (
        f"input = '{night.input}/ds={{ds}}'\nmodel = '{night.folder}/m.keras'\noutput = '{night.output}'\n"
        "keys = ['id']\n\n[engine]\ndirect_num_workers = 1\n"
    )
    config = written(night.folder, text)
    code, out, err = run_cli(capfd, "score", config, "--ds=2026-11-25", "--print_config")
    assert (code, err) == (0, "")
    told = tomllib.loads(out)
    assert (told["ds"], told["keys"], told["engine"]) == ("2026-11-25", ["id"], {"direct_num_workers": "1"})
    for default in (
        'timezone = "UTC"',
        'batch_size = "auto"',
        'wait_for_input = "0s"',
        'notify_on = "always"',
    ):
        assert f"# {default}\n" in out
    assert not night.output.exists()
    code, _, err = run_cli(capfd, "score", config, "--ds=2026-11-25")
    assert code == 0, err
    assert len(night.files()) == 1


def test_secrets_of_the_file_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, BASE + "[engine]\ns3_secret_access_key = 'hunter2hunter2'\n")
    code, out, _ = run_cli(capfd, "score", config, "--print_config")
    assert code == 0
    assert "# s3_secret_access_key is given, and left out" in out
    assert "hunter2" not in out
    assert tomllib.loads(out)["engine"] == {}


@pytest.mark.parametrize("command", ["score", "backfill", "plan", "doctor"])
def test_every_command_prints_what_is_in_force_or_what_is_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    days = ["--start=2026-11-24", "--end=2026-11-25", "--json"] if command == "backfill" else []
    config = written(tmp_path, BASE + "[engine]\nrunner = 'FlinkRunner'\n")
    code, out, err = run_cli(capfd, command, config, *days, "--print_config", "--", "--print_config=no")
    assert (code, err) == (0, "")
    told = tomllib.loads(out)
    assert (told["model"], told["engine"]) == ("m.keras", {"runner": "FlinkRunner"})
    assert out.endswith("# and unchecked: --print_config=no\n")
    if days:
        assert out.startswith("# on the command line: --start=2026-11-24 --end=2026-11-25 --parallel=auto\n")
    written(tmp_path, BASE + "[engine]\nrunner = 'FlnkRunner'\n")
    code, out, err = run_cli(capfd, command, config, *days, "--print_config")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}/night.toml:5: --runner=FlnkRunner: no such runner")


def test_what_stands_behind_bare_dashes_is_the_engines(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", features(20))
    model = saved(dense(), night.folder / "m.keras")
    code, out, err = run_cli(capfd, "score", *night.args(model, "--keys=id", "--", "--print_config"))
    assert code == 0, err
    assert "20 scored of 20 read" in out


@pytest.mark.parametrize(
    ("text", "command", "code", "told"),
    [
        ("max_psi = 'nosuch=0.1'", "score", 2, "--max_psi=nosuch=0.1: no prediction column"),
        ("keys = ['flightid']", "score", 4, "--keys names 'flightid', which is no column"),
        ("keys = ['flightid']", "plan", 4, "--keys names 'flightid', which is no column"),
        ("ds = 2026-11-25", "backfill", 2, "--ds=2026-11-25: backfill scores"),
    ],
)
def test_a_mistake_that_is_found_later_is_told_with_its_line(
    night: Night, capfd: pytest.CaptureFixture[str], text: str, command: str, code: int, told: str
) -> None:
    night.shard("a", features(20))
    model = saved(dense(), night.folder / "m.keras")
    config = written(night.folder, f"# of a night\n{text}\n")
    days = ["--start=2026-11-24"] if command == "backfill" else []
    ended, _, err = run_cli(capfd, command, config, *night.args(model, "--features=f0,f1,f2,f3"), *days)
    assert ended == code, err
    assert f"error: {night.folder}/night.toml:2: {told}" in err
