"""A model that takes a quarter of a second for each batch, so that something can be killed in mid-run."""

from __future__ import annotations

import time
from typing import Any


def later(value: Any) -> Any:
    time.sleep(0.25)
    return value


def build() -> Any:
    import keras
    import tensorflow as tf

    class Slowly(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            y = tf.py_function(later, [x], x.dtype)
            y.set_shape(x.shape)
            return y

    # Not by the common generators: other threads of a worker may draw from them at the same time.
    seeded = keras.initializers.GlorotUniform(seed=1)
    given = keras.Input((4,), name="x")
    return keras.Model(given, keras.layers.Dense(1, name="score", kernel_initializer=seeded)(Slowly()(given)))
