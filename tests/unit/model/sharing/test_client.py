"""One model for several processes: real processes, killed for real, with a model that needs no Keras."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from job.errors import JobError, ModelError, UsageError
from job.model.loading import LoadedModel
from job.model.sharing import client
from job.model.sharing import host as sharing_host
from job.model.sharing.client import SharedStep
from job.model.sharing.memory import Memory
from job.model.signature import CodedStrings, InputSpec
from job.spec import ModelReference
from tests.support import model_steps

ROOT = Path(__file__).parents[4]
INPUT = InputSpec("x", (1,), "float32")

# Another worker process: it does what its standard input says, a line at a time.
WORKER = """
import sys
import numpy as np
from job.model.sharing.client import SharedStep
from tests.support import model_steps
step = SharedStep(model_steps.Doubling, sys.argv[1], "m")
for line in sys.stdin:
    print(step.facts.load, step.predict([np.full(100, float(line), np.float32)])[0][1], flush=True)
"""


@pytest.fixture
def key() -> Iterator[str]:
    made = uuid.uuid4().hex
    yield made
    client.release(made)


@pytest.fixture(scope="module")
def step() -> Iterator[SharedStep]:
    """One that nobody kills."""
    key = uuid.uuid4().hex
    made = SharedStep(model_steps.Doubling, key, "m")
    made.build([INPUT])
    yield made
    client.release(key)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def pid_of(step: SharedStep) -> int:
    return int(step.facts.load.split(":")[1])


def is_gone(pid: int) -> bool:
    try:
        return str(psutil.Process(pid).status()) == str(psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 20
    while not is_gone(pid):
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.05)


def worker(key: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, key]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], number: float) -> list[str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return process.stdout.readline().split()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(20)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def test_several_processes_and_threads_share_one(step: SharedStep) -> None:
    other = worker(step._key)
    try:
        assert told(other, 4) == [step.facts.load, "8.0"]
        assert pid_of(step) not in (os.getpid(), other.pid)
        found: dict[int, list[float]] = {}

        def ask(number: int) -> None:
            found[number] = [float(step.predict([floats(number)])[0][0]) for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {number: [2.0 * number] * 20 for number in range(4)}
        assert (step.traces(), step.outputs()[0].name) == (7, "y")
        assert step.predict_plain([floats(3)])[0].tolist() == [6]
        strings = CodedStrings(np.array([b"a", b"b"], object), np.array([1, 0], np.int32))
        assert step.predict([strings])[0].tolist() == [b"b", b"a"]
        # Threads and processes that have ended leave no memory with the model's process.
        end(other)
        held = -1
        until = time.monotonic() + 20
        while time.monotonic() < until and (held := len(set(model_steps.memories(pid_of(step))))) > 1:
            time.sleep(0.05)
        assert held == 1
    finally:
        end(other)


def test_what_fails_there_is_raised_here(step: SharedStep, key: str) -> None:
    with pytest.raises(Exception, match=r"^no such row$") as raised:
        step.predict([floats(-1)])
    assert type(raised.value).__name__ == "LookupError"
    loaded = LoadedModel(ModelReference("m", None, False, "0" * 64), lambda: step)
    rows = np.arange(3001, dtype=np.float32)
    assert loaded.predict([rows])[0].tolist() == (rows * 2).tolist()
    assert (loaded.batch.memory_rows, loaded.load, loaded.traces) == (1500, step.facts.load, 7)
    with pytest.raises(ModelError, match=r"^m: it cannot be loaded$"):
        SharedStep(model_steps.unloadable, key, "m")


@pytest.mark.slow
def test_another_process_follows_one_that_was_killed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_DEATHS", 1)
    step = SharedStep(model_steps.Doubling, key, "m")
    step.build([INPUT])
    first = pid_of(step)
    # In the middle of a batch, of which two threads ask one each.
    killing = threading.Timer(0.5, os.kill, [first, signal.SIGKILL])
    slow: list[list[float]] = []
    asking = [
        threading.Thread(target=lambda: slow.append(step.predict([floats(-3)])[0].tolist())) for _ in "ab"
    ]
    for thread in (killing, *asking):
        thread.start()
    for thread in (killing, *asking):
        thread.join(60)
    assert slow == [[-6], [-6]]
    assert pid_of(step) != first
    assert is_gone(first)
    # A batch that takes every process with it is not asked for ever.
    with pytest.raises(
        JobError, match=r"^the process that holds m for this machine died 2 times with the same"
    ):
        step.predict([floats(-2)])


def test_weights_that_differ_after_a_restart_are_no_rows_fault(key: str) -> None:
    step = SharedStep(model_steps.Unseeded, key, "m")
    step.build([INPUT])
    os.kill(pid_of(step), signal.SIGKILL)
    with pytest.raises(ModelError, match="its builder made weights"):
        step.predict([floats(1)])


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_the_others_nothing(key: str) -> None:
    owner = worker(key)
    load = told(owner, 1)[0]
    other = worker(key)
    try:
        assert told(other, 1) == [load, "2.0"]
        # Killed while it asks.
        assert other.stdin is not None
        other.stdin.write("-3\n")
        other.stdin.flush()
        time.sleep(0.3)
        end(other)
        assert told(owner, 5) == [load, "10.0"]
        # The model's process ends with the one that started it, however that ends, and another follows.
        step = SharedStep(model_steps.Doubling, key, "m")
        assert step.facts.load == load
        end(owner)
        wait_until_gone(int(load.split(":")[1]))
        assert step.predict([floats(2)])[0].tolist() == [4]
        assert step.facts.load != load
    finally:
        end(owner)
        end(other)


def test_launches_have_nothing_to_do_with_each_other(step: SharedStep, key: str) -> None:
    other = SharedStep(model_steps.Doubling, key, "m")
    pid = pid_of(other)
    assert pid != pid_of(step)
    client.release(key)
    wait_until_gone(pid)
    assert step.predict([floats(2)])[0].tolist() == [4]
    left = Path(tempfile.gettempdir(), f"scoring-job-{os.getuid()}")
    assert [path for path in left.iterdir() if path.name == key] == []


def test_a_folder_that_others_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"scoring-job-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(JobError, match="others may write to it"):
        SharedStep(model_steps.Doubling, "key", "m")


def test_what_others_left_long_ago_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    top = tmp_path / f"scoring-job-{os.getuid()}"
    for name, age_days in (("old", 8), ("new", 6)):
        (top / name).mkdir(parents=True)
        (top / name / "model-0.lock").touch()
        before = time.time() - age_days * 86400
        os.utime(top / name, (before, before))
    top.chmod(0o700)
    client._folder("mine")
    assert sorted(path.name for path in top.iterdir()) == ["mine", "new"]


def test_a_model_that_nobody_asks_is_let_go_and_loaded_again() -> None:
    host = sharing_host.Host(model_steps.Doubling)
    host.facts()
    host.build((INPUT,))
    assert not host.forget_if_idle(60)
    first = host._step
    assert host.forget_if_idle(0)
    assert vars(host)["_step"] is None
    memory = Memory.made()
    pieces, end = memory.write([floats(4)])
    answer = host.predict(memory.address, pieces, end, False)
    assert isinstance(answer, tuple)
    (found,) = memory.read(answer[0])
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [8]
    again = host._step
    assert isinstance(again, model_steps.Doubling)
    assert again is not first
    assert again._built == (INPUT,)
    # Of one that is another model each time, nothing may be scored by the second.
    host._digest = "of the first"
    assert host.forget_if_idle(0)
    refused = host.predict(memory.address, pieces, end, False)
    assert isinstance(refused, sharing_host.Failure)
    assert refused.kind == "ModelError"


def test_a_process_without_children_holds_each_launchs_model_itself() -> None:
    program = """
