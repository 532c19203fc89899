"""Nights that cannot be scored: the arguments, the exit code and what the message must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.nights import Night, dense, features, saved

Case = tuple[list[str], int, str]


def model(night: Night, width: int = 4) -> Path:
    return saved(dense(width), night.folder / "m.keras")


def good(night: Night, *flags: str, shards: int = 3) -> list[str]:
    """Arguments that would score ``shards`` shards of 50 rows."""
    for i in range(shards):
        night.shard(f"part-{i}", features(50, seed=i, first_id=50 * i))
    return night.args(model(night), "--keys=id", *flags)


# Shards.


def no_file_matches(night: Night) -> Case:
    args = good(night)
    return (
        [f"--input={night.folder}/absent/*.parquet", *args[1:]],
        3,
        r"--input=.*absent/\*\.parquet: no file matches",
    )


def an_empty_folder(night: Night) -> Case:
    args = good(night, shards=0)
    night.input.mkdir()
    return args, 3, f"--input={night.input}: no file matches"


def a_shard_that_is_text(night: Night) -> Case:
    args = good(night)
    (night.input / "part-1.parquet").write_text("id,f0\n1,2\n")
    return (
        args,
        4,
        r"error: no readable Parquet file .*; write it again .* in 1 of 3 shards, first .*part-1\.parquet",
    )


def a_shard_that_is_cut_short(night: Night) -> Case:
    args = good(night)
    path = night.input / "part-2.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return args, 4, r"no readable Parquet file .* first .*part-2\.parquet"


def a_shard_of_no_bytes(night: Night) -> Case:
    args = good(night)
    (night.input / "part-0.parquet").write_bytes(b"")
    return args, 4, r"no readable Parquet file .*0 bytes.* first .*part-0\.parquet"


def a_shard_with_damaged_pages(night: Night) -> Case:
    args = good(night)
    pq.write_table(features(5000), night.input / "part-1.parquet", compression="zstd")
    content = bytearray((night.input / "part-1.parquet").read_bytes())
    content[5000:9000] = bytes(4000)
    (night.input / "part-1.parquet").write_bytes(content)
    return args, 4, r"part-1\.parquet: row groups 0 to 0 cannot be read .*write the shard again"


# Columns.


def a_column_missing_in_one_shard(night: Night) -> Case:
    args = good(night)
    night.shard("part-1", features(50).drop_columns(["f2"]))
    return args, 4, r"column 'f2' is absent.* in 1 of 3 shards, first .*part-1\.parquet"


def a_column_missing_in_the_first_shard(night: Night) -> Case:
    args = good(night, "--features=f0,f1,f2,f3")
    night.shard("part-0", features(50).drop_columns(["f2"]))
    return args, 4, r"column 'f2' is absent.* in 1 of 3 shards, first .*part-0\.parquet"


def a_type_that_differs_in_some_shards(night: Night) -> Case:
    args = good(night)
    for i in (1, 2):
        table = features(50)
        night.shard(f"part-{i}", table.set_column(1, "f0", table.column("f0").cast(pa.string())))
    return args, 4, r"column 'f0' string .* float32 is wanted.* in 2 of 3 shards, first .*part-1\.parquet"


def a_key_missing_everywhere(night: Night) -> Case:
    return [*good(night)[:-1], "--keys=idd"], 4, r"--keys names 'idd', which is no column \(closest: 'id'\)"


def a_key_missing_in_one_shard(night: Night) -> Case:
    args = good(night)
    night.shard("part-2", features(50).drop_columns(["id"]))
    return args, 4, r"'id' is absent.* in 1 of 3 shards, first .*part-2\.parquet"


def a_key_of_two_types(night: Night) -> Case:
    args = good(night)
    table = features(50)
    night.shard("part-1", table.set_column(0, "id", table.column("id").cast(pa.string())))
    return args, 4, r"key id: string, but int64 in the first shard in 1 of 3 shards, first .*part-1\.parquet"


def too_few_columns(night: Night) -> Case:
    args = good(night)
    for i in range(3):
        night.shard(f"part-{i}", features(50, 3))
    return args, 4, r"3 columns .* remain after --keys, .*float32 \(4,\)"


def too_many_features(night: Night) -> Case:
    return good(night, "--features=f0,f1,f2"), 4, r"--features names 3 columns for model input .*\(4,\)"


def a_list_of_another_width(night: Night) -> Case:
    args = good(night, shards=0)
    night.shard("a", pa.table({"id": [1], "v": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}))
    return args, 4, r"none of shape \(4,\)"


def a_key_named_like_the_prediction(night: Night) -> Case:
    args = good(night)
    for i in range(3):
        night.shard(f"part-{i}", features(50).rename_columns(["prediction", "f0", "f1", "f2", "f3"]))
    return [*args[:-1], "--keys=prediction"], 4, "'prediction' is both a key .* and a prediction"


def a_prediction_named_like_a_key(night: Night) -> Case:
    return good(night, "--prediction_columns=id"), 2, "--prediction_columns=id: also in --keys"


# Values.


def an_integer_that_no_float32_is(night: Night) -> Case:
    args = good(night)
    values = np.arange(50)
    values[33] = 2**24 + 1
    night.shard("part-1", features(50).set_column(2, "f1", pa.array(values)))
    return [*args, "--on_bad_row=fail"], 5, r"part-1\.parquet: row 33: column f1: .*value 16777217"


def a_null(night: Night) -> Case:
    args = good(night)
    values = [None if i == 7 else 1.0 for i in range(50)]
    night.shard("part-2", features(50).set_column(4, "f3", pa.array(values, pa.float32())))
    return [*args, "--on_null=fail"], 5, r"part-2\.parquet: row 7: column f3: null.*--on_null=reject"


def a_number_beyond_float32(night: Night) -> Case:
    args = good(night)
    night.shard("part-0", features(50).set_column(1, "f0", pa.array([1e39] * 50)))
    return (
        args,
        5,
        r"part-0\.parquet: 50 row\(s\) rejected \(50 overflow\), more than --max_rejected",
    )


# Models.


def no_model(night: Night) -> Case:
    args = good(night)
    (night.folder / "m.keras").unlink()
    return args, 4, r"m\.keras: there is no such file, folder or builder"


def a_model_that_is_none(night: Night) -> Case:
    args = good(night)
    (night.folder / "m.keras").write_text("weights")
    return args, 4, r"m\.keras: it is no \.keras archive"


def another_model(night: Night) -> Case:
    return good(night, f"--model_sha256={'0' * 64}"), 4, rf"--model_sha256 wants {'0' * 64}"


def code_in_the_model(night: Night) -> Case:
    args = good(night)
    x = keras.Input((4,))
    saved(keras.Model(x, keras.layers.Lambda(lambda x: x)(x)), night.folder / "m.keras")
    return args, 4, "it carries Python code .*--trust_model"


def a_builder_that_is_not_there(night: Night) -> Case:
    args = good(night)
    args[1] = "--model=models.custom_layer:biuld"
    return args, 4, "the builder failed: AttributeError: .*'biuld'"


def weights_of_another_model(night: Night) -> Case:
    args = good(night, f"--weights={night.folder}/a.weights.h5")
    args[1] = "--model=models.custom_layer:build"
    dense().save_weights(night.folder / "a.weights.h5")
    return args, 4, "models.custom_layer:build: it cannot be built for"


def a_gpu_where_there_is_none(night: Night) -> Case:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    # A model that this process does not hold yet.
    args = good(night, "--device=gpu")
    saved(dense(seed=77), night.folder / "m.keras")
    return args, 4, "--device=gpu: TensorFlow sees no GPU on "


# Usage.


def an_unknown_flag(night: Night) -> Case:
    return good(night, "--bach_size=7"), 2, r"unknown flag --bach_size; did you mean --batch_size\?"


def an_output_that_cannot_be_made(night: Night) -> Case:
    return [*good(night)[:2], "--output=/dev/null/out", "--keys=id"], 2, "/dev/null/out: .*Not a directory"


def an_output_inside_the_input(night: Night) -> Case:
    args = good(night)
    return [*args[:2], f"--output={night.input}/out", "--keys=id"], 2, "lie within each other"


def an_input_inside_the_output(night: Night) -> Case:
    args = good(night)
    return [*args[:2], f"--output={night.folder}", "--keys=id"], 2, "lie within each other"


def a_cast_of_no_column(night: Night) -> Case:
    return good(night, "--cast=f9=float32"), 2, r"--cast names 'f9', which is no column"


CASES: list[Callable[[Night], Case]] = [
    *(no_file_matches, an_empty_folder, a_shard_that_is_text, a_shard_that_is_cut_short, a_shard_of_no_bytes),
    *(a_shard_with_damaged_pages, a_column_missing_in_one_shard, a_column_missing_in_the_first_shard),
    *(a_type_that_differs_in_some_shards, a_key_missing_everywhere, a_key_missing_in_one_shard),
    *(a_key_of_two_types, too_few_columns, too_many_features, a_list_of_another_width),
    *(a_key_named_like_the_prediction, a_prediction_named_like_a_key, an_integer_that_no_float32_is, a_null),
    *(a_number_beyond_float32, no_model, a_model_that_is_none, another_model, code_in_the_model),
    *(a_builder_that_is_not_there, weights_of_another_model, a_gpu_where_there_is_none, an_unknown_flag),
    *(an_output_that_cannot_be_made, an_output_inside_the_input, an_input_inside_the_output),
    a_cast_of_no_column,
]
