"""The shards that the launcher finds, and their footers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import UsageError
from job.shards import inputs
from job.spec import ScoringSpec, Shard
from tests.support.nights import Night, features


def shards(*paths: str | Path) -> list[str]:
    spec = ScoringSpec(inputs=tuple(map(str, paths)), model="m.keras", output="/nowhere/out")
    return [shard.path for shard in inputs.list_shards(spec)]


def test_a_file_that_several_paths_lead_to_is_one_shard(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = night.shard("ds=2013-12-01/a", features(5))
    (night.input / "latest").symlink_to("ds=2013-12-01")
    (night.input / "0.parquet").symlink_to(shard)
    (night.folder / "other").symlink_to(night.input)
    listed = night.folder / "list.txt"
    listed.write_text(f"in/ds=2013-12-01\nin/../in/ds=2013-12-01/a.parquet\n{shard}\n")
    monkeypatch.chdir(night.folder)
    ways: list[str | Path] = [night.input, night.folder / "other", f"@{listed}", shard]
    ways.append(f"{night.folder}/other/*/a.parquet")
    assert shards(*ways) == shards(*reversed(ways)) == [str(shard)]
    assert shards(night.input, shard.parent) == [str(shard)]


def test_files_that_only_links_lead_to_go_by_the_first_link(night: Night) -> None:
    aside = night.folder / "aside"
    aside.mkdir()
    pq.write_table(features(5), aside / "a.parquet")
    night.input.mkdir()
    for name in ("z", "b", "k"):
        (night.input / name).symlink_to(aside)
    inputs = [night.input / "z", night.input / "k", night.input]
    assert shards(*inputs) == shards(*reversed(inputs)) == [str(night.input / "b" / "a.parquet")]


def described(path: Path) -> Shard:
    return Shard(str(path), os.path.getsize(path), "1")


def test_schemas_that_differ_in_metadata_only_are_one_object(tmp_path: Path) -> None:
    listed = []
    for i in range(40):
        frame = pd.DataFrame({"x": np.arange(i + 1.0), "n": np.arange(i + 1)})
        frame.index = pd.RangeIndex(i, 2 * i + 1)
        table = pa.Table.from_pandas(frame if i % 2 else frame[["n"]])
        assert b"pandas" in table.schema.metadata
        pq.write_table(table, tmp_path / f"{i}.parquet")
        listed.append(described(tmp_path / f"{i}.parquet"))
    footers = inputs.read_footers(listed)
    assert len({id(footer.schema) for footer in footers}) == 2
    assert [footer.rows for footer in footers] == list(range(1, 41))
    assert [footer.schema.names for footer in footers[:2]] == [["n"], ["x", "n"]]


def test_extension_types_survive_and_tell_schemas_apart(tmp_path: Path) -> None:
    listed = []
    for i, shape in enumerate([(2, 3), (3, 2), (2, 3)]):
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((4, *shape), np.float32))
        table = pa.table({"image": images}).replace_schema_metadata({"made": str(i)})
        pq.write_table(table, tmp_path / f"{i}.parquet")
        listed.append(described(tmp_path / f"{i}.parquet"))
    first, second, third = inputs.read_footers(listed)
    assert first.schema.field("image").type == pa.fixed_shape_tensor(pa.float32(), [2, 3])
    assert second.schema.field("image").type == pa.fixed_shape_tensor(pa.float32(), [3, 2])
    assert third.schema is first.schema
    assert replace(third, schema=second.schema).rows == 4


def test_one_file_in_two_hive_folders_is_refused(night: Night) -> None:
    """Neither may its rows be scored for one night only, nor silently for both."""
    night.shard("ds=2013-12-01/a", features(3))
    (night.input / "ds=2013-12-02").symlink_to("ds=2013-12-01")
    with pytest.raises(UsageError, match=r"ds=2013-12-02 and .*ds=2013-12-01 are one folder"):
        shards(night.input)
    with pytest.raises(UsageError, match=r"ds=2013-12-02/a.parquet and .*2013-12-01/a.parquet are one"):
        shards(night.input / "*" / "*.parquet")


def test_hard_links_of_one_file_count_once(night: Night) -> None:
    first = night.shard("b", features(5))
    for name in ("a.parquet", "sub/c.parquet"):
        (night.input / name).parent.mkdir(exist_ok=True)
        os.link(first, night.input / name)
    other = night.shard("d", features(5))
    assert (
        shards(night.input)
        == shards(night.input / "sub", night.input)
        == [str(night.input / "a.parquet"), str(other)]
    )
    # A copy of its very time and size is another file.
    shutil.copy2(other, night.input / "e.parquet")
    assert len(shards(night.input)) == 3


def test_a_hard_link_in_another_hive_folder_is_refused(night: Night) -> None:
    first = night.shard("ds=1/a", features(5))
    night.shard("ds=2/b", features(5))
    os.link(first, night.input / "ds=2/a.parquet")
    with pytest.raises(UsageError, match=r"ds=2/a\.parquet and .*ds=1/a\.parquet are one file in two Hive"):
        shards(night.input)


def test_a_name_that_is_no_text_is_told_as_such(night: Night) -> None:
    """Beside the others, which are none the worse for it."""
    night.shard("a", features(5))
    os.rename(night.shard("b", features(5)), os.fsencode(night.input) + b"/b\xff.parquet")
    spec = ScoringSpec(inputs=(str(night.input),), model="m.keras", output="/nowhere/out")
    good, bad = inputs.read_footers(inputs.list_shards(spec))
    assert (good.rows, good.error) == (5, "")
    assert "is not in UTF-8" in bad.error
    assert "rename it" in bad.error
    with pytest.raises(UsageError, match=r"^--output=.* not in UTF-8; rename it"):
        inputs.absolute(replace(spec, output="/x/\udcff"))


@pytest.mark.parametrize(
    ("searched", "output", "apart"),
    [
        ("in", "link/out", False),
        ("link", "in/out", False),
        ("link", "link/a/out", False),
        ("in", "aside/deep/out", False),
        ("link/*.parquet", "in/out", True),
        ("in", "beside/out", True),
        ("link", "in2", True),
        ("in/b.parquet", "link", False),
    ],
)
def test_an_output_below_the_input_is_found_behind_links(
    night: Night, searched: str, output: str, apart: bool
) -> None:
    top = night.folder
    night.shard("b", features(3))
    (top / "link").symlink_to("in")
    # The search goes through it: tomorrow it would find what is written there today.
    pq_folder = top / "aside/deep/sub"
    pq_folder.mkdir(parents=True)
    pq.write_table(features(4), pq_folder / "a.parquet")
    (night.input / "more").symlink_to("../aside/deep")
    spec = ScoringSpec(inputs=(str(top / searched),), model="m.keras", output=str(top / output))
    if apart:
        assert inputs.list_shards(spec)
    else:
        with pytest.raises(UsageError, match="lie within each other"):
            inputs.list_shards(spec)


@pytest.fixture
def mounted(night: Night) -> Iterator[Callable[[str, str], None]]:
    """Mounts a folder of the night's in a second place, as ``mount --bind``."""
    places: list[Path] = []

    def mount(folder: str, place: str) -> None:
        (night.folder / folder).mkdir(parents=True, exist_ok=True)
        (night.folder / place).mkdir(parents=True)
        command = ["mount", "--bind", str(night.folder / folder), str(night.folder / place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is for root, and not in each container")
        places.append(night.folder / place)

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("folder", "place", "searched", "output", "apart"),
    [
        ("in", "mounted", "in", "mounted/out", False),
        ("in", "mounted", "mounted", "in/deep/out", False),
        ("in/sub", "mounted", "in", "mounted/out", False),
        ("in/sub", "mounted", "in/sub", "mounted", False),
        ("out", "mounted", "mounted/sub", "out", False),
        ("out", "mounted", "mounted/sub/*.parquet", "out", False),
        ("in", "mounted", "in/*.parquet", "mounted/out", True),
        ("in/sub", "mounted", "mounted", "in/out", True),
        ("in", "mounted", "mounted", "out", True),
        ("aside", "mounted", "in", "mounted/out", True),
    ],
)
def test_an_output_below_the_input_is_found_behind_mounts(
    night: Night,
    mounted: Callable[[str, str], None],
    folder: str,
    place: str,
    searched: str,
    output: str,
    apart: bool,
) -> None:
    for name in ("in/b", "in/sub/a", "out/sub/a"):
        (night.folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(features(3), night.folder / f"{name}.parquet")
    mounted(folder, place)
    spec = ScoringSpec(
        inputs=(str(night.folder / searched),), model="m.keras", output=str(night.folder / output)
    )
    if apart:
        assert inputs.list_shards(spec)
    else:
        with pytest.raises(UsageError, match="lie within each other"):
            inputs.list_shards(spec)
