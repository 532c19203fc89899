"""The units of ``deploy/systemd``: read by ``systemd-analyze``, run by a real systemd with the real job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until
from tests.support.systemd_manager import Manager, manager, need

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
UNITS = ("scoring-job.service", "scoring-job.timer", "scoring-job-failed.service")
NIGHT, STOPPED = "2026-02-01", "2026-02-03"
# What a systemd within another's mounts cannot set up; the rest of the sandbox is in force.
NOT_HERE = "ProtectHome=no\nProtectKernelTunables=no\nProtectKernelLogs=no\n"


def setting(unit: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", (FOLDER / unit).read_text(), re.MULTILINE)
    return str(value)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a machine on which all is in place."""
    root = tmp_path_factory.mktemp("machine")
    units = root / "etc" / "systemd" / "system"
    shutil.copytree(FOLDER, units)
    for program in (setting(one, "ExecStart").split()[0] for one in UNITS if one.endswith("service")):
        path = root / program.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2("/bin/true", path)
    # systemd's own targets.
    shutil.copytree("/usr/lib/systemd/system", root / "usr" / "lib" / "systemd" / "system", symlinks=True)
    return root


def analyze(machine: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *args, f"--root={machine}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def verify(machine: Path, unit: str) -> str:
    # Its exit code is 0 for an unknown key too.
    done = analyze(machine, "verify", "--man=no", machine / "etc" / "systemd" / "system" / unit)
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_every_unit_without_a_word(unit: str, request: pytest.FixtureRequest) -> None:
    need("systemd-analyze")
    assert verify(request.getfixturevalue("machine"), unit) == ""


def test_systemd_would_say_what_is_wrong(request: pytest.FixtureRequest) -> None:
    need("systemd-analyze")
    machine: Path = request.getfixturevalue("machine")
    path = machine / "etc" / "systemd" / "system" / "scoring-wrong.service"
    path.write_text((FOLDER / UNITS[0]).read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in verify(machine, path.name)


@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 2.0), (UNITS[2], 4.0)])
def test_little_can_be_done_from_within(unit: str, most: float, request: pytest.FixtureRequest) -> None:
    need("systemd-analyze")
    done = analyze(request.getfixturevalue("machine"), "security", "--offline=yes", "--no-pager", unit)
    (level,) = re.findall(r"Overall exposure level for \S+ ([\d.]+)", done.stdout)
    assert float(level) <= most


def test_units_name_each_other() -> None:
    assert setting("scoring-job.timer", "Unit") in UNITS
    assert setting("scoring-job.service", "OnFailure") in UNITS


