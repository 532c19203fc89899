"""Jobs that are waited for, and jobs that have the output when their command has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from job import storage
from job.cli import main, options
from job.commit import cleaning, handover, lease, output
from job.commit.handover import Job
from job.errors import OutputConflictError, StateUnknownError, UsageError
from job.launch import score, submission
from job.terminal.signals import Terminated, on_sigterm
from tests.support import file_locks, leases
from tests.support.leases import Place
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import SCHEMES, until
from tests.support.worker_pool import ROOT, service

RUN = "a" * 64
JOB = Job(RUN, "FlinkRunner", "job-7", "http://flink/7", "flink:8099")


@pytest.fixture(scope="module", params=["disk", "disk without locks", *SCHEMES])
def shared(request: pytest.FixtureRequest) -> Iterator[Place | str]:
    if request.param not in SCHEMES:
        yield request.param
        return
    with leases.place(request.param) as one:
        yield one


@pytest.fixture
def folder(shared: Place | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output with nothing in it."""
    if isinstance(shared, Place):
        return shared.fresh.output
    if shared != "disk":
        file_locks.without(monkeypatch)
    return str(tmp_path)


def handed(folder: str, job: Job = JOB) -> str:
    """Hand an output over as a command that ends; returns what its workers know it by."""
    with output.lease(folder) as token:
        output.hand_over(folder, token, job)
    return token


def published(folder: str, run: str) -> None:
    """Let an output hold a night of this run, as far as a lease's owner looks."""
    content = {"run_id": run, "files": [], "rejected_files": []}
    storage.write_atomic(storage.join(folder, output.MANIFEST), json.dumps(content).encode())
    storage.write_atomic(storage.join(folder, output.SUCCESS), b"")


def staged(folder: str) -> list[str]:
    return storage.names(storage.join(folder, "_staging"))


def test_what_was_handed_over_refuses_others_at_once_with_the_way_out(folder: str) -> None:
    token = handed(folder)
    # Without a wait: nobody renews it.
    told: list[str] = []
    with pytest.raises(OutputConflictError) as refused, output.lease(folder, told.append):
        pytest.fail("it was not refused")
    assert told == []
    assert str(refused.value) == (
        f"{folder}: run {RUN[:12]} was submitted as job job-7 of FlinkRunner, see http://flink/7; "
        f"wait for it or cancel it there; `scoring-job clean {folder} --release_job=job-7` frees the output "
        f"of a job that has ended"
    )
    with output.watched(folder, token):
        output.check_lease(folder, token)
    with pytest.raises(OutputConflictError):
        cleaning.clean(folder, older_than_s=0, dry_run=False, clock=lambda: 0.0)


def test_the_publisher_gives_it_back_and_only_its_own(folder: str) -> None:
    token = handed(folder)
    output.give_back(folder, "b" * 64, token)
    if token:
        output.give_back(folder, RUN, "another")
    assert staged(folder) != []
    output.give_back(folder, RUN, token)
    assert staged(folder) == []
    with output.lease(folder):
        pass


def test_a_job_that_was_faster_than_its_command_leaves_nothing(folder: str) -> None:
    published(folder, RUN)
    handed(folder)
    assert staged(folder) == []


def test_what_a_killed_publisher_kept_is_free_once_its_run_is_published(folder: str) -> None:
    handed(folder)
    published(folder, RUN)
    # The same command again tidies up; so does another run's.
    cleaning.remove_rest(folder, RUN)
    assert staged(folder) == []
    handed(folder, Job("b" * 64, "FlinkRunner", "job-8"))
    published(folder, "b" * 64)
    with output.lease(folder):
        pass
    assert staged(folder) == []


def test_what_the_engine_says_has_ended_is_free_and_the_job_is_locked_out(folder: str) -> None:
    token = handed(folder)
    asked: list[Job] = []

    def ended(job: Job) -> bool:
        asked.append(job)
        return True

    with output.lease(folder, ended=ended) as other:
        if token:
            with pytest.raises(StateUnknownError, match="has it now"):
                output.check_lease(folder, token)
        output.check_lease(folder, other)
    assert asked == [JOB]
    assert staged(folder) == []


def test_a_person_frees_it_by_the_jobs_name(folder: str) -> None:
    with pytest.raises(UsageError, match=r"--release_job=job-7: no job has it"):
        cleaning.release(folder, "job-7")
    with output.lease(folder), pytest.raises(UsageError, match="no job has it"):
        cleaning.release(folder, "job-7")
    token = handed(folder)
    with pytest.raises(UsageError, match=r"--release_job=7: job job-7 of FlinkRunner.* has it"):
        cleaning.release(folder, "7")
    cleaning.release(folder, "job-7")
    if token:
        with pytest.raises(StateUnknownError, match="it is gone"):
            output.check_lease(folder, token)
    with output.lease(folder):
        pass


def test_the_command_that_frees_an_output_frees_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    handed(folder)
    storage.make_folder(f"{folder}/_staging/{RUN}")
    for flags in (["--release_job="], ["--release_job=other"], ["--release_job=job-7", "--dry_run"]):
        assert main.main(["clean", folder, *flags]) == 2
    assert handover.job_of(folder, output.lease_path(folder)) == JOB
    assert main.main(["clean", folder, "--release_job=job-7"]) == 0
    assert "job job-7 has it no more" in capsys.readouterr().out
    assert staged(folder) == [RUN]


