"""What people see: exit codes, one-line messages, standard output against standard error."""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow
import pytest

from job import errors
from job.cli import commands, main
from job.cli.commands import COMMANDS
from job.launch.score import Outcome
from job.spec import ScoringSpec
from job.terminal import library_output
from tests.unit.report.test_run_report import REPORT

ROOT = Path(__file__).parents[3]
ALL = "score, backfill, plan, doctor, report, verify, diff, publish, golden, clean, completion"
REQUIRED = ("--input=a", "--model=m.keras", "--output=o")


def job(*args: str, program: tuple[str, ...] = ("-m", "job")) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


Score = Callable[..., Outcome]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], None]:
    """Puts a function in the launcher's place, and leaves this process's logging alone."""

    def put(score: Score) -> None:
        launch = ModuleType("job.launch.score")
        launch.score = score  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "job.launch.score", launch)
        monkeypatch.setattr("job.launch.score", launch, raising=False)

    monkeypatch.setattr(library_output, "hush", lambda *, debug: None)
    return put


def raising(error: BaseException) -> Score:
    def score(*args: object, **kwargs: object) -> Outcome:
        raise error

    return score


def test_help_lists_the_commands_that_exist() -> None:
    done = job("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [
        line.split()[0] for line in done.stdout.partition("commands:\n")[2].splitlines() if line[:2] == "  "
    ]
    assert listed == list(COMMANDS) == ALL.split(", ")


