"""Locks that hold, and outputs on file systems where they do not."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job import storage
from job.commit import handover, lease, output
from job.errors import OutputConflictError, StateUnknownError
from job.storage import disk
from tests.nights.test_kills import files as files_of
from tests.nights.test_kills import is_whole
from tests.support import file_locks, short_leases
from tests.support.jobs import Job, Zygote, kinds
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until

RUN = "a" * 64


def test_the_file_system_is_the_kernels_word_for_it(tmp_path: Path) -> None:
    command = ["df", "--output=fstype", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    # Where a file system has several devices, it is not known.
    assert lease.file_system(str(tmp_path)) in (told, "")
    assert lease.file_system("/proc") == "proc"
    assert lease.file_system(f"{tmp_path}/none") == ""


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        *(("nfs", True), ("nfs4", True), ("cifs", True), ("9p", True), ("ceph", True), ("fuse.sshfs", True)),
        *(("fuse.gcsfuse", True), ("fuse", True), ("virtiofs", True), ("lustre", True)),
        *(("fuseblk", False), ("ext4", False), ("xfs", False), ("btrfs", False), ("tmpfs", False)),
        *(("overlay", False), ("zfs", False)),
    ],
)
def test_a_lock_is_enough_where_no_other_machine_writes(
    tmp_path: Path, kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_locks.mounted(tmp_path, kind, monkeypatch)
    assert lease.file_system(str(tmp_path)) == kind
    with lease.locked(str(tmp_path / "lock"), "me") as lock:
        assert lock == lease.Lock(None, not shared)
        with lease.locked(str(tmp_path / "lock"), "you") as other:
            assert other == lease.Lock("me", True)
    assert not (tmp_path / "lock").exists()
    with output.lease(str(tmp_path)) as token:
        assert bool(token) is shared
    assert not (tmp_path / "_staging").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_no_lock_is_no_lock(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lease.locked(str(tmp_path / "lock"), "me") as lock:
        assert lock == lease.Lock(None, False)
    assert [*tmp_path.iterdir()] == []
    # Of a machine that has locks there.
    (tmp_path / "lock").write_text("other")
    with lease.locked(str(tmp_path / "lock"), "me") as lock:
        assert lock == lease.Lock(None, False)
    assert (tmp_path / "lock").read_text() == "other"


def told(token: str, number: int = 0) -> bytes:
    return json.dumps({"token": token, "renewals": number}).encode()


def at_once(actions: list[Callable[[], str | None]]) -> list[str | None]:
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], str | None]) -> str | None:
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return [*pool.map(run, actions)]


def test_one_of_many_creates_a_file_and_one_takes_it_over(tmp_path: Path) -> None:
    store, path = disk.ConditionalFiles(), str(tmp_path / "lease")
    stamp, last = "", ""
    for turn in range(30):
        tokens = [f"{turn} {i}" for i in range(6)]
        got = at_once([lambda one=one, of=stamp: store.write_if(path, told(one), of) for one in tokens])  # type: ignore[misc]
        (winner,) = [i for i, new in enumerate(got) if new is not None]
        found = store.read_stamped(path)
        assert found is not None
        assert json.loads(found[0])["token"] == tokens[winner]
        assert found[1] == got[winner] != last
        stamp = last = found[1]
    assert [one.name for one in tmp_path.iterdir()] == ["lease"]


def test_an_owner_writes_over_its_own_file_and_no_other(tmp_path: Path) -> None:
    store, path = disk.ConditionalFiles(), str(tmp_path / "lease")
    first = store.write_if(path, told("a"), "")
    assert first is not None
    second = store.write_if(path, told("a", 1), first)
    assert second not in (None, first)
    assert store.write_if(path, told("a", 2), first) is None
    assert store.write_if(path, told("b"), first) is None
    taken = store.write_if(path, told("b"), second or "")
    assert taken is not None
    assert store.write_if(path, told("a", 2), second or "") is None
    store.remove([path], second or "")
    assert json.loads(store.read_bytes(path) or b"")["token"] == "b"
    store.remove([path], taken)
    assert store.read_stamped(path) is None
    assert store.write_if(path, told("a", 2), taken) is None
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_is_just_being_written_is_nobodys_to_take_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.ConditionalFiles, "_BETWEEN_READS_S", 0.001)
    path = tmp_path / "lease"
    path.write_bytes(b"")
    found = disk.ConditionalFiles().read_stamped(str(path))
    assert found is not None
    assert handover.parsed(found[0]) == {"token": ""}
    writer = threading.Timer(0.02, path.write_bytes, [told("a")])
    monkeypatch.setattr(disk.ConditionalFiles, "_READS", 1000)
    writer.start()
    assert json.loads(disk.ConditionalFiles().read_bytes(str(path)) or b"")["token"] == "a"
    writer.join()


@pytest.mark.parametrize("locks", [file_locks.without, file_locks.alone])
def test_a_lease_is_held_kept_lost_and_let_go_of_where_there_are_no_locks(
    tmp_path: Path, locks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    locks(monkeypatch)
    short_leases.shorten(monkeypatch)
    folder, path = str(tmp_path), tmp_path / "_staging/lease.json"
    with output.lease(folder) as token:
        before = path.read_bytes()
        until(lambda: path.read_bytes() != before)
        with (
            pytest.raises(OutputConflictError, match=r"another run is at work on it \(process"),
            output.lease(folder),
        ):
            raise AssertionError("two have it")
        output.check_lease(folder, token)
        assert output.leftovers(folder, RUN) == []
        path.unlink()
        with pytest.raises(
            StateUnknownError, match="lease expired while the machine stood still: it is gone"
        ):
            output.check_lease(folder, token)
    assert [*tmp_path.iterdir()] == []


def test_a_lease_of_a_machine_without_locks_counts_for_one_that_has_them(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        file_locks.without(patch)
        held = output.lease(str(tmp_path))
        held.__enter__()
    with (
        pytest.raises(OutputConflictError, match="another run is at work on it"),
        output.lease(str(tmp_path)),
    ):
        raise AssertionError("two have it")
    held.__exit__(None, None, None)
    with output.lease(str(tmp_path)) as token:
        assert token == ""


@pytest.fixture
def full(night: Night) -> Night:
    for i in range(3):
        night.shard(f"part-{i}", features(300, seed=i, first_id=300 * i), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    return night


PATCHES = "tests.support.job_patches"
MODULES = (f"{PATCHES}.short_leases",)


def job(night: Night, name: str, locks: str, *flags: str, stop_at: int = -1) -> Job:
    args = night.args(night.folder / "m.keras", "--keys=id", *flags)
    imports = (*MODULES, locks)
    watched = str(night.output)
    return Job(("score", *args), str(night.folder / name), watched, stop_at=stop_at, imports=imports)


@pytest.mark.slow
@pytest.mark.parametrize("locks", [f"{PATCHES}.no_locks", f"{PATCHES}.local_locks"])
def test_two_commands_at_once_make_one_night_where_there_are_no_locks(
    full: Night, warm: Zygote, locks: str
) -> None:
    for turn in range(2):
        given = [f"--row_group_rows={10 + i}" for i in range(3)]
        done = warm.run(*(job(full, f"log{turn}{flag}", locks, flag) for flag in given))
        assert sorted({one.code for one in done}) == [0, 6], [one.text for one in done]
        assert [one.code for one in done].count(0) == 1
        for one in done:
            if one.code == 6:
                assert "another run is at work on it (process " in one.text or "it holds run " in one.text
        run_id = is_whole(full.output)
        for path in full.files():
            assert pq.read_metadata(path).metadata[b"scoring_job.run_id"].decode() == run_id
        assert not (full.output / "_staging").exists()
        storage.remove_tree(str(full.output))


@pytest.mark.slow
def test_a_killed_owner_without_locks_holds_nothing(full: Night, warm: Zygote) -> None:
    one = job(full, "log", f"{PATCHES}.no_locks")
    (killed,) = warm.run(Job(one.args, one.log, one.watched, kill_at=25, imports=one.imports))
    assert killed.code == -9
    assert (full.output / "_staging/lease.json").exists()
    (done,) = warm.run(job(full, "log1", f"{PATCHES}.no_locks"))
    assert done.code == 0, done.text
    is_whole(full.output)
    assert not (full.output / "_staging").exists()


def states(process: int) -> set[str]:
    """What the threads of a process are doing, as proc_pid_stat(5) has it."""
    found = set()
    for task in Path(f"/proc/{process}/task").iterdir():
        # One may just have ended.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return found


@pytest.mark.slow
def test_an_owner_that_stood_still_before_any_change_leaves_the_next_night_alone(
    full: Night, warm: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with the very change, after its last look at the lease, and no clock tells it to look."""
    model, replacing = full.folder / "m.keras", "--if_exists=replace"
    full.score(model, "--keys=id", "--row_group_rows=20", "--split_rows=100")
    old = shutil.copytree(full.output, full.folder / "old")
    one = job(full, "log", f"{PATCHES}.no_locks", replacing)
    one = dataclasses.replace(one, imports=(*one.imports, f"{PATCHES}.stopped_clocks"))
    (whole,) = warm.run(one)
    assert whole.code == 0, whole.text
    found = kinds(whole.steps)
    begun = found["os.rename publishing.json aside"][0]
    # What gives a final name, or takes one away; letting go of the lease comes after all of it.
    steps = {
        number
        for kind, numbers in found.items()
        if kind.startswith("os.rename") and kind != "os.rename _staging"
        for number in (numbers[0], numbers[-1])
    }
    assert len(steps) > 6, found
    file_locks.without(monkeypatch)
    file_locks.elsewhere(monkeypatch)
    short_leases.shorten(monkeypatch)
    wrong = []
    for number in sorted(number for number in steps if number >= begun):
        shutil.rmtree(full.output)
        shutil.copytree(old, full.output)
        (group,) = warm.start(dataclasses.replace(one, stop_at=number))
        try:
            until(lambda group=group: states(group) == {"T"})  # type: ignore[misc]
            night = full.score(model, "--keys=id", "--row_group_rows=30", replacing)
            before = files_of(full.output)
            assert is_whole(full.output) == night.run_id
        finally:
            os.killpg(group, signal.SIGCONT)
            (done,) = warm.wait(group)
        if done.code != 1 or files_of(full.output) != before:
            changed = {*files_of(full.output).items()} ^ {*before.items()}
            wrong.append((whole.steps[number], done.code, {name for name, _ in changed}, done.text[-300:]))
    assert not wrong, wrong