import multiprocessing, sys, uuid
import numpy as np
multiprocessing.current_process()._config["daemon"] = True  # as a worker of Dask is
from job.model.sharing import client as sharing
from tests.support import model_steps
found = []
for build in (model_steps.Doubling, model_steps.Unseeded):
    step = sharing.SharedStep(build, uuid.uuid4().hex, "m")
    step.build(step.signature().inputs)
    pid, digest = step.facts.load.split(":")[1], step.weights_digest()
    found.append((pid, bool(digest), step.predict([np.ones(2)])[0].tolist()))
    sharing._IDLE_S = 0.0
print(found, len(sharing._began))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (pid, *first), (other, *second) = ast.literal_eval(done.stdout.rpartition(" ")[0])
    assert (pid, first, second) == (other, [False, [2, 2]], [True, [2, 2]])
    assert done.stdout.endswith(" 1\n")


# Somebody who is logged in to the machine: as whom, the launch's folder, where its process listens, the file
# that their question makes where it is unpickled, and whether they look for the key or know only Beam's.
STRANGER = """
import json, os, sys
from multiprocessing.connection import Client
uid, folder, addresses, planted, looks = json.loads(sys.argv[1])
if uid is not None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)

class Question:
    def __reduce__(self):
        return os.system, (f"touch {planted}",)

def ask(address, key):
    with Client(address, authkey=key) as asked:
        asked.send((None, "create", ("acquire_singleton", Question()), {}))
        return asked.recv()

for address in addresses:
    for key in (b"mps", b"x", None) if looks else (b"mps", b"x"):
        try:
            found = key or bytes.fromhex(json.load(open(os.path.join(folder, "door.json")))["key"])
            print(ask(tuple(address) if isinstance(address, list) else address, found)[0])
        except Exception as e:
            print(type(e).__name__)
"""


