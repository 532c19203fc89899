"""Folders that are tables, whose files hold dead rows: refused, on disks and in buckets; others are not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.errors import UsageError
from job.shards import inputs
from job.spec import ScoringSpec
from tests.support.nights import features
from tests.support.remote_store import Remote, remote

# What a table has beside its data, and what it is called.
LOGS = {
    "_delta_log/00000000000000000000.json": "a Delta table",
    "metadata/00000-9c12d441-03fe-4693-9a96-a0705ddf69c1.metadata.json": "an Iceberg table",
    "metadata/v3.gz.metadata.json": "an Iceberg table",
    ".hoodie/hoodie.properties": "a Hudi table",
    "_spark_metadata/0": "what a Spark stream writes",
}
DATA = ("data/ds=1/a.parquet", "data/ds=2/b.parquet", "c.parquet")
Put = Callable[[str, bytes], str]


@pytest.fixture(scope="module", params=["", "gs", "s3"], ids=["disk", "gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Remote | None]:
    if not request.param:
        yield None
        return
    with remote(request.param) as found:
        yield found


@pytest.fixture
def put(bucket: Remote | None, tmp_path: Path) -> Put:
    """Writes a file below a folder of this test's own, and returns its path."""

    def write(name: str, content: bytes) -> str:
        if bucket is not None:
            bucket.bucket.put(f"{tmp_path.name}/{name}", content)
            return bucket.path(f"{tmp_path.name}/{name}")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return write


def parquet(rows: int = 3) -> bytes:
    sink = io.BytesIO()
    pq.write_table(features(rows), sink)
    return sink.getvalue()


def table(put: Put, log: str, name: str = "t") -> str:
    for path in DATA:
        found = put(f"{name}/{path}", parquet())
    put(f"{name}/{log}", b"{}")
    return found.rpartition("/")[0]


def shards(*values: str) -> list[str]:
    return [shard.path for shard in inputs.list_shards(ScoringSpec(values, "m.keras", "/nowhere/out"))]


@pytest.mark.slow
@pytest.mark.parametrize("log", LOGS)
def test_a_table_is_refused_from_wherever_one_comes_into_it(put: Put, log: str) -> None:
    top = table(put, log)
    above = top.rpartition("/")[0]
    for value in (
        top,
        f"{top}/data",
        f"{top}/data/ds=1",
        above,
        f"{top}/data/ds=*",
        f"{top}/data/*/*.parquet",
    ):
        with pytest.raises(UsageError, match=rf"^--input: {top} is {LOGS[log]}, whose .*--input=@list\.txt"):
            shards(value)


def test_files_of_a_table_may_be_named_one_by_one(put: Put, tmp_path: Path) -> None:
    """The table itself tells which of its files are live."""
    top = table(put, "_delta_log/00000000000000000000.json")
    live = [f"{top}/data/ds=1/a.parquet", f"{top}/c.parquet"]
    (tmp_path / "list.txt").write_text("\n".join(live))
    assert shards(f"@{tmp_path}/list.txt") == sorted(live)
    (tmp_path / "list.txt").write_text("\n".join([*live, f"{top}/data"]))
    with pytest.raises(UsageError, match="is a Delta table"):
        shards(f"@{tmp_path}/list.txt")


@pytest.mark.parametrize(
    "other", ["metadata/about.json", "metadata/x.parquet", "data/metadata.json", "x/_delta_log_of_old/0.json"]
)
def test_a_folder_that_only_looks_a_little_like_one_is_none(put: Put, other: str) -> None:
    for path in (*DATA, other):
        found = put(f"plain/{path}", parquet())
    top = found[: found.index("/plain/")] + "/plain"
    assert {*shards(top)} >= {f"{top}/{path}" for path in DATA}
    # A table beside it is none of its business.
    table(put, "_delta_log/0.json", "other")
    assert {*shards(f"{top}/data")} >= {f"{top}/{path}" for path in DATA[:2]}


def test_a_link_into_a_table_is_no_way_in(tmp_path: Path) -> None:
    for path in (*DATA, "_delta_log/0.json"):
        (tmp_path / "t" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / path).write_bytes(parquet())
    (tmp_path / "night").symlink_to("t/data/ds=1")
    with pytest.raises(UsageError, match=rf"^--input: {tmp_path}/t is a Delta table"):
        shards(str(tmp_path / "night"))


def test_a_bucket_is_asked_about_each_folder_above_once(put: Put, bucket: Remote | None) -> None:
    """However many shards there are, and what a listing has shown is not asked again."""
    if bucket is None:
        pytest.skip("a disk is not asked")
    content = parquet()
    for i in range(40):
        path = put(f"many/deep/ds={i % 4}/{i}.parquet", content)
    bucket.settled()
    bucket.way.proxy.reset()
    top = path[: path.index("/ds=")]
    assert len(shards(top)) == 40
    # A look at the path itself, the listing, and then "many", the test's folder and the bucket.
    assert len(bucket.settled()) == 5
