"""``job doctor`` on a laptop's paths, and on engines that do not answer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.cli import options
from job.doctor import answer as doctor_answer
from job.doctor import doctor, engine, workers
from job.doctor import engine as doctor_engine
from job.doctor.doctor import Call
from job.engines.engine import Check
from job.errors import EngineError
from tests.support.nights import Night, dense, features, saved
from tests.support.servers import stores
from tests.support.store_nights import until
from tests.support.worker_pool import free_port

ROOT = Path(__file__).parents[3]
# So that no worker is asked, where only the paths matter.
NOBODY = ("--runner=PortableRunner", "--environment_type=LOOPBACK")


def examined(args: list[str], limit_s: float = 45.0) -> dict[str, Check]:
    spec, beam_args = options.parse(args)
    return {check.name: check for check in doctor.examine(spec, beam_args, limit_s=limit_s)}


def not_ok(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.ok is False]


@pytest.fixture
def args(night: Night) -> list[str]:
    night.shard("part", features(100))
    return night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")


@pytest.fixture
def unreached(args: list[str]) -> list[str]:
    return [*args, *NOBODY, f"--job_endpoint=localhost:{free_port()}"]


@contextlib.contextmanager
def hung() -> Iterator[int]:
    """A port at which connections are taken, and nothing is ever said."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield int(one.getsockname()[1])


