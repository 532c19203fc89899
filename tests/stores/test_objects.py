"""Objects of both stores that several want to write, replace, read in one state, or leave open."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from job import storage
from job.errors import ShardChangedError, StorageError
from tests.support.remote_store import Remote
from tests.support.servers.clients import BUCKET
from tests.support.servers.proxy import Fault

WRITERS, ROUNDS = 6, 8


def at_once(act: Callable[[int], bool]) -> list[bool]:
    return storage.parallel(act, range(WRITERS), name="race")


def test_of_many_that_write_first_one_has_written(bucket: Remote, top: str) -> None:
    for number in range(ROUNDS):
        path = f"{top}/{number}"
        first = at_once(lambda one, path=path: storage.write_first(path, b"of %d" % one))  # type: ignore[misc]
        assert sum(first) == 1
        assert bucket.files(top)[str(number)] == b"of %d" % first.index(True)
        assert not storage.write_first(path, b"later")
        # Who finds what it wrote itself was first: nobody answered it, and it asked again.
        assert storage.write_first(path, b"of %d" % first.index(True))


def test_of_many_that_replace_one_state_one_has_replaced_it(bucket: Remote, top: str) -> None:
    store, path = bucket.store, f"{top}/lease"
    stamp = store.write_if(path, b"free", "")
    assert stamp
    for number in range(ROUNDS):
        before = stamp
        took: dict[int, str | None] = {}

        def take(
            one: int, before: str = before, number: int = number, took: dict[int, str | None] = took
        ) -> bool:
            took[one] = store.write_if(path, b"%d of %d" % (number, one), before)
            return took[one] is not None

        assert sum(at_once(take)) == 1
        ((winner, stamp),) = [(one, new) for one, new in took.items() if new]
        assert stamp not in (None, "", before)
        assert store.read_stamped(path) == (b"%d of %d" % (number, winner), stamp)
    assert store.write_if(f"{top}/none", b"x", str(stamp)) is None
    assert sorted(bucket.files(top)) == ["lease"]


@pytest.mark.parametrize("fault", ["lost", "reset", "503"])
def test_a_condition_is_kept_where_the_first_try_was_not_answered(
    bucket: Remote, top: str, fault: str
) -> None:
    bucket.way.proxy.set(faults=[Fault(fault, "^(PUT|POST) ")])
    assert storage.write_first(f"{top}/mine", b"mine")
    assert not storage.write_first(f"{top}/mine", b"another's")
    assert bucket.files(top) == {"mine": b"mine"}
    assert [one.fault for one in bucket.settled() if one.method != "GET"] == [fault, "", ""]


def test_only_the_state_that_was_seen_is_removed(bucket: Remote, top: str) -> None:
    store = bucket.store
    stamps = [store.write_if(f"{top}/{name}", b"old", "") for name in "ab"]
    assert all(stamps)
    new = store.write_if(f"{top}/a", b"new", str(stamps[0]))
    for path in (f"{top}/a", f"{top}/gone"):
        store.remove([path], str(stamps[0]))
    store.remove([f"{top}/b"], str(stamps[1]))
    assert bucket.files(top) == {"a": b"new"}
    store.remove([f"{top}/a"], str(new))
    assert bucket.files(top) == {}


def test_what_is_not_there_is_asked_for_once(bucket: Remote, top: str) -> None:
    """Of a refusal that cannot pass nobody hopes for better."""
    path = f"{top}/gone"

    def requests(act: Callable[[], object]) -> int:
        bucket.way.proxy.reset()
        act()
        return len(bucket.settled())

    assert requests(lambda: storage.describe(path)) == 1
    assert requests(lambda: storage.read_bytes(path)) == 1
    assert requests(lambda: storage.held_bytes(path)) == 1
    assert requests(lambda: storage.remove(path)) == 1
    stamp = str(bucket.store.write_if(f"{top}/other", b"x", ""))
    # The second looks whether the first was carried out, and unheard.
    assert requests(lambda: bucket.store.write_if(path, b"x", stamp)) <= 2
    assert storage.describe(path) is None
    assert storage.read_bytes(path) is None
    assert storage.held_bytes(path) is None
    with pytest.raises(FileNotFoundError):
        storage.parquet_source(path)
    with pytest.raises(FileNotFoundError):
        storage.release(path, f"{top}/final")
    for act in (storage.sha256, lambda absent: storage.copied(absent, "/tmp/nowhere")):
        with pytest.raises(StorageError, match=rf"^{path}: cannot be read: there is no such object$"):
            act(path)


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_an_object_that_is_another_by_now_is_told_and_not_read(bucket: Remote, top: str, how: str) -> None:
    path = f"{top}/shard"
    storage.write_atomic(path, b"old rows")
    seen = storage.describe(path)
    assert seen is not None
    source = storage.parquet_source(path, seen.size_bytes, seen.stamp)
    assert source.read(3) == b"old"
    if how == "replaced":
        storage.write_atomic(path, b"new rows")
        assert storage.describe(path) != seen
    else:
        storage.remove(path)
    told = rf"^{path}: it was replaced or removed since it was listed; run again to plan anew$"
    for act in (source.read, lambda: storage.footer_source(path, seen.size_bytes, seen.stamp)):
        with pytest.raises(ShardChangedError, match=told):
            act()
    # Whoever looks first reads what is there now.
    if how == "replaced":
        assert storage.parquet_source(path).read() == b"new rows"


def test_nobody_asks_for_the_bucket_itself(bucket: Remote, top: str) -> None:
    """Whoever may read objects need not be allowed that; Google's client asks it for its traces."""
    path = f"{top}/a"
    storage.write_atomic(path, b"x")
    for name in ("a", "gone"):
        storage.describe(f"{top}/{name}")
        storage.remove(f"{top}/{name}")
    assert [one.name for one in threading.enumerate() if "background" in one.name] == []
    assert [one for one in bucket.settled() if one.key == BUCKET and one.method == "GET"] == []


def test_only_uploads_that_nobody_needs_are_swept(bucket: Remote, top: str) -> None:
    """Those beside the folder are another's, though their names begin alike."""

    def begin(final: str) -> str:
        sink = storage.create(f"{top}/attempt{len(final)}", final)
        sink.write(final.encode())
        return sink.seal()

    finals = [f"{top}/a", f"{top}/b/c", f"{top}/a", f"{top}-other/a", f"{top}x"]
    handles = [begin(final) for final in finals]
    kept = [handles[1], handles[2]]
    storage.sweep(top, keep=lambda: kept)
    swept = {0} if bucket.is_s3 else set()
    for number, (handle, final) in enumerate(zip(handles, finals, strict=True)):
        assert (storage.held_bytes(handle) is None) == (number in swept)
        if number not in swept:
            storage.release(handle, final)
            assert storage.read_bytes(final) == final.encode()


def test_where_nothing_is_open_nobody_is_asked_what_to_keep(bucket: Remote, top: str) -> None:
    """What is to be kept is told by reading every receipt."""

    def keep() -> list[str]:
        pytest.fail("asked")

    storage.sweep(top, keep=keep)