def ask_as_a_stranger(step: SharedStep, planted: Path, uid: int | None, *, looks: bool) -> list[str]:
    """Ask a model's process, wherever it listens, for something that runs a command."""
    folder = Path(tempfile.gettempdir(), f"scoring-job-{os.getuid()}", step._key)
    ports = [
        list(found.laddr)
        for found in psutil.Process(pid_of(step)).net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    ]
    sockets = [str(path) for path in folder.iterdir() if path.is_socket()]
    assert len(ports) + len(sockets) == 1
    what = json.dumps([uid, str(folder), ports + sockets, str(planted), looks])
    done = subprocess.run([sys.executable, "-c", STRANGER, what], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_stranger_runs_nothing_in_the_models_process(step: SharedStep) -> None:
    with tempfile.TemporaryDirectory() as everybodys:
        Path(everybodys).chmod(0o777)
        planted = Path(everybodys, "planted")
        # Even who is let in to the folder, as this test is.
        assert ask_as_a_stranger(step, planted, None, looks=False) == ["AuthenticationError"] * 2
        if os.getuid() == 0:
            assert ask_as_a_stranger(step, planted, 65534, looks=True) == ["PermissionError"] * 3
        assert not planted.exists()
        # Who has the key can do it: the attack is one.
        assert ask_as_a_stranger(step, planted, None, looks=True)[-1] in ("#TRACEBACK", "#ERROR")
        assert planted.exists()
    assert step.predict([floats(2)])[0].tolist() == [4]
    assert multiprocessing.current_process().authkey != b"mps"


def test_the_key_is_this_users_alone_and_each_process_has_its_own(key: str) -> None:
    step = SharedStep(model_steps.Doubling, key, "m")
    folder = Path(tempfile.gettempdir(), f"scoring-job-{os.getuid()}", key)
    doors = [json.loads((folder / "door.json").read_text())]
    assert [path.stat().st_mode & 0o077 for path in (folder, folder / "door.json")] == [0, 0]
    os.kill(pid_of(step), signal.SIGKILL)
    assert step.predict([floats(2)])[0].tolist() == [4]
    doors.append(json.loads((folder / "door.json").read_text()))
    assert len({door["key"] for door in doors}) == len({door["socket"] for door in doors}) == 2
    assert {len(bytes.fromhex(door["key"])) for door in doors} == {32}


def test_a_long_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    key = uuid.uuid4().hex
    step = SharedStep(model_steps.Doubling, key, "m")
    step.build([INPUT])
    assert step.predict([floats(2)])[0].tolist() == [4]
    other = SharedStep(model_steps.Doubling, key, "m")
    assert other.facts.load == step.facts.load
    client.release(key)


def test_a_folder_that_cannot_be_made_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"scoring-job-{os.getuid()}").mkdir(0o700)
    blocked = tmp_path / f"scoring-job-{os.getuid()}" / key
    blocked.symlink_to(blocked)
    with pytest.raises(UsageError, match=f"{key}: no model can be shared there: .*; .*set TMPDIR"):
        SharedStep(model_steps.Doubling, key, "m")