def test_a_note_is_no_run_that_was_left(folder: str) -> None:
    handed(folder)
    assert output.leftovers(folder, "") == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"job": 7}', b'{"job": {"id": "x"}}', b"\xff"])
def test_whatever_else_lies_there_is_no_job(content: bytes) -> None:
    assert handover.of(handover.parsed(content)) is None


def test_a_lease_that_was_lost_is_not_handed_over(folder: str) -> None:
    with output.lease(folder) as token:
        if not token:
            # A lock on a disk cannot get lost.
            return
        storage.write_atomic(output.renewed_path(folder), b'{"token": "other", "process": 7, "host": "h"}')
        with pytest.raises(StateUnknownError, match="process 7 on h"):
            lease.hand_over(token, JOB)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "FnApiRunner"),
        (["--direct_running_mode=multi_processing"], "FnApiRunner"),
        (["--runner=DirectRunner"], "DirectRunner"),
        (["--runner=PrismRunner"], "PrismRunner"),
        (["--runner=DaskRunner", "--dask_client_address=tcp://h:1"], "DaskRunner"),
        (["--runner=FlinkRunner"], "FlinkRunner"),
        (["--runner=PortableRunner", "--job_endpoint=embed"], "PortableRunner"),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=LOOPBACK"], "PortableRunner"),
    ],
)
def test_a_job_that_would_end_with_its_command_must_be_waited_for(flags: list[str], name: str) -> None:
    spec, beam_args = options.parse(["--input=a", "--model=m.keras", "--output=o", "--no_wait", *flags])
    with pytest.raises(UsageError, match=rf"^--no_wait: .*because --runner={name} needs it") as told:
        submission.checked(spec, beam_args)
    assert told.value.exit_code == 2


@pytest.mark.parametrize("name", ["PortableRunner", "FlinkRunner", "SparkRunner"])
def test_a_job_server_elsewhere_goes_on_without_us(name: str) -> None:
    flags = [f"--runner={name}", "--job_endpoint=h:1", "--no_wait"]
    spec, beam_args = options.parse(["--input=a", "--model=m.keras", "--output=o", *flags])
    assert submission.checked(spec, beam_args) == spec


@pytest.mark.parametrize(("asked", "times", "went_on"), [(True, 1, 1), (True, 2, 1), (False, 1, 0)])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_first_ctrl_c_or_sigterm_waits_until_the_job_is_known(
    asked: bool, times: int, went_on: int, number: int, raised: type[BaseException]
) -> None:
    passed = []

    def submit() -> None:
        with submission.undisturbed(asked):
            for _ in range(times):
                os.kill(os.getpid(), number)
                passed.append("went on")

    with on_sigterm():
        with pytest.raises(raised):
            submit()
        assert len(passed) == went_on
        # Afterwards it is as ever.
        with pytest.raises(raised):
            os.kill(os.getpid(), number)


def test_an_engine_that_does_not_answer_has_not_said_that_the_job_has_ended() -> None:
    said: list[str] = []
    ended = submission.has_ended([], said.append, lambda: None)
    assert not ended(Job(RUN, "FlinkRunner", "job-7"))
    assert said == []


def test_an_output_on_a_disk_that_a_job_has_is_refused_to_the_same_command(night: Night) -> None:
    night.shard("a", features(30))
    path = saved(dense(), night.folder / "m.keras")
    handed(str(night.output), Job(RUN, "FlinkRunner", "job-7"))
    with pytest.raises(OutputConflictError, match=r"--release_job=job-7"):
        night.score(path, "--keys=id")
    cleaning.release(str(night.output), "job-7")
    assert night.score(path, "--keys=id").rows_scored == 30
    assert not (night.output / "_staging").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_job_server_publishes_without_the_command_and_is_told_of_ctrl_c(
    night: Night, tmp_path: Path
) -> None:
    night.shard("a", features(6000), group_rows=100)
    path = saved(dense(), night.folder / "m.keras")
    # Fifteen seconds, if nobody ended it.
    slow = ("--keys=id", "--features=f0,f1,f2,f3", "--split_rows=100", "--batch_size=100")
    args = night.args("tests.support.slow_model:build", *slow)
    command = [sys.executable, "-m", "job", "score", *args]
    with service(tmp_path) as one:
        with subprocess.Popen(
            [*command, *one.flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                until(lambda: list(night.output.glob("_staging/*/receipts/*.json")), within_s=200)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 130, said
        assert "of PortableRunner; Ctrl-C once more leaves it as it is" in said
        assert "of PortableRunner is CANCELLED" in said

        alone = [f"--input={night.input}", f"--model={path}", "--keys=id", f"--output={night.folder}/alone"]
        spec, beam_args = options.parse([*alone, "--no_wait", *one.flags])
        job = score.score(spec, beam_args, announce=lambda line: None).job
        assert job is not None
        assert (job.engine, job.where) == ("PortableRunner", f"localhost:{one.job_port}")
        until(lambda: output.published(str(night.folder / "alone")), within_s=60)
        until(lambda: not (night.folder / "alone" / "_staging").exists())
