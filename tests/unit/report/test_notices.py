"""How a command ended, on standard output and at a webhook: every field, every exit code, no secret."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job import secrets
from tests.support.nights import Night, dense, features, kept, module, put_back, run_cli, saved
from tests.support.servers.scripted import Answer, Answers, answering

ROOT = Path(__file__).parents[3]
# Of a webhook; it is secret, and made up.
PATH = "/services/T012/B345/wJalrXUtnFEMIK7MDENG"
FIELDS = [
    *("version", "command", "status", "exit_code", "ds", "output", "run_id", "rows", "rejected", "seconds"),
    *("loads", "job", "started", "ended", "error", "flags"),
]
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night that was published, for tests to spoil."""
    night = Night(tmp_path_factory.mktemp("telling"))
    night.shard("a", features(30))
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=id")
    return kept(night)


@pytest.fixture
def done(aside: Path) -> Night:
    return put_back(aside)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    monkeypatch.setattr(secrets, "_learned", set())
    with answering(lambda _: Answer()) as one:
        yield one


def flags(night: Night, *more: str) -> list[str]:
    return night.args(night.folder / "m.keras", "--keys=id", "--json", *more)


def the_line(out: str) -> dict[str, Any]:
    assert out.count("\n") == 1, out
    assert out.endswith("\n")
    told: dict[str, Any] = json.loads(out)
    assert [*told] == FIELDS
    assert told["version"] == 1
    began, ended = (datetime.fromisoformat(told[name]) for name in ("started", "ended"))
    assert UTC_TIME.fullmatch(told["started"])
    assert (ended - began).total_seconds() == pytest.approx(told["seconds"], abs=0.002)
    return told


