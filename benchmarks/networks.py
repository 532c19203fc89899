"""Models that only benchmarks need; each function builds one eagerly, the same in every process."""

from __future__ import annotations

from typing import Any

WIDTH = 10


def wide() -> Any:
    """10→1024→1024→1: most of the time is in one matrix product, which threads can share."""
    import keras

    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((WIDTH,)),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(1),
        ]
    )


def large(megabytes: int) -> Any:
    """So many MB of weights, of which each row looks at a few: memory is measured with it, not speed."""
    import keras

    keras.utils.set_random_seed(1)
    # Each row of the table is 16 float32.
    table_rows = megabytes * 1_000_000 // 64
    features = keras.Input((WIDTH,), name="features")
    table = keras.layers.Embedding(table_rows, 16, embeddings_initializer="ones", name="table")
    rows = keras.ops.cast(keras.ops.abs(features) * 1e6, "int32") % table_rows
    return keras.Model(features, keras.layers.Dense(1)(keras.layers.Flatten()(table(rows))))
