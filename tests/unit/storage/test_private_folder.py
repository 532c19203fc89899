"""A person's processes of one machine: their folder, and their turns."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.errors import StorageError, UsageError
from job.model import artifact, keras_step
from job.spec import ModelReference
from job.storage import private_folder
from tests.support.nights import dense, saved

HOLDING = """
import sys, time
from job.storage import private_folder as private
with private.turn("loading"):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process, in its turn."""
    with subprocess.Popen((sys.executable, "-c", HOLDING), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def in_a_thread(body: Callable[[], object]) -> tuple[threading.Thread, threading.Event]:
    done = threading.Event()

    def run() -> None:
        body()
        done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, done


def take_turn() -> None:
    with private_folder.turn("loading"):
        pass


def test_a_turn_waits_for_another_process_and_not_for_a_dead_one(holder: subprocess.Popen[str]) -> None:
    thread, done = in_a_thread(take_turn)
    assert not done.wait(0.5)
    holder.kill()
    assert done.wait(30)
    thread.join()


def test_turns_of_other_names_are_not_waited_for(holder: subprocess.Popen[str]) -> None:
    with private_folder.turn("another"):
        assert holder.poll() is None


def test_large_models_are_loaded_one_after_the_other(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(dense(2), tmp_path / "model.keras")
    reference = ModelReference(str(path), None, trusted=False, digest="")
    # A small one waits for nobody.
    artifact.held(str(path), None).load(reference)
    monkeypatch.setattr(keras_step, "_LARGE_BYTES", 1)
    thread, done = in_a_thread(lambda: artifact.held(str(path), None).load(reference))
    assert not done.wait(2)
    holder.kill()
    assert done.wait(60)
    thread.join()


def test_where_there_is_no_such_folder_nobody_waits(holder: subprocess.Popen[str], own_folder: Path) -> None:
    folder = own_folder / f"scoring-job-{os.getuid()}"
    folder.chmod(stat.S_IRWXU | stat.S_IWOTH)
    with pytest.raises(UsageError, match="others may write to it"):
        private_folder.folder()
    take_turn()
    assert holder.poll() is None


def test_a_file_in_its_place_is_wrong_usage(own_folder: Path) -> None:
    path = own_folder / f"scoring-job-{os.getuid()}"
    path.write_text("")
    with pytest.raises(UsageError, match=rf"^{path}: the folder cannot be made: File exists; .*set TMPDIR"):
        private_folder.folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_wrong_usage(own_folder: Path) -> None:
    os.chown(private_folder.folder(), 65534, 65534)
    with pytest.raises(UsageError, match="another user's"):
        private_folder.folder()


def test_a_full_disk_may_have_room_at_the_next_try() -> None:
    with (
        pytest.raises(StorageError, match="no room: No space left on device; make room"),
        private_folder.os_errors("no room"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
