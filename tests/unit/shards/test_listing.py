"""Which files an input names, on a real file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from job import storage
from job.errors import NoInputError, ShardError, StorageError, UsageError
from job.shards.listing import listing


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(pattern: str, below: Path) -> list[str]:
    return [info.path.removeprefix(f"{below}/") for info in listing(pattern)]


TREE = (
    "a.parquet",
    "ds=1/b.parquet",
    "ds=1/_SUCCESS",
    ".hidden/c.parquet",
    "_staging/d.parquet",
    "z/e.parquet",
)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.parquet", "ds=1/b.parquet", "z/e.parquet"]),
        ("a.parquet", ["a.parquet"]),
        ("*.parquet", ["a.parquet"]),
        ("**/*.parquet", ["a.parquet", "ds=1/b.parquet", "z/e.parquet"]),
        ("ds=*", ["ds=1/b.parquet"]),
        ("?s=1/*.parquet", ["ds=1/b.parquet"]),
        ("_staging/d.parquet", ["_staging/d.parquet"]),
    ],
)
def test_listing(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    fill(tmp_path, *TREE)
    assert found(os.path.join(str(tmp_path), pattern), tmp_path) == expected


def test_a_name_that_exists_is_no_glob(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].parquet", "a1.parquet")
    assert found(f"{tmp_path}/a[1].parquet", tmp_path) == ["a[1].parquet"]


def test_a_list_names_files_globs_and_folders(tmp_path: Path) -> None:
    fill(tmp_path, *TREE)
    listed = tmp_path / "list.txt"
    listed.write_text(f"# nights\n\n{tmp_path}/ds=1\n  {tmp_path}/*.parquet  \n")
    assert found(f"@{listed}", tmp_path) == ["ds=1/b.parquet", "a.parquet"]


def test_lines_of_a_list_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *TREE)
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists" / "list.txt"
    listed.write_text(f"ds=1\n./z/../z/e.parquet\nfile://{tmp_path}/a.parquet\n")
    monkeypatch.chdir(tmp_path)
    assert [info.path for info in listing("@lists/list.txt")] == [
        f"{tmp_path}/{name}" for name in ("ds=1/b.parquet", "z/e.parquet", "a.parquet")
    ]


def test_a_list_names_no_list(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"@{listed}\n")
    with pytest.raises(UsageError, match=rf"--input=@{listed}: it names the list @{listed}"):
        listing(f"@{listed}")


@pytest.mark.parametrize("pattern", ["", "link.parquet", "*.parquet", "gone/*"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "a.parquet")
    (tmp_path / "gone").mkdir()
    for folder in (tmp_path, tmp_path / "gone"):
        (folder / "link.parquet").symlink_to("absent.parquet")
    with pytest.raises(ShardError, match=r"link\.parquet: a link to absent\.parquet, which is not there"):
        listing(os.path.join(str(tmp_path), pattern))


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(StorageError, match=r"link: cannot be read"):
        listing(str(tmp_path))


def test_folders_that_links_lead_back_to_are_searched_once(tmp_path: Path) -> None:
    fill(tmp_path, "in/z/a.parquet", "in/b/c.parquet", "aside/d.parquet")
    (tmp_path / "in" / "z" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "b" / "first").symlink_to(tmp_path / "aside")
    (tmp_path / "in" / "second").symlink_to(tmp_path / "aside")
    assert found(f"{tmp_path}/in", tmp_path / "in") == ["b/c.parquet", "b/first/d.parquet", "z/a.parquet"]


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    for pattern in (
        f"{tmp_path}/no/*",
        f"{tmp_path}/empty",
        f"{tmp_path}/gone.parquet",
        f"@{tmp_path}/blank.txt",
    ):
        with pytest.raises(NoInputError, match=f"--input={pattern}".replace("*", r"\*")):
            listing(pattern)
    with pytest.raises(UsageError, match="the list cannot be read: No such file"):
        listing(f"@{tmp_path}/gone.txt")


def test_a_scheme_that_is_not_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ftp://"):
        listing("ftp://host/x.parquet")
    fill(tmp_path, "a.parquet")
    assert found(f"file://{tmp_path}/a.parquet", tmp_path) == ["a.parquet"]


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    fill(tmp_path, "a.parquet")
    (before,) = listing(str(tmp_path))
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    (after,) = listing(str(tmp_path))
    assert (before.size_bytes, after.size_bytes) == (9, 9)
    assert after.stamp == "1" != before.stamp
    assert storage.describe(f"{tmp_path}/a.parquet") == listing(f"{tmp_path}/a.parquet")[0]
    assert storage.describe(f"{tmp_path}/gone") is None
