"""Files, on a real file system."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job import storage
from job.errors import StorageError
from job.storage.sinks import HashingSink


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("/a/", "b"), "/a/b"), (("a", "", "b"), "a/b"), (("/", "b"), "/b"), (("/a", "b/c"), "/a/b/c")],
)
def test_join(parts: tuple[str, ...], expected: str) -> None:
    assert storage.join(*parts) == expected


@pytest.mark.parametrize("durable", [True, False])
def test_write_atomic_replaces_and_leaves_nothing_aside(tmp_path: Path, durable: bool) -> None:
    path = f"{tmp_path}/x.json"
    storage.write_atomic(path, b"old", durable=durable)
    storage.write_atomic(path, b"new", durable=durable)
    assert storage.read_bytes(path) == b"new"
    assert os.listdir(tmp_path) == ["x.json"]


def test_write_atomic_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "x"
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_atomic(str(target), b"new")
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(StorageError, match="the folder cannot be made: Not a directory"):
        storage.make_folder(f"{tmp_path}/file/out")


def test_hashing_sink(tmp_path: Path) -> None:
    sink = HashingSink(f"{tmp_path}/x")
    sink.write(b"one")
    sink.write(memoryview(b"two"))
    assert (sink.tell(), sink.closed) == (6, False)
    assert sink.seal() == hashlib.sha256(b"onetwo").hexdigest() == storage.sha256(f"{tmp_path}/x")
    assert sink.closed
    with pytest.raises(FileExistsError):
        HashingSink(f"{tmp_path}/x")


def test_rename_and_remove(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "d/e", "f/g/h")
    storage.release(f"{tmp_path}/a", f"{tmp_path}/b")
    assert storage.read_bytes(f"{tmp_path}/b") == b"a"
    with pytest.raises(FileNotFoundError):
        storage.release(f"{tmp_path}/a", f"{tmp_path}/b")
    storage.remove(f"{tmp_path}/b")
    storage.remove(f"{tmp_path}/b")
    storage.remove_tree(f"{tmp_path}/f")
    (tmp_path / "i" / "j").mkdir(parents=True)
    storage.remove_empty_parents(f"{tmp_path}/i/j/gone", str(tmp_path))
    storage.remove_empty_parents(f"{tmp_path}/d/gone", str(tmp_path))
    assert storage.names(str(tmp_path)) == ["d"]
    assert [info.path for info in storage.tree(str(tmp_path))] == [f"{tmp_path}/d/e"]
    assert storage.names(f"{tmp_path}/gone") == []
    assert storage.read_bytes(f"{tmp_path}/gone") is None
    assert storage.size_bytes(f"{tmp_path}/d/e") == 3
    assert storage.size_bytes(f"{tmp_path}/gone") is None


def test_remove_tree_takes_files_and_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    fill(tmp_path, "a", "kept/b")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("a", "link", "gone"):
        storage.remove_tree(f"{tmp_path}/{name}")
    assert storage.names(str(tmp_path)) == ["kept"]
    assert storage.names(f"{tmp_path}/kept") == ["b"]


def test_two_that_remove_one_tree_do_not_disturb_each_other(tmp_path: Path) -> None:
    for _ in range(20):
        fill(tmp_path, *(f"x/{i}/{j}" for i in range(8) for j in range(4)))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(storage.remove_tree, [f"{tmp_path}/x"] * 4))
        assert storage.names(str(tmp_path)) == []


def test_a_tree_that_keeps_growing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "x/a")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rmdir", full)
    with pytest.raises(StorageError, match="cannot be removed: something is written there"):
        storage.remove_tree(f"{tmp_path}/x")