@pytest.mark.slow
def test_a_night_that_is_published_and_once_more(done: Night, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_cli(capfd, "score", *flags(done, "--if_exists=replace", "--batch_size=7"))
    told = the_line(out)
    assert (code, told["status"], told["exit_code"], told["error"]) == (0, "published", 0, None)
    assert (told["output"], told["run_id"]) == (str(done.output), done.manifest()["run_id"])
    assert (told["rows"], told["rejected"], told["loads"], told["job"]) == (30, 0, 1, None)
    assert told["flags"][-2:] == ["--if_exists=replace", "--batch_size=7"]
    # What a person reads is on standard error then.
    assert "30 scored of 30 read" in err
    code, out, err = run_cli(capfd, "score", *flags(done, "--batch_size=7"))
    again = the_line(out)
    assert (code, again["status"], again["run_id"]) == (0, "already_published", told["run_id"])
    assert (again["rows"], again["rejected"], again["loads"]) == (30, 0, 1)
    assert "nothing to do" in err


Spoil = Callable[[Night], list[str]]


def without_input(night: Night) -> list[str]:
    (night.input / "a.parquet").unlink()
    return flags(night)


def without_a_column(night: Night) -> list[str]:
    return flags(night, "--features=f0,f1,f2,f9", "--if_exists=replace")


def with_nulls(night: Night) -> list[str]:
    table = features(30)
    holes = pa.array([None, *table["f0"].to_pylist()[1:]], pa.float32())
    night.shard("a", table.set_column(1, "f0", holes))
    return flags(night, "--if_exists=replace")


@pytest.mark.parametrize(
    ("spoil", "code", "run", "error"),
    [
        (lambda night: flags(night, "--batch_size=0"), 2, False, r"--batch_size=0: must be .*"),
        (
            lambda night: flags(night, "--outptu=x"),
            2,
            False,
            "unknown flag --outptu; did you mean --output.*",
        ),
        (lambda night: ["--json=yes"], 2, False, "--json: ignored explicit argument 'yes'; see .*"),
        (lambda night: ["--json"], 2, False, "--input, --model, --output must be given.*"),
        (without_input, 3, False, "--input=.*"),
        (without_a_column, 4, True, ".*f9.*"),
        (with_nulls, 5, True, ".*more than --max_rejected=0.01.*"),
        (lambda night: flags(night, "--batch_size=7"), 6, True, ".*it holds run .*"),
        (
            lambda night: flags(
                night, "--batch_size=7", "--if_exists=replace", "--runner=PrismRunner", "--prism_location=/no"
            ),
            7,
            True,
            ".*/no.*",
        ),
    ],
)
def test_every_failure_is_one_line_too(
    done: Night, spoil: Spoil, code: int, run: bool, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = run_cli(capfd, "score", *spoil(done))
    told = the_line(out)
    assert (ended, told["exit_code"], told["status"]) == (code, code, "failed")
    assert re.fullmatch(error, told["error"]), told["error"]
    assert err.endswith(f"error: {told['error']}\n")
    assert (told["run_id"] is not None) is run
    assert (told["rows"], told["rejected"], told["loads"]) == (None, None, None)


def test_whoever_else_writes_to_standard_output_is_heard_on_the_other(
    done: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import ctypes, os, subprocess\n"
        "def build():\n"
        "    import keras\n"
        "    print('from-python')\n"
        "    os.write(1, b'from-a-descriptor\\n')\n"
        "    subprocess.run(['echo', 'from-a-child'], check=True)\n"
        "    ctypes.CDLL(None).printf(b'from-c\\n')\n"
        "    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])\n"
    )
    name = module(done.folder, "chatty_builder", source, monkeypatch)
    args = [f"--input={done.input}", f"--output={done.folder}/chatty", f"--model={name}:build"]
    code, out, err = run_cli(capfd, "score", *args, "--keys=id", "--json")
    assert (code, the_line(out)["status"]) == (0, "published"), err
    for said in ("from-python", "from-a-descriptor", "from-a-child", "from-c"):
        assert f"{said}\n" in err


def test_a_builder_that_leaves_is_told(
    done: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(done.folder, "leaving_builder", "import sys\ndef build(): sys.exit(3)\n", monkeypatch)
    args = [f"--input={done.input}", f"--output={done.folder}/left", f"--model={name}:build", "--json"]
    code, out, _ = run_cli(capfd, "score", *args)
    assert (code, the_line(out)["error"]) == (1, "SystemExit: 3")


def test_nobody_needs_to_read_standard_output(done: Night) -> None:
    command = f"{sys.executable} -m job score {shlex.join(flags(done))}"
    ran = subprocess.run(["bash", "-c", f"{command} >&-"], cwd=ROOT, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_a_full_disk_does_not_undo_a_night(done: Night, hook: Answers, as_json: bool) -> None:
    args = [arg for arg in flags(done, f"--notify_url={hook.endpoint}{PATH}") if as_json or arg != "--json"]
    command = [sys.executable, "-m", "job", "score", *args]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.endswith(
        "standard output cannot be written: No space left on device; the exit code says how it ended\n"
    )
    assert len(hook.asked) == 1


def test_a_report_that_nobody_gets_is_a_failure(done: Night) -> None:
    command = [sys.executable, "-m", "job", "report", str(done.output)]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "error: standard output: cannot be written: No space left on device\n"
    assert (ran.returncode, ran.stderr) == (1, told)


def test_help_is_help(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capfd, "score", "--json", "--help")
    assert code == 0
    assert out.startswith("usage: ")


@pytest.mark.parametrize("by", ["flag", "two arguments", "environment", "configuration"])
def test_a_webhook_gets_the_same_and_its_address_is_nowhere(
    done: Night, hook: Answers, by: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{hook.endpoint}{PATH}?key=7"
    more = {"flag": [f"--notify_url={url}"], "two arguments": ["--notify_url", url]}.get(by, [])
    if by == "configuration":
        (done.folder / "job.toml").write_text(f'notify_url = "{url}"\n')
        more = [f"--config={done.folder}/job.toml"]
        code, out, _ = run_cli(capfd, "score", *flags(done, *more, "--print_config"))
        assert (code, PATH in out) == (0, False)
        assert "# notify_url is given, and left out here: it is secret\n" in out
        # It can be fed back.
        (done.folder / "printed.toml").write_text(out)
        fed = (f"--config={done.folder}/printed.toml", "--print_config")
        assert run_cli(capfd, "score", *fed)[0] == 0
    if by == "environment":
        monkeypatch.setenv("SCORING_JOB_NOTIFY_URL", url)
    args = flags(done, "--if_exists=replace", "--batch_size=5", "--debug", *more)
    code, out, err = run_cli(capfd, "score", *args)
    told = the_line(out)
    (asked,) = hook.asked
    posted = json.loads(asked.body)
    text = posted.pop("text")
    assert (code, asked.path, posted) == (0, f"{PATH}?key=7", told)
    run = done.manifest()["run_id"][:12]
    assert re.fullmatch(
        rf"scoring: published, 30 rows, 0 rejected, \d+ s → {re.escape(str(done.output))} \(run {run}\)", text
    )
    for path in (path for path in done.output.rglob("*") if path.is_file()):
        assert PATH.encode() not in path.read_bytes()
    assert PATH not in out + err
    if by in ("flag", "two arguments"):
        assert "***" in told["flags"][-1]


def test_only_failures_where_these_are_asked_for(
    done: Night, hook: Answers, capfd: pytest.CaptureFixture[str]
) -> None:
    more = (f"--notify_url={hook.endpoint}{PATH}", "--notify_on=failure")
    assert run_cli(capfd, "score", *flags(done, *more))[0] == 0
    assert hook.asked == []
    code, _, _ = run_cli(capfd, "score", *flags(done, "--batch_size=<!channel>", *more))
    (asked,) = hook.asked
    posted = json.loads(asked.body)
    assert (code, posted["exit_code"]) == (2, 2)
    # In a chat, the first of these would wake everybody.
    assert posted["text"].startswith("scoring: failed, exit 2: --batch_size=&lt;!channel&gt;: must be")
    assert posted["error"].startswith("--batch_size=<!channel>: must be")


def test_a_webhook_that_refuses_changes_nothing(done: Night, capfd: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: Answer("invalid_token", status=403)) as hook:
        code, out, err = run_cli(capfd, "score", *flags(done, f"--notify_url={hook.endpoint}{PATH}"))
    assert (code, the_line(out)["status"]) == (0, "already_published")
    assert err.endswith(f"not notified: {hook.endpoint.removeprefix('http://')}: HTTP 403\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--notify_url=ftp://h/secret-path"], "--notify_url (not shown): must be http"),
        (["--notify_on=never"], "--notify_on=never: must be one of always, failure"),
        (["--notify_url="], "--notify_url= is empty; give a value, or leave the flag out"),
    ],
)
def test_wrong_flags_are_told(
    done: Night, more: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_cli(capfd, "score", *flags(done, *more))
    assert (code, the_line(out)["exit_code"]) == (2, 2)
    assert err.startswith(f"error: {message}")
    assert "secret-path" not in out + err


def test_a_wrong_address_in_the_environment_is_told(
    done: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORING_JOB_NOTIFY_URL", "hooks.example.org/secret-path")
    code, out, err = run_cli(capfd, "score", *flags(done))
    assert code == 2
    assert err.startswith("error: SCORING_JOB_NOTIFY_URL (not shown): must be http")
    assert "secret-path" not in out + err