def command(
    *args: str, env: dict[str, str] | None = None, program: tuple[str, ...] = ("-m", "job")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, "doctor", *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.slow
def test_all_is_well_on_this_machine_and_nothing_is_left_behind(night: Night, args: list[str]) -> None:
    program = (
        "import sys; from job.cli import main as cli; code = cli.main(sys.argv[1:]); "
        "print({'apache_beam', 'keras', 'tensorflow'} & set(sys.modules)); sys.exit(code)"
    )
    done = command(*args, program=("-c", program))
    *lines, imported = done.stdout.splitlines()
    assert (done.returncode, done.stderr, imported) == (0, "", "set()"), done.stdout
    names = [line.split(":")[0].removeprefix("ok").strip() for line in lines]
    assert names[:7] == ["this machine", "runner", "flags", "input", "model", "disk", "output"]
    assert names[7:] == ["workers"] * 7
    assert all(line.startswith("ok ") for line in lines)
    assert not night.output.exists()


@pytest.mark.slow
def test_what_is_wrong_is_told_line_by_line_with_what_to_do(night: Night) -> None:
    (night.folder / "file").write_text("in the way")
    flags = [f"--input={night.folder}/none/*.parquet", f"--model={night.folder}/m.keras"]
    done = command(
        *flags, f"--output={night.folder}/file/out", *NOBODY, f"--job_endpoint=localhost:{free_port()}"
    )
    assert (done.returncode, done.stderr) == (7, "")
    lines = done.stdout.splitlines()
    wrong = [at for at, line in enumerate(lines) if line.startswith("not ok")]
    assert [lines[at].split(":")[0].split(maxsplit=2)[2] for at in wrong] == [
        "job endpoint",
        "input",
        "model",
        "output",
    ]
    assert all(lines[at + 1].strip().startswith("→ ") for at in wrong)
    assert [line.split(":")[0] for line in lines if line.startswith("not seen")] == ["not seen  workers"]
    assert sorted(os.listdir(night.folder)) == ["file"]


@pytest.mark.parametrize(
    "flag", ["--batch_size=0", pytest.param("--runner=FlnkRunner", marks=pytest.mark.slow)]
)
def test_wrong_usage_ends_with_2(night: Night, flag: str) -> None:
    done = command("--input=a", "--model=m.keras", "--output=o", flag)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_an_output_that_cannot_be_written(unreached: list[str]) -> None:
    # Read-only for root too.
    checks = examined([*unreached[:2], "--output=/sys/kernel/scores", *unreached[3:]])
    assert not_ok(checks)[-1:] == ["output"]
    assert "/sys/kernel/scores" in checks["output"].told


def test_what_is_published_is_told_and_stays(night: Night, args: list[str]) -> None:
    night.score(night.folder / "m.keras", "--keys=id")
    before = sorted(night.output.rglob("*"))
    checks = examined([*args, *NOBODY, f"--job_endpoint=localhost:{free_port()}"])
    assert f"run {night.manifest()['run_id'][:12]} is published there" in checks["output"].told
    assert sorted(night.output.rglob("*")) == before


@pytest.mark.parametrize("kind", ["LOOPBACK", "EXTERNAL"])
def test_a_hung_port_does_not_hang_the_doctor(
    args: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_engine, "ANSWER_S", 0.5)
    began_s = time.monotonic()
    with hung() as port:
        flags = [f"--job_endpoint=localhost:{port}", f"--environment_type={kind}"]
        more = [f"--environment_config=localhost:{port}"] if kind == "EXTERNAL" else []
        checks = examined([*args, "--runner=PortableRunner", *flags, *more])
    assert time.monotonic() - began_s < 20
    assert not_ok(checks) == ["job endpoint", *(["worker pool"] if more else [])]
    assert "says nothing within" in checks["job endpoint"].told
    assert checks["workers"].ok is None


def test_a_port_that_speaks_something_else() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = int(one.getsockname()[1])

        def answer() -> None:
            taken, _ = one.accept()
            with taken:
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        served = Call("server", answer, limit_s=10)
        with pytest.raises(EngineError, match="does not speak gRPC"):
            engine.check_grpc(f"localhost:{port}", 5)
        served.wait()


def test_a_look_that_does_not_come_back_is_told_in_time() -> None:
    began_s, end = time.monotonic(), threading.Event()
    call = Call("a server", lambda: end.wait(60), limit_s=0.2)
    found = call.wait()
    assert time.monotonic() - began_s < 5
    assert isinstance(found, Check)
    assert (found.ok, found.name) == (False, "a server")
    assert "no answer within" in found.told
    assert doctor.anything_overdue()
    end.set()
    until(lambda: not doctor.anything_overdue())


def test_who_listens_on_a_port_is_seen() -> None:
    port = free_port()
    assert engine.listeners(port) == []
    program = (
        "import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); "
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(flush=True); sys.stdin.read()"
    )
    start = [sys.executable, "-c", program, str(port)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as end:
        pids = []
        for _ in range(2):
            one = end.enter_context(subprocess.Popen(start, stdin=pipe, stdout=pipe))
            assert one.stdin is not None
            assert one.stdout is not None
            end.callback(one.stdin.close)
            one.stdout.readline()
            pids.append(one.pid)
            assert sorted(engine.listeners(port)) == sorted(f"process {pid}" for pid in pids)


@pytest.mark.parametrize(
    ("flags", "name", "told"),
    [
        (
            ["--runner=PrismRunner", "--prism_location=/no/prism"],
            "Prism",
            "/no/prism: there is no such program",
        ),
        (
            ["--environment_type=PROCESS", '--environment_config={"command":"/no/boot"}'],
            "workers' command",
            "/no/boot cannot be started here",
        ),
        (["--environment_type=PROCESS", "--environment_config={"], "workers' command", "no JSON"),
        (["--environment_type=EXTERNAL", "--environment_config=here"], "worker pool", "is no address"),
        (["--environment_type=EXTERNAL", "--environment_config={bad"], "worker pool", "no JSON with a url"),
        (
            ["--runner=dask", "--dask_client_address=tcp://127.0.0.1:9", "--dask_connection_timeout=1"],
            "Dask",
            "no answer from the scheduler at tcp://127.0.0.1:9",
        ),
        ([f"--temp_location={__file__}/here"], "--temp_location", "test_doctor.py is no folder"),
    ],
)
def test_what_an_engine_lacks(args: list[str], flags: list[str], name: str, told: str) -> None:
    runner = [] if any(flag.startswith("--runner") for flag in flags) else ["--runner=PortableRunner"]
    endpoint = [] if "--runner=dask" in flags else [f"--job_endpoint=localhost:{free_port()}"]
    checks = examined([*args, *runner, *endpoint, *flags])
    assert checks[name].ok is False
    assert told in checks[name].told
    assert checks[name].fix


GOOD = {
    "package": "",
    "digest": "aa",
    "model": "",
    "input": "",
    "gpu": None,
    "output": "",
    "memory_bytes": 100,
    "seen": True,
}


@pytest.mark.parametrize(
    ("answer", "wrong", "told"),
    [
        ({}, None, ""),
        ({"package": "ImportError: x"}, "workers: package", "w: ImportError: x"),
        ({"digest": "bb"}, "workers: model", "w: SHA-256 bb…, here aa…"),
        ({"model": "gone"}, "workers: model", "w: gone"),
        ({"input": "gone"}, "workers: input", "w: gone"),
        ({"output": "read-only"}, "workers: output", "w: read-only"),
        ({"seen": False}, "workers: output", "w wrote a file that is not seen here"),
        ({"memory_bytes": 19}, "workers: memory", "19 bytes are free on w, the model takes 10"),
        ({"gpu": ""}, None, ""),
        ({"gpu": "TensorFlow sees none"}, "workers: gpu", "w: TensorFlow sees none"),
        # Not asked: there is none.
        ({"model": None, "input": None}, None, ""),
        # The kernel did not tell.
        ({"memory_bytes": 0}, None, ""),
        ({"versions": {"keras": "1.0"}}, "workers: versions", "w: keras 1.0, here "),
        ({"versions": {"python": "3.99.1"}}, "workers: versions", "w: python 3.99.1, here 3."),
    ],
)
def test_what_is_made_of_an_answer(answer: dict[str, object], wrong: str | None, told: str) -> None:
    here = {"versions": doctor_answer.versions(["keras"])}
    outcome = workers.Outcome([{"worker": "w", **GOOD, **here, **answer}], "", overdue=False)
    checks = {check.name: check for check in workers.checks(outcome, "the log", "aa", 10, 45)}
    assert not_ok(checks) == ([wrong] if wrong else [])
    assert wrong is None or told in checks[wrong].told


def test_pythons_last_number_may_differ() -> None:
    here = doctor_answer.versions([])["python"].rpartition(".")[0]
    answer = {"worker": "w", **GOOD, "versions": {"python": f"{here}.999"}}
    outcome = workers.Outcome([answer], "", overdue=False)
    assert all(check.ok for check in workers.checks(outcome, "the log", "aa", 10, 45))


@pytest.mark.slow
def test_a_store_that_hangs_does_not_hang_the_doctor() -> None:
    sooner = "doctor._PLACES_S = doctor._MODEL_S = doctor._AFTER_ANOTHER_S = 2.0"
    imports = "import sys; from job.cli.main import main; from job.doctor import doctor"
    program = f"{imports}; {sooner}; sys.exit(main(sys.argv[1:]))"
    with hung() as port:
        env = stores.environment(f"http://127.0.0.1:{port}", None)
        places = ["--input=s3://b/in", "--model=s3://b/m.keras", "--output=s3://b/out"]
        began_s = time.monotonic()
        done = command(*places, env=env, program=("-c", program))
    # The store's client would wait for half a minute, and try again.
    assert time.monotonic() - began_s < 25
    assert (done.returncode, done.stderr) == (7, "")
    wrong = [line for line in done.stdout.splitlines() if line.startswith("not ok")]
    assert [line.partition(":")[0].split()[-1] for line in wrong] == ["input", "model", "output"]
    assert all("no answer within 2 s" in line for line in wrong)