class Pager(BaseHTTPRequestHandler):
    """Where an alert goes; the server keeps what came."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.told.append(text)  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Ran:
    """What became of each service, and what the pager was told."""

    ended: dict[str, dict[str, str]]
    told: list[str]
    night: Night


def units(case: str, command: str, folder: Path, alert: Path) -> dict[str, str]:
    """The service under another name with its own alert; only where and what it runs is another."""
    names = (f"{case}.service", f"failed-{case}.service")
    service, failed = ((FOLDER / name).read_text() for name in (UNITS[0], UNITS[2]))
    own = (
        f"[Service]\nUser=\nGroup=\nRestartSec=200ms\n{NOT_HERE}ExecStart=\nExecStart={command}\n"
        f"Environment=HOME={folder} PYTHONPATH={ROOT}\nReadWritePaths={folder}/out\n"
        # They lie below /tmp, of which it has one of its own.
        f"BindReadOnlyPaths={folder} {ROOT}\nBindPaths={folder}/out\n"
    )
    if case == "slow":
        own += "TimeoutStartSec=500ms\n"
    return {
        names[0]: service.replace(UNITS[2], names[1]),
        f"{names[0]}.d/test.conf": own,
        names[1]: failed,
        f"{names[1]}.d/test.conf": (
            f"[Service]\nDynamicUser=no\n{NOT_HERE}EnvironmentFile=\nEnvironmentFile={alert}\n"
        ),
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    need("systemctl", "curl", root=True)
    night = Night(tmp_path_factory.mktemp("systemd"))
    for shard in range(2):
        night.shard(f"ds={NIGHT}/part-{shard}", features(100, seed=shard))
    night.shard(f"ds={STOPPED}/part-0", features(5_000), group_rows=50)
    for ds in (NIGHT, STOPPED):
        (night.input / f"ds={ds}" / "_SUCCESS").touch()
    night.output.mkdir()
    saved(dense(), night.folder / "m.keras")
    config = (ROOT / "deploy" / "job.toml").read_text().replace("flight_id", "id").replace('"2h"', '"0s"')
    for theirs, ours in (("features", "in"), ("predictions", "out"), ("models/flights.keras", "m.keras")):
        config = config.replace(f"/srv/scoring/{theirs}", str(night.folder / ours))
    (night.folder / "job.toml").write_text(config)
    job = f"{sys.executable} -m job score --config={night.folder}/job.toml"
    commands = {
        "night": f"{job} --ds={NIGHT}",
        "usage": f"{job} --ds=2026-02-31",
        "missing": f"{job} --ds=2026-02-02",
        **{f"code{code}": f"/bin/sh -c 'exit {code}'" for code in (1, 4, 5, 6, 7)},
        "killed": "/bin/sh -c 'kill -KILL $$$$'",
        "begun": "/bin/sh -c 'kill -TERM $$$$'",
        # As the job ends on SIGTERM, which systemd sends when a night takes too long.
        "slow": "/bin/sh -c 'trap \"exit 143\" TERM; sleep 60 & wait'",
        "stopped": f"{job} --ds={STOPPED} --model=tests.support.slow_model:build"
        " --split_rows=50 --batch_size=50",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pager)
    told: list[str] = []
    server.told = told  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    alert = night.folder / "alert"
    alert.write_text(f"ALERT_URL=http://127.0.0.1:{server.server_port}/\n")
    files: dict[str, str] = {}
    for case, command in commands.items():
        files |= units(case, command, night.folder, alert)
    # Without a reference systemd forgets what became of a service that is no failure.
    files["tests.target.d/kept.conf"] = f"[Unit]\nAfter={' '.join(f'{case}.service' for case in commands)}\n"
    try:
        with manager(night.folder / "systemd", files) as one:
            yield Ran(outcomes(one, list(commands), night), told, night)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def outcomes(one: Manager, cases: list[str], night: Night) -> dict[str, dict[str, str]]:
    one.ctl("start", "--no-block", *(f"{case}.service" for case in cases))
    until(lambda: any(night.output.glob(f"ds={STOPPED}/_staging/*/receipts/**/*.json")), within_s=60)
    one.ctl("stop", "stopped.service")
    ended = {case: one.ended(f"{case}.service", within_s=120) for case in cases}
    for case in cases:
        one.ended(f"failed-{case}.service", within_s=20)
    return ended


@pytest.mark.slow
def test_a_night_is_scored_within_the_sandbox(ran: Ran) -> None:
    assert (ran.ended["night"]["Result"], ran.ended["night"]["NRestarts"]) == ("success", "0")
    assert (ran.night.output / f"ds={NIGHT}" / "_SUCCESS").exists()


@pytest.mark.slow
def test_what_would_fail_again_is_told_at_once_and_the_rest_is_tried_again(ran: Ran) -> None:
    restarts = {case: int(one["NRestarts"]) for case, one in ran.ended.items()}
    once = dict.fromkeys(("night", "usage", "code4", "code5", "code6", "begun", "stopped"), 0)
    # It counts the last one too, which the limit of starts forbids.
    tries = int(setting(UNITS[0], "StartLimitBurst"))
    again = dict.fromkeys(("missing", "code1", "code7", "killed", "slow"), tries)
    assert restarts == once | again


@pytest.mark.slow
def test_a_night_that_is_stopped_is_no_failure(ran: Ran) -> None:
    ended = ran.ended["stopped"]
    assert (ended["ActiveState"], ended["Result"], ended["ExecMainStatus"]) == ("inactive", "success", "143")
    folder = ran.night.output / f"ds={STOPPED}"
    assert len(list(folder.glob("_staging/*/receipts/**/*.json"))) < 100
    assert not (folder / "_SUCCESS").exists()


@pytest.mark.slow
def test_each_failed_night_is_told_once_with_how_it_ended(ran: Ran) -> None:
    told = sorted(re.sub(r" on \S+:", ":", text) for text in ran.told)
    codes = {"usage": 2, "missing": 3, **{f"code{code}": code for code in (1, 4, 5, 6, 7)}}
    expected = [f"{case}.service: exit-code, exit code {code}" for case, code in codes.items()]
    killed = ["killed.service: signal, exit code KILL", "slow.service: timeout, exit code 143"]
    assert told == sorted([*expected, *killed])
