"""Ctrl-C and SIGTERM, sent for real: the exit code, the last line, and what goes on afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import jobs
from tests.support.jobs import Zygote
from tests.support.nights import Night, dense, features, saved
from tests.support.servers.scripted import Answer, answering
from tests.unit.report.test_notices import PATH, the_line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "terminated by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_job_that_is_stopped_says_so_and_goes_on_with_the_same_command(
    warm: Zygote, night: Night, number: int, code: int, said: str
) -> None:
    night.shard("a", features(30_000), group_rows=1_000)
    model = saved(dense(), night.folder / "m.keras")
    more = ("--keys=id", "--split_rows=1000", "--batch_size=16")
    args = ("score", *night.args(model, *more), "--json")
    log, out = night.folder / "log", night.folder / "out.txt"
    with answering(lambda _: Answer()) as hook:
        env = {"SCORING_JOB_NOTIFY_URL": f"{hook.endpoint}{PATH}"}
        process = warm.process(jobs.Job(args, log=str(log), out=str(out), env=env))
        try:
            give_up_s = time.monotonic() + 60
            while not list(night.output.glob("_staging/*/receipts/*.json")):
                assert time.monotonic() < give_up_s
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, number)
            assert process.wait(30) == code, process.done.text
        finally:
            process.kill()
    told = the_line(out.read_text())
    error = f"{said}; the same command resumes where this one stopped"
    assert (told["status"], told["exit_code"], told["error"]) == ("interrupted", code, error)
    assert told["run_id"] in [path.name for path in (night.output / "_staging").iterdir()]
    assert process.done.text.endswith(f"{error}\n")
    (asked,) = hook.asked
    assert json.loads(asked.body)["exit_code"] == code
    assert night.score(model, *more).splits_reused > 0


def test_sigterm_ends_a_command_that_has_only_begun(night: Night) -> None:
    """In a process of its own, where nobody has set a handler before."""
    program = (
        "import os, signal, sys; from job.cli import main as cli; from job.cli import options\n"
        "options.parsed = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "code = cli.main(sys.argv[1:])\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "score", *night.args("m.keras", "--json")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, the_line(ran.stdout)["exit_code"]) == (143, 143)


@pytest.mark.parametrize("ignored", ["signal.SIG_IGN", "len"])
def test_who_has_decided_otherwise_about_sigterm_keeps_it(ignored: str) -> None:
    program = (
        "import signal; from job.terminal import signals as stopping\n"
        f"signal.signal(signal.SIGTERM, {ignored})\n"
        f"with stopping.on_sigterm(): assert signal.getsignal(signal.SIGTERM) is {ignored}\n"
        f"with stopping.later(): pass\n"
        f"assert signal.getsignal(signal.SIGTERM) is {ignored}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