@pytest.mark.parametrize(("number", "command"), list(enumerate(ALL.split(", "))))
def test_every_command_has_help(number: int, command: str) -> None:
    done = job(command, ("-h", "--help")[number % 2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m job {command} ")


def test_a_command_is_a_module_and_a_line() -> None:
    modules = {one.name for one in pkgutil.iter_modules(commands.__path__)}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=str)
def test_help_shows_a_date_as_it_is_typed(command: commands.Command) -> None:
    told = command.parser().format_help()
    assert "%%" not in told
    assert ("{ds:%Y/%m/%d}" in told) == (command.name in ("score", "backfill", "plan", "doctor"))


@pytest.mark.parametrize("args", [["--help"], ["score", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_slow(args: list[str]) -> None:
    program = (
        f"import sys; from job.cli import main as cli; code = cli.main({args}); "
        "slow = {'apache_beam', 'keras', 'numpy', 'pyarrow', 'rich', 'tensorflow'} & set(sys.modules); "
        "print(slow, file=sys.stderr); sys.exit(code)"
    )
    done = job(program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "set()\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], f"no command; use one of {ALL}, or python -m job --help"),
        (
            ["scoer"],
            "unknown command 'scoer'; did you mean score? See python -m job --help",
        ),
        (
            ["nightly"],
            f"unknown command 'nightly'; use one of {ALL}, or python -m job --help",
        ),
        (["help", "clen"], "unknown command 'clen'; did you mean clean? See python -m job --help"),
        (["--input=a", "score"], "--input=a: a command comes before its flags; see python -m job --help"),
        (
            ["diff", "a", "b", "--columns", "x", "y"],
            "--columns x y: a list has commas and no blanks; use --columns=x,y",
        ),
        (
            ["score", *REQUIRED, "--batch_size=0"],
            "--batch_size=0: must be a whole number of rows from 1, or auto",
        ),
        # Whether an engine knows it is Beam's to say, which takes seconds to import.
        pytest.param(
            ["score", *REQUIRED, "--outptu=x"],
            "unknown flag --outptu; did you mean --output?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["score", *REQUIRED, "--runer", "X"],
            "unknown flag --runer; did you mean --runner?",
            marks=pytest.mark.slow,
        ),
        (["report"], "the following arguments are required: OUTPUT; see python -m job report --help"),
        (["report", "a", "b"], "unrecognized arguments: b; see python -m job report --help"),
        (["report", "a", "--all"], "unknown flag --all; see python -m job report --help"),
        (["verify", "a", "--sample_row=3"], "unknown flag --sample_row; did you mean --sample_rows?"),
        (["clean", "a", "--kms_key="], "--kms_key= is empty; give a value, or leave the flag out"),
    ],
)
def test_wrong_usage_is_one_line_on_standard_error_and_exit_code_2(args: list[str], message: str) -> None:
    done = job(*args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["help", command]) == 0
    told = capsys.readouterr()
    assert main.main([command, "--help"]) == 0
    assert capsys.readouterr() == told
    assert told.out.startswith(f"usage: scoring-job {command} ")


def test_help_of_nothing_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["help"]) == 0
    told = capsys.readouterr()
    assert main.main(["--help"]) == 0
    assert capsys.readouterr() == told


def test_version_is_that_of_the_installed_packages() -> None:
    program = (
        "import sys; from job.cli import main as cli; code = cli.main(['--version']); "
        "print({'apache_beam', 'keras', 'pyarrow', 'tensorflow'} & set(sys.modules), file=sys.stderr)"
    )
    done = job(program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "set()\n")
    told = dict(line.split(" ") for line in done.stdout.splitlines())
    # As the installer has named their folders.
    site = Path(pyarrow.__file__).parents[1]
    for package in ("apache-beam", "keras", "tensorflow", "pyarrow"):
        assert (site / f"{package.replace('-', '_')}-{told[package]}.dist-info").is_dir()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["scoring-job"] == declared["version"]


def test_debug_adds_the_traceback() -> None:
    done = job("score", *REQUIRED, "--batch_size=0", "--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.splitlines()[-1].startswith("error: --batch_size=0: ")


def test_score_hands_over_the_spec_and_prints_the_table(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def score(spec: ScoringSpec, beam_args: tuple[str, ...], *, announce: Callable[[str], None]) -> Outcome:
        announce(f"{spec.model} {spec.batch_size} {beam_args}")
        return Outcome(REPORT, already_published=False)

    launched(score)
    assert main.main(["score", *REQUIRED, "--batch_size=7", "--", "--x"]) == 0
    out, err = capsys.readouterr()
    assert err == "m.keras 7 ('--x',)\n"
    assert "1,730 scored of 1,750 read, 20 rejected" in out
    assert "/data/out" in out


def test_an_output_that_is_there_already_is_said_in_one_line(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(lambda *args, **kwargs: Outcome(REPORT, already_published=True))
    assert main.main(["score", *REQUIRED]) == 0
    assert capsys.readouterr() == ("already published: run abababababab at /data/out: nothing to do\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.JobError, 1),
        (errors.UsageError, 2),
        (errors.NoInputError, 3),
        (errors.PreflightError, 4),
        (errors.ModelError, 4),
        (errors.SchemaError, 4),
        (errors.ShardError, 4),
        (errors.DataError, 5),
        (errors.OutputConflictError, 6),
        (errors.EngineError, 7),
        (errors.StorageError, 1),
        (errors.StateUnknownError, 1),
    ],
)
def test_every_error_ends_with_its_exit_code_and_one_line(
    error: type[errors.JobError],
    code: int,
    launched: Callable[[Score], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(raising(error("column [price]\nis   missing")))
    assert main.main(["score", *REQUIRED]) == code
    assert capsys.readouterr() == ("", "error: column [price] is missing\n")


def test_an_unexpected_error_is_one_line_and_points_to_debug(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(raising(ZeroDivisionError("a surprise")))
    assert main.main(["score", *REQUIRED]) == 1
    expected = "error: ZeroDivisionError: a surprise; run again with --debug for the traceback\n"
    assert capsys.readouterr() == ("", expected)


def test_an_unexpected_error_in_json_is_without_the_hint(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(raising(ZeroDivisionError("a surprise")))
    assert main.main(["score", *REQUIRED, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["status"]) == (1, "failed")
    assert told["error"] == "ZeroDivisionError: a surprise"


def test_an_unexpected_error_with_debug_shows_where(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(raising(ZeroDivisionError("a surprise")))
    assert main.main(["score", *REQUIRED, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: ZeroDivisionError: a surprise\n")


def test_an_interrupt_says_that_the_same_command_resumes(
    launched: Callable[[Score], None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(raising(KeyboardInterrupt()))
    assert main.main(["score", *REQUIRED]) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes where this one stopped\n"


def test_report_prints_the_table_of_an_output(tmp_path: Path) -> None:
    report = dataclasses.replace(REPORT, output=str(tmp_path))
    (tmp_path / "_report.json").write_text(report.to_json(), encoding="utf-8")
    done = job("report", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1,730 scored of 1,750 read, 20 rejected" in done.stdout


def test_report_of_an_output_without_one_says_so(tmp_path: Path) -> None:
    done = job("report", str(tmp_path))
    assert done.returncode == 2
    expected = f"error: {tmp_path}/_report.json: no such file; nothing was published at {tmp_path}\n"
    assert (done.stdout, done.stderr) == ("", expected)


def test_report_of_a_file_address(tmp_path: Path) -> None:
    (tmp_path / "_report.json").write_text(REPORT.to_json(), encoding="utf-8")
    done = job("report", f"file://{tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"report_version": 1}'])
def test_a_report_that_is_gone_or_damaged_is_named(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "_SUCCESS").touch()
    if content is not None:
        (tmp_path / "_report.json").write_text(content)
    done = job("report", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/_report.json")
    assert done.stderr.count("\n") == 1
    assert "nothing was published" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "hint"),
    [
        ("FlnkRunner", "did you mean FlinkRunner?"),
        ("NoSuchRunner", "use one of "),
        ("no_such_module.Runner", "No module named 'no_such_module'"),
        ("job.engines.choice.Runner", "job.engines.choice has no Runner"),
    ],
)
def test_a_runner_that_does_not_exist_is_told_at_once(runner: str, hint: str) -> None:
    done = job("score", *REQUIRED, f"--runner={runner}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --runner={runner}: ")
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_left_does_not_turn_success_into_failure() -> None:
    program = (
        "import os, sys; from job.cli import main as cli; "
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1); sys.exit(cli.main(['--help']))"
    )
    done = job(program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_console_script_is_the_module_with_its_exit_code() -> None:
    script = Path(sys.executable).with_name("scoring-job")
    if not script.exists():
        pytest.skip("the package is not installed here")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([script], cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stderr.endswith("or scoring-job --help\n")


@pytest.mark.slow
def test_all_messages_name_the_program_that_was_called(capsys: pytest.CaptureFixture[str]) -> None:
    as_script, as_module = "scoring-job", "python -m job"
    told: dict[str, str] = {}
    for program in (as_script, as_module):
        for args in ([], ["scroe"], ["--help"], ["publish", "x"], ["report"], ["score"]):
            # As a module it is another process, for how Python was started is not told to it anew.
            if program == as_script:
                main.main(args)
                out, err = capsys.readouterr()
            else:
                done = job(*args)
                out, err = done.stdout, done.stderr
            told[program] = told.get(program, "") + out + err
    assert as_module not in told[as_script]
    assert as_script not in told[as_module]
    assert told[as_script].count(as_script) == told[as_module].count(as_module) >= 6
