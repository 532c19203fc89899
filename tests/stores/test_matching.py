"""Which objects an input names: what ``job.shards.listing`` finds in the same tree on a disk."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job import storage
from job.errors import NoInputError, ShardError, StorageError, UsageError
from job.shards.listing import listing
from job.storage import objects
from job.storage.buckets import Client, Found, Page
from tests.support.servers import stores
from tests.support.servers.clients import BUCKET, gcs_way, s3_way

# Each name is a file; by its contents a mix-up would be seen, so all differ in length.
TREE = (
    "a.parquet",
    "b.parquet",
    "ab.parquet",
    "B.parquet",
    "ä.parquet",
    "a b.parquet",
    "a[1].parquet",
    "a1.parquet",
    "a#1?x=%2F.parquet",
    "^.parquet",
    "!.parquet",
    "-.parquet",
    "].parquet",
    "[.parquet",
    "\\.parquet",
    "*.txt",
    "star.txt",
    "_top.parquet",
    ".top.parquet",
    "_SUCCESS",
    "ds=2013-11-30/h=1/a.parquet",
    "ds=2013-12-01/h=1/a.parquet",
    "ds=2013-12-01/h=2/b.parquet",
    "ds=2013-12-01/h=2/_metadata",
    "ds=2013-12-02/c.parquet",
    "ds=2013-12-02/.c.parquet.crc",
    "ds=2013-12-02/_temporary/0/d.parquet",
    "_staging/e.parquet",
    "_staging/_staging/f.parquet",
    "_staging/deep/_x/g.parquet",
    ".hidden/h.parquet",
    "deep/deep/deep/i.parquet",
    "deep/a.parquet",
    "deep/_staging/j.parquet",
    "only_hidden[1]/_k.parquet",
    "only_hidden1/l.parquet",
    "glob[x]/m.parquet",
    "globx/n.parquet",
    "prefix/o.parquet",
    "prefix.parquet",
    "prefixed/p.parquet",
)
GLOBS = r"""
    a.parquet deep deep/ deep//deep prefix prefix* prefi gone gone/* a.parquet/* * *.parquet */*.parquet
    */*/*.parquet *.txt ?.parquet ??.parquet a?b.parquet ä* *#* a*1*.parquet [ab].parquet [!ab].parquet
    [a-c]*.parquet [^a].parquet [!^].parquet []].parquet [!]].parquet [[].parquet [.parquet [z-a].parquet
    [a-].parquet [\].parquet [*].txt [?]* [!a]* *** a[[]1].parquet a[1].parquet only_hidden[1] only_hidden*
    glob[x] glob[x]/* glob?x?/* glob* ds=2013-12-* ds=2013-12-*/ ds=* ds=*/h=* ds=*/h=*/*.parquet
    ds=2013-1[12]-*/h=1 ds=2013-12-01/h=? ds=2013-12-0[!1] d*/d* */h=2/* ds=2013-12-02/* ** **/ **/*
    **/*.parquet **/a.parquet **/deep **/deep/** deep/** deep/**/* **/[!a].parquet **/**/*.parquet
    deep/**/i.parquet d**/a.parquet **/deep/*.parquet **/_staging/* **/_staging _staging _staging/*
    _staging/** _* _*/* [_]* */_staging/*.parquet _staging/**/_x/* **/_x .* .*/* .hidden/* .hidden
    **/.hidden _top.parquet *_top.parquet ?top.parquet ds=*/_temporary ds=*/_temporary/** ds=*/_temporary/0
    */_* */.* **/.c* **/_metadata ds=*/*/_metadata ds=*/.c.parquet.crc
"""
PATTERNS = ("", "/", *GLOBS.split())

Shown = list[tuple[str, str, int]]


@pytest.fixture(scope="module", params=["gs", "s3"])
def top(request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder of a bucket that holds the tree."""
    scheme = request.param
    with {"gs": gcs_way, "s3": s3_way}[scheme]() as way, pytest.MonkeyPatch.context() as patch:
        ends = (None, way.store) if scheme == "gs" else (way.store, None)
        stores.apply(patch, stores.environment(*ends))
        patch.setattr(objects, "_stores", {})
        folder = f"{scheme}://{BUCKET}/top"
        names = [f"{folder}/{name}" for name in TREE]
        storage.parallel(lambda path: storage.write_atomic(path, path.encode()), names, name="write")
        # Made by consoles in the place of a folder, and no files.
        storage.write_atomic(f"{folder}/deep/", b"")
        storage.write_atomic(f"{folder}/empty/", b"")
        # Keys that begin alike and lie beside the folder.
        storage.write_atomic(f"{folder}-other/a.parquet", b"")
        yield folder


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("disk") / "top"
    fill(folder, TREE)
    return str(folder)


def fill(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"s3://{BUCKET}/top/{name}".encode())


