"""What ``verify`` lets through, and everything that it must find."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from job.binding.predictions import Tolerance
from job.compare.verify import ALL, Verification, verify
from job.errors import OutputConflictError, UsageError
from job.model import artifact
from job.model.loading import acquire
from tests.support.nights import Night, dense, features, kept, module, put_back, run_cli, saved
from tests.support.tampering import FAULTS, change_a_prediction, changed, delete, rewrite, swap, table_of


def check(night: Night, sample_rows: int = ALL, seed: int | None = 0) -> Verification:
    return verify(str(night.output), sample_rows=sample_rows, seed=seed, tolerance=Tolerance())


def with_nulls(rows: int, first_id: int) -> pa.Table:
    table = features(rows, seed=first_id, first_id=first_id)
    values = [None if i % 50 == 7 else v for i, v in enumerate(table["f1"].to_pylist())]
    return table.set_column(2, "f1", pa.array(values, pa.float32()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of a night of three shards in two Hive folders, cut into splits, with rejected rows."""
    night = Night(tmp_path_factory.mktemp("three") / "night")
    for i, hour in enumerate(("07", "10", "10")):
        night.shard(f"hour={hour}/part-{i}", with_nulls(300, 1000 * i), group_rows=100)
    model = saved(dense(), night.folder / "m.keras")
    night.score(model, "--keys=id", "--split_rows=200", "--max_rejected=0.05", "--batch_size=64")
    # Held, so that it is loaded once for all tests.
    held = acquire(artifact.resolve(str(model), None, trusted=False, sha256=None))
    yield kept(night)
    del held


@pytest.fixture
def night_of_three(whole: Path) -> Night:
    """The night itself."""
    return put_back(whole)


@pytest.mark.slow
def test_a_night_that_is_right(night_of_three: Night) -> None:
    found = check(night_of_three)
    assert (found.findings, found.differences) == ((), ())
    assert (found.rows, found.rows_again, found.rows_different) == (882, 882, 0)
    assert found.files == 12


@pytest.mark.parametrize("rows", [1, 5, 100, 881, 5000])
def test_a_sample_is_about_as_large_as_asked_for(night_of_three: Night, rows: int) -> None:
    found = check(night_of_three, rows)
    assert found.is_right
    assert min(rows, 882) * 0.5 <= found.rows_again <= rows + 6


def test_without_a_sample_neither_shards_nor_model_are_needed(night_of_three: Night) -> None:
    for path in night_of_three.input.rglob("*.parquet"):
        path.unlink()
    (night_of_three.folder / "m.keras").unlink()
    assert check(night_of_three, 0).is_right
    found = check(night_of_three)
    assert not found.is_right
    assert sum("is gone since it was scored; --sample_rows=0" in line for line in found.findings) == 3
    assert any("the model is not to be had" in line for line in found.findings)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_found_and_told_with_exit_code_5(
    night_of_three: Night, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    night, (spoil, message) = night_of_three, FAULTS[fault]
    spoil(night, night.output / "hour=07/part-0-00000-00001.parquet")
    code, out, err = run_cli(capfd, "verify", str(night.output), "--sample_rows=all")
    assert code == 5, out
    assert re.search(message, out, re.MULTILINE), out
    assert err.count("\n") == 1
    assert "is not the night that its manifest tells of" in err


def test_a_pair_that_is_swapped_is_told_on_both_sides(night_of_three: Night) -> None:
    first = night_of_three.files()[0]
    swap(night_of_three, first)
    assert sum("it holds what" in line for line in check(night_of_three, 0).findings) == 2


def test_a_rejected_file_is_checked_too(night_of_three: Night) -> None:
    path = next((night_of_three.output / "_rejected").rglob("*.rejected"))
    delete(night_of_three, path)
    name = path.relative_to(night_of_three.output)
    assert f"{name}: it is gone" in check(night_of_three, 0).findings


def as_before(night: Night) -> None:
    """Give files of rejected rows the names that they once had: as those of scored rows."""
    manifest = night.manifest()
    for entry in manifest["rejected_files"]:
        path = night.output / entry["path"]
        entry["path"] = str(path.with_suffix(".parquet").relative_to(night.output))
        path.rename(night.output / entry["path"])
    (night.output / "_manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_a_night_whose_rejected_rows_have_the_names_of_before(night_of_three: Night) -> None:
    """Every row is found in its shard, and the night that replaces it leaves none of its files."""
    night = night_of_three
    as_before(night)
    found = check(night)
    assert (found.findings, found.differences, found.rows_again) == ((), (), 882)
    night.score(night.folder / "m.keras", "--keys=id", "--if_exists=replace", "--max_rejected=0.05")
    assert check(night).is_right
    assert not list((night.output / "_rejected").rglob("*.parquet"))


@pytest.mark.parametrize(
    "path", ["../evil.parquet", "/etc/passwd", "a/../../b.parquet", "_staging/x.parquet", "x"]
)
def test_a_manifest_cannot_lead_out_of_the_output(night_of_three: Night, path: str) -> None:
    """Replacing a night removes the files that its manifest names."""
    night = night_of_three
    (night.folder / "evil.parquet").write_bytes(b"not ours")
    manifest = night.manifest()
    manifest["files"].append({**manifest["files"][0], "path": path})
    (night.output / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputConflictError, match=r"it names the file .*, which no run writes"):
        check(night, 0)
    night.shard("hour=11/new", features(50))
    with pytest.raises(OutputConflictError, match="it names the file"):
        night.score(night.folder / "m.keras", "--keys=id", "--if_exists=replace", "--max_rejected=1")
    assert (night.folder / "evil.parquet").read_bytes() == b"not ours"


def test_the_mark_of_publishing_cannot_lead_out_of_the_output(night_of_three: Night) -> None:
    from job.commit import output

    night, run = night_of_three, "e" * 64
    marker = Path(output.marker_path(str(night.output), run))
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"stale": ["../../m.keras"], "files": []}))
    with pytest.raises(OutputConflictError, match=r"it names the file '\.\./\.\./m\.keras'"):
        output.read_marker(str(night.output), run)


