"""A reader of an output in a bucket who looks on while one night takes the place of another."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import pytest

from job.report.run_report import RunReport
from job.storage import gcs
from tests.support.servers.proxy import Fault
from tests.support.store_nights import MUTATES, StoreNight, held, until_held

# A night with other files, of the same names and of others.
OTHER = ("--row_group_rows=30", "--split_rows=30")


@pytest.fixture(scope="module")
def night(night_in_store: StoreNight) -> StoreNight:
    return night_in_store


Look = Callable[[str], bytes | None]


def read(look: Look) -> str | None:
    """The run id of the night that a reader accepts, who goes by docs/object-stores.md; and it is no mix."""
    if look("_SUCCESS") is None or (told := look("_manifest.json")) is None:
        return None
    manifest = json.loads(told)
    digests = {}
    for one in (*manifest["files"], *manifest["rejected_files"]):
        content = look(one["path"])
        if content is None:
            return None
        digests[one["path"]] = (hashlib.sha256(content).hexdigest(), one["sha256"])
    if look("_SUCCESS") is None:
        return None
    if json.loads(look("_manifest.json") or b"{}").get("run_id") != manifest["run_id"]:
        return None
    wrong = [path for path, (found, wanted) in digests.items() if found != wanted]
    assert not wrong, f"a mix was accepted: {wrong}"
    return str(manifest["run_id"])


def states(night: StoreNight, name: str, *flags: str) -> list[Mapping[str, bytes]]:
    """What a reader may see, one change after the other, while another night is published."""
    found: list[Mapping[str, bytes]] = []
    changes = Fault("hold", MUTATES, times=-1, done=True, late=True)
    with held(night, changes, lambda: night.score(name, *flags)) as (thread, got):
        while until_held(night, thread):
            found.append(visible(night, name))
            night.way.proxy.release()
    assert [type(one) for one in got] == [RunReport]
    return [now for before, now in pairwise([{}, *found]) if now != before]


def visible(night: StoreNight, name: str) -> dict[str, bytes]:
    """What readers look at, without what changes meanwhile."""
    starts = ("part-", "_rejected/", "_manifest", "_SUCCESS")
    found = {start: night.bucket.files(f"{name}/{start}") for start in starts}
    return {f"{start}{rest}": content for start, files in found.items() for rest, content in files.items()}


def looks(history: Sequence[Mapping[str, bytes]], when: Sequence[int]) -> Look:
    """A reader's looks, each at its time."""
    times = iter(when)
    return lambda path: history[next(times)].get(path)


def test_no_reader_accepts_a_mix_of_two_nights(night: StoreNight, monkeypatch: pytest.MonkeyPatch) -> None:
    # One after the other, so that every state between is seen.
    monkeypatch.setattr("job.storage.REQUESTS_AT_ONCE", 1)
    monkeypatch.setattr(gcs, "_DELETES_AT_ONCE", 1)
    name = "out"
    first = night.score(name, *OTHER).run_id
    history = states(night, name, "--if_exists=replace")
    second = json.loads(history[-1]["_manifest.json"])["run_id"]
    night.check(name)
    # _SUCCESS goes, four files come, others go at once, report and manifest come, and _SUCCESS.
    assert len(history) >= 8
    # Read at once, at each time; and then at any times.
    at_once = [read(looks(history, [at] * 20)) for at in range(len(history))]
    assert at_once == [first, *[None] * (len(history) - 2), second]
    draw, accepted = random.Random(0), []
    for _ in range(2000):
        span = sorted(draw.choices(range(len(history)), k=2))
        accepted.append(read(looks(history, sorted(draw.choices(range(span[0], span[1] + 1), k=20)))))
    assert set(accepted) == {None, first, second}
