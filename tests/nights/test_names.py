"""No name of a shard, a folder, a column or an output leads out of the output or into what readers skip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.commit.manifest import is_inside
from job.shards.planner import output_stems
from job.spec import Shard
from tests.support.nights import Night, dense, features, saved, visible

# What a file system allows in a name, and what could do harm in one.
PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "~", "-", "a=..", "ds=%2E%2E%2F", "ds=..", "a=b=c", "=", "x=", "_SUCCESS", ".x", "__"]
    ),
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20),
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_names_of_files_stay_below_the_output(paths: list[list[str]]) -> None:
    shards = [Shard("/" + "/".join([*folders, "x"]) + ".parquet", 1, "1") for folders in paths]
    shards += [Shard("/" + "/".join(folders), 1, "1") for folders in paths]
    for stem in output_stems(list(dict.fromkeys(shards))):
        path = os.path.normpath(f"/out/{stem}.parquet")
        assert path.startswith("/out/")
        assert is_inside(os.path.relpath(path, "/out")), stem


NASTY = ["ds=..", "ds=%2E%2E%2Fx", "ds=a b", "ds=ü", "ds=x\ny", "a=b=c", "ds=" + "y" * 200]


@pytest.mark.parametrize("folder", NASTY)
def test_a_night_below_such_a_folder(night: Night, folder: str) -> None:
    night.shard(f"{folder}/_SUCCESS", features(5))
    night.shard(f"{folder}/.hidden", features(5))
    night.shard(f"{folder}/_manifest.json", features(5))
    night.shard(f"{folder}/plain", features(5))
    report = night.score(saved(dense(), night.folder / "m.keras"), "--keys=id")
    # Shards that begin so are skipped, as every reader of Parquet does.
    assert report.shards == 1
    assert [path.relative_to(night.output) for path in visible(night.output)] == [
        Path(folder, "plain.parquet")
    ]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "_row", "a\nb", "..", " "])
def test_columns_with_such_names(night: Night, name: str) -> None:
    table = features(30).append_column(name, pa.array(np.arange(30)))
    night.shard("a", table)
    before = sorted(path for path in night.folder.rglob("*") if not path.is_relative_to(night.output))
    flags = [f'--keys="{name}"', "--features=f0,f1,f2,f3", f'--prediction_columns="{name}{name}"']
    model = saved(dense(), night.folder / "m.keras")
    night.score(model, *flags)
    assert night.scored().column_names == [name, name * 2]
    after = sorted(path for path in night.folder.rglob("*") if not path.is_relative_to(night.output))
    assert after == sorted([*before, model])