def shown(top: str, pattern: str) -> Shown | None:
    """Path, root and size of all that is found, relative to ``top``; None where the input is refused.

    The command line makes each value absolute before it is looked for.
    """
    try:
        found = listing(storage.absolute(f"{top}/{pattern}"))
    except (NoInputError, ShardError, StorageError):
        return None
    relative = [(info.path, info.root.rstrip("/")) for info in found]
    sizes = [info.size_bytes for info in found]
    cut = [(path.removeprefix(f"{top}/"), root.removeprefix(top)) for path, root in relative]
    return [(path, root, size) for (path, root), size in zip(cut, sizes, strict=True)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_value_names_the_same_in_a_bucket_as_on_a_disk(top: str, disk: str, pattern: str) -> None:
    assert shown(top, pattern) == shown(disk, pattern)


def test_the_table_of_patterns_is_not_trivial(disk: str) -> None:
    found = [shown(disk, pattern) for pattern in PATTERNS]
    assert sum(one is None for one in found) < len(PATTERNS) / 3
    assert len({str(one) for one in found}) > len(PATTERNS) / 2
    every = {path for one in found for path, _, _ in one or ()}
    assert {"_top.parquet", ".hidden/h.parquet", "a[1].parquet"} < every
    assert not every & {"_SUCCESS", ".top.parquet", "only_hidden[1]/_k.parquet"}


def test_what_is_found_has_the_stamp_and_the_time_of_a_look_at_it(top: str) -> None:
    (found,) = listing(f"{top}/deep/a.*")
    assert found == storage.describe(f"{top}/deep/a.parquet")


def test_a_whole_bucket_is_a_folder(top: str) -> None:
    bucket = top.removesuffix("/top")
    assert [info.path for info in listing(bucket)] == [
        f"{bucket}/top-other/a.parquet",
        *(info.path for info in listing(top)),
    ]
    assert {info.root for info in listing(f"{bucket}/")} == {bucket}


def test_a_list_in_a_bucket_names_objects_folders_and_globs(top: str, disk: str) -> None:
    lines = ["# last night's", "", f"  {top}/ds=2013-12-*/h=1 ", f"{top}/[ab].parquet", f"{disk}/prefix"]
    storage.write_atomic(f"{top}-other/list.txt", "\n".join(lines).encode())
    found = [info.path for info in listing(f"@{top}-other/list.txt")]
    assert found == [
        f"{top}/ds=2013-12-01/h=1/a.parquet",
        f"{top}/a.parquet",
        f"{top}/b.parquet",
        f"{disk}/prefix/o.parquet",
    ]
    storage.remove(f"{top}-other/list.txt")


@pytest.mark.parametrize("pattern", ["gone", "gone/**", "empty", "a.parquet/b"])
def test_what_matches_nothing_is_named(top: str, pattern: str) -> None:
    with pytest.raises(NoInputError) as caught:
        listing(f"{top}/{pattern}")
    assert str(caught.value) == (
        f"--input={top}/{pattern}: no file matches; give a file, a folder, a glob or @list.txt"
    )


def test_a_list_that_is_not_there_and_one_that_names_another_are_refused(top: str) -> None:
    with pytest.raises(UsageError, match="the list cannot be read: No such file"):
        listing(f"@{top}/gone.txt")
    storage.write_atomic(f"{top}-other/list.txt", f"@{top}/gone.txt".encode())
    with pytest.raises(UsageError, match="it names the list"):
        listing(f"@{top}-other/list.txt")
    storage.remove(f"{top}-other/list.txt")


@pytest.mark.parametrize("pattern", ["s3://buck*/a.parquet", "gs://[b]ucket", "gs://*"])
def test_a_bucket_is_never_a_glob(top: str, pattern: str) -> None:
    with pytest.raises(UsageError, match="the bucket's name is a glob; name each bucket with an --input"):
        listing(pattern)


def test_an_object_that_no_path_leads_to_is_not_left_out_in_silence(top: str) -> None:
    path = f"{top}-other/in//a.parquet"
    # Around the door, which would put it where it belongs.
    storage.write_atomic(path, b"rows")
    try:
        for pattern in ("-other", "-other/*", "-other/**/a.parquet"):
            with pytest.raises(ShardError, match="a name in its path is empty, which no folder"):
                listing(f"{top}{pattern}")
    finally:
        storage.remove(path)


def test_a_glob_lists_only_what_begins_as_it_does() -> None:
    kept = Kept(["in/ds=1/a", "in/ds=2/a", "other/a"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_stores", {"s3": objects.ObjectStore("s3", cast(Client, kept))})
        assert [info.path for info in listing("s3://b/in/ds=2*")] == ["s3://b/in/ds=2/a"]
    assert kept.asked == ["in/ds=2*/", "in/ds=2"]


class Kept:
    """A store of empty objects with these names; knows what was listed of it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._found, self.asked = [Found(name, 0, "1", 0.0) for name in sorted(names)], list[str]()

    def head(self, bucket: str, key: str) -> Found | None:
        return next((one for one in self._found if one.key == key), None)

    def page(self, bucket: str, prefix: str, delimiter: str, token: str) -> Page:
        self.asked.append(prefix)
        return Page([one for one in self._found if one.key.startswith(prefix)], (), "")


# Few letters, so that globs match often, and all that the rules are about.
LETTERS = st.text("aab_.[]*?!^-\\\n", min_size=1, max_size=3).filter(
    lambda name: name not in (".", "..", "**")
)
NAME = st.one_of(st.sampled_from(["a", "b", "_a", ".a", "ab"]), LETTERS)
PART = st.one_of(NAME, st.sampled_from(["*", "**", "**", "?", "a*", "[ab]", "[!a]", "_*", "*a"]), LETTERS)
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
PATTERN = st.lists(PART, min_size=1, max_size=4).map("/".join)


def without_clashes(names: Iterable[str]) -> list[str]:
    """Leave out what on a disk would be a file and a folder."""
    folders = {
        posixpath.dirname(name[: at + 1]) for name in names for at in range(len(name)) if name[at] == "/"
    }
    return [name for name in names if name not in folders]


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(names=st.sets(PATH, min_size=1, max_size=8), patterns=st.lists(PATTERN, min_size=3, max_size=6))
def test_any_glob_of_any_names_finds_the_same_in_a_bucket_as_on_a_disk(
    names: set[str], patterns: list[str]
) -> None:
    kept = without_clashes(names)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in kept:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        store = objects.ObjectStore("s3", cast(Client, Kept([f"top/{name}" for name in kept])))
        patch.setattr(objects, "_stores", {"s3": store})
        for pattern in patterns:
            assert shown("s3://bucket/top", pattern) == shown(folder, pattern), pattern
