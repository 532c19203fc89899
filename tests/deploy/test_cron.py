"""The crontab of ``deploy/cron`` and its script, which runs the real job."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.jobs import Zygote
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until
from tests.support.systemd_manager import need

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "job.toml"
CRONTAB = ROOT / "deploy" / "cron" / "crontab"
SCRIPT = ROOT / "deploy" / "cron" / "scoring-night"


def cron_command() -> str:
    """The command line of the crontab, as cron gives it to the shell."""
    (line,) = re.findall(r"^30 2 \* \* \* (.*)$", CRONTAB.read_text(), re.M)
    assert not re.search(r"(?<!\\)%", line), "cron would end the command there"
    return str(line.replace(r"\%", "%"))


def test_cron_reads_the_crontab() -> None:
    need("crontab")
    done = subprocess.run(["crontab", "-n", CRONTAB], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.fixture
def cron(night: Night, warm: Zygote, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Night, Any]]:
    """A machine's job and configuration, and what runs the crontab's command on it."""
    job = night.folder / "scoring-job"
    job.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {warm.python} -m job "$@"\n')
    job.chmod(0o755)
    config = CONFIG.read_text().replace("flight_id", "id").replace('"2h"', '"0s"')
    for theirs, ours in (("features", "in"), ("predictions", "out"), ("models/flights.keras", "m.keras")):
        config = config.replace(f"/srv/scoring/{theirs}", str(night.folder / ours))
    (night.folder / "job.toml").write_text(config)
    env = {"JOB": job, "CONFIG": f"{night.folder}/job.toml", "PAUSE_S": 0, "TRIES": 2}
    for name, value in env.items():
        monkeypatch.setenv(f"SCORING_{name}", str(value))
    monkeypatch.setenv("TMPDIR", str(night.folder))
    command = cron_command().replace("/opt/scoring-job", str(ROOT))

    def run(more: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(f"{command} {more}", shell=True, capture_output=True, text=True, timeout=120)

    yield night, run
    assert not list(night.folder.glob("tmp.*")), "the script leaves nothing behind"


def test_cron_mails_what_failed_and_whether_it_was_tried_again(cron: tuple[Night, Any]) -> None:
    night, run = cron
    # Looked at only when there is something to score.
    (night.folder / "m.keras").touch()
    missing = run()
    assert missing.returncode == 3
    last = datetime.now(UTC).date() - timedelta(days=1)
    assert f"night {last} is not published: exit code 3, tried 2 of 2 times\n" in missing.stdout
    assert "error: " in missing.stdout
    usage = run("--batch_size=none")
    assert usage.returncode == 2
    assert "exit code 2, tried 1 of 2 times\n" in usage.stdout


@pytest.mark.parametrize("during", ["the job", "the pause"])
def test_who_ends_the_script_ends_what_it_runs(
    cron: tuple[Night, Any], during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, _ = cron
    (night.folder / "m.keras").touch()
    monkeypatch.setenv("SCORING_PAUSE_S", "60")
    # It looks for its input as long as that; without the flag it ends at once, to be tried again.
    waits = ["--wait_for_input=60s"] if during == "the job" else []
    with subprocess.Popen([SCRIPT, "2026-02-01", *waits], stdout=subprocess.PIPE, text=True) as script:
        try:
            (child,) = _children(script.pid, "waiting for it" if waits else "sleep", night.folder)
            script.terminate()
            told, _ = script.communicate(timeout=30)
        finally:
            script.kill()
    assert script.returncode == 143
    assert told.startswith("night 2026-02-01 is not published: exit code 143, tried 1 of 2 times\n")
    assert ("terminated by SIGTERM" in told) == bool(waits)
    assert not child.is_running()


def _children(pid: int, doing: str, folder: Path) -> list[psutil.Process]:
    """The processes of the script, once its log says what they do, or their name."""

    def there() -> bool:
        names = [one.name() for one in psutil.Process(pid).children()]
        return doing in names or any(doing in log.read_text() for log in folder.glob("tmp.*"))

    until(there)
    found: list[psutil.Process] = psutil.Process(pid).children()
    return found


@pytest.mark.slow
def test_cron_scores_last_night_and_says_nothing(cron: tuple[Night, Any]) -> None:
    night, run = cron
    last = datetime.now(UTC).date() - timedelta(days=1)
    night.shard(f"ds={last}/part-0", features(50))
    (night.input / f"ds={last}" / "_SUCCESS").touch()
    saved(dense(), night.folder / "m.keras")
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (night.output / f"ds={last}" / "_SUCCESS").exists()