def by_name() -> Any:
    inputs = {
        name: keras.Input((), name=name, dtype=kind) for name, kind in (("b", "float32"), ("t", "string"))
    }
    code = keras.layers.StringLookup(vocabulary=["x", "y"], num_oov_indices=1)(inputs["t"])
    total = keras.ops.cast(code, "float32") + inputs["b"]
    return keras.Model(inputs, {"sum": total, "code": code})


@pytest.mark.slow
def test_a_dict_of_text_and_numbers(night: Night) -> None:
    words = pa.array(["x", "y", "z", "x"] * 50)
    night.shard("a", pa.table({"t": words, "b": np.arange(200.0), "k": words.dictionary_encode()}))
    night.score(saved(by_name(), night.folder / "m.keras"), "--keys=k", "--split_rows=60")
    found = check(night)
    assert (found.findings, found.rows_again) == ((), 200)
    rewrite(night, night.files()[0], changed(table_of(night.files()[0]), "code", 3, lambda value: value + 1))
    assert [(one.column, one.row) for one in check(night).differences] == [("code", 3)]


@pytest.mark.slow
def test_casts_filled_nulls_and_hive_columns(night: Night) -> None:
    for hour in ("07", "10"):
        night.shard(f"hour={hour}/a", with_nulls(100, 0).drop_columns("f3"))
    named = ["--keys=id", "--features=f0,f1,f2,hour", "--cast=hour=int64", "--on_null=fill=2.5"]
    night.score(saved(dense(), night.folder / "m.keras"), *named)
    found = check(night)
    assert (found.findings, found.differences, found.rows_again) == ((), (), 200)


@pytest.mark.slow
def test_lists_in_and_out(night: Night) -> None:
    values = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    night.shard("a", pa.table({"x": pa.FixedSizeListArray.from_arrays(values.ravel(), 4)}), group_rows=40)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(3, name="y")(x))
    night.score(saved(model, night.folder / "m.keras"), "--split_rows=80")
    assert check(night).is_right
    path = night.files()[0]
    rewrite(night, path, changed(table_of(path), "y", 5, lambda row: [row[0], row[1] + 1e-3, row[2]]))
    assert [(one.column, one.row) for one in check(night).differences] == [("y", 5)]


@pytest.mark.slow
def test_a_saved_model(night: Night) -> None:
    night.shard("a", features(80))
    dense().export(night.folder / "exported", verbose=False)
    night.score(night.folder / "exported", "--keys=id")
    assert check(night).is_right


def test_a_builder_and_its_weights(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """import keras
def build():
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
"""
    name = module(night.folder, "verified_builder", source, monkeypatch)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.save_weights(night.folder / "m.weights.h5")
    night.shard("a", features(80))
    night.score(f"{name}:build", "--keys=id", f"--weights={night.folder / 'm.weights.h5'}")
    assert check(night).is_right


def test_nothing_is_published(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    night.output.mkdir()
    with pytest.raises(UsageError, match="it holds no published night"):
        check(night)
    for args in (["x", "--sample_rows=-1"], ["x", "--rtol=much"], [], ["x", "--no"], [str(night.output)]):
        code, out, err = run_cli(capfd, "verify", *args)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")


@pytest.mark.slow
def test_as_json(night_of_three: Night, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capfd, "verify", str(night_of_three.output), "--json", "--seed=3")
    found = json.loads(out)
    assert (code, found["is_right"], found["rows_again"], found["findings"]) == (0, True, 882, [])
    change_a_prediction(night_of_three, night_of_three.output / "hour=07/part-0-00000-00001.parquet")
    code, out, _ = run_cli(capfd, "verify", str(night_of_three.output), "--json")
    (one,) = json.loads(out)["differences"]
    assert (code, one["row"], one["shard_row"]) == (5, 17, 18)
    assert float(one["published"]) == pytest.approx(float(one["again"]) + 1e-3, rel=1e-3)
