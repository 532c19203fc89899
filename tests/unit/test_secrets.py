"""Secrets: hidden wherever a text leaves the process, and nothing else hidden."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from job import secrets
from job.commit import staging
from job.errors import StorageError
from tests.support.nights import Night, dense, features, run_cli, saved

# Made up, and of the form that clouds give theirs.
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_learned", set())


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("s3://AKIA:abc@bucket/x: no such scheme", "s3://***@bucket/x: no such scheme"),
        ("https://u@host/a and ftp://u:p@h/", "https://***@host/a and ftp://***@h/"),
        ("https://h/x?X-Amz-Signature=abc&part=2", "https://h/x?X-Amz-Signature=***&part=2"),
        ("https://h/x?sv=1&sig=a%2Fb&se=2", "https://h/x?sv=1&sig=***&se=2"),
        (f"'aws_secret_access_key={SECRET}'", "'aws_secret_access_key=***'"),
        ("--s3_session_token=abc, --region=x", "--s3_session_token=***, --region=x"),
        ("password=hunter2; user=me", "password=***; user=me"),
    ],
)
def test_secrets_are_known_by_their_names_and_places(text: str, scrubbed: str) -> None:
    assert secrets.scrub(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "in/ds=2013-12-01/a.parquet: column 'f1' string cannot feed model input 'x' float32 (10,)",
        "--keys=id,name --max_rejected=0.01 --model_sha256=abc --on_null=fill=0",
        "/data/token_counts/part-0.parquet: 3 of 5 rows",
        "mail me@example.org",
        "AWS_SHARED_CREDENTIALS_FILE=/home/me/.aws/credentials",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert secrets.scrub(text) == text


def test_values_are_hidden_wherever_they_turn_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/key.json")
    assert secrets.scrub(f"the server did not like {SECRET}!") == "the server did not like ***!"
    assert secrets.scrub("no file /etc/key.json") == "no file /etc/key.json"
    secrets.learn(["score", "--s3_session_token", "abcdefgh", "--my_password=12345678", "--token=ab"])
    assert secrets.scrub("abcdefgh 12345678 ab") == "*** *** ab"


def test_what_libraries_log_is_scrubbed_tracebacks_included() -> None:
    form = secrets.Scrubbing("%(message)s")
    try:
        raise ValueError("no https://me:hunter22@host for \x1b[2Jx")
    except ValueError:
        told = ("connecting to %s", ("https://me:hunter22@host",), sys.exc_info())
        record = logging.LogRecord("anybody", logging.ERROR, "", 0, *told)
    first, *_, last = form.format(record).splitlines()
    assert first == "connecting to https://***@host"
    assert last == "ValueError: no https://***@host for \\u001b[2Jx"


def test_what_a_worker_leaves_behind_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", SECRET)
    staging.write_plan(str(tmp_path), "a" * 64, [])
    staging.write_failure(str(tmp_path), "a" * 64, "part-0", StorageError(f"denied to {SECRET}"))
    assert str(staging.failure(str(tmp_path), "a" * 64)) == "denied to ***"


@pytest.mark.parametrize("flag", ["--input", "--model", "--output"])
def test_a_url_in_a_flag(night: Night, flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    night.shard("a", features(10))
    args = [a for a in night.args(saved(dense(), night.folder / "m.keras")) if not a.startswith(flag)]
    for debug in ([], ["--debug"]):
        code, out, err = run_cli(capfd, "score", *args, f"{flag}=s3://AKIA:hunter22@bucket/x", *debug)
        assert code in (2, 4)
        assert "hunter22" not in out + err
        assert "bucket/x" in err


def test_a_mistyped_flag_does_not_show_its_value(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capfd, "score", *night.args("m.keras"), f"--s3_secret_acces_key={SECRET}")
    assert code == 2
    assert SECRET not in err
    assert "did you mean --s3_secret_access_key?" in err


@pytest.mark.slow
def test_a_whole_run_leaves_no_secret_anywhere(night: Night) -> None:
    night.shard("a", features(50))
    model = saved(dense(), night.folder / "m.keras")
    command = [sys.executable, "-m", "job", "score", *night.args(model, "--keys=id", "--debug")]
    environment = {**os.environ, "AWS_SESSION_TOKEN": f"session{SECRET}"}
    done = subprocess.run(
        [*command, f"--s3_secret_access_key={SECRET}"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET.encode() not in done.stdout + done.stderr
    for path in night.output.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
