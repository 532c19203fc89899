"""A model that Keras saves as ``.keras`` and cannot load again: it needs its builder and its weights.

The layer has no ``get_config`` and makes its variables on the first call, so the saved
file does not hold what it takes to make the layer anew, with or without ``custom_objects``.
Weights alone do come back, into a model that was built and then fed once:

    python -m models train custom_layer --output data/models/custom.weights.h5
    python -m job score --model models.custom_layer:build --weights data/models/custom.weights.h5 …
"""

from __future__ import annotations

from pathlib import Path

import keras

from models.artifacts import fit_and_save, regression_data


class WrappedDense(keras.layers.Layer):
    """A dense layer of 32 inside a layer of one's own, as people write it on a first try."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(32, activation="relu")

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Map ``(rows, features) float32`` to ``(rows, 32) float32``."""
        return self.dense(inputs)


def build() -> keras.Model:
    """Return the compiled model without any weights yet: it learns its input's width from the first batch.

    ``(rows, k) float32`` to ``(rows, 1) float32``; trained here with k = 10.
    """
    model = keras.Sequential([WrappedDense(), keras.layers.Dense(1)], name="custom_layer")
    model.compile(optimizer="adam", loss="mse")
    return model


def train(output: str | Path, *, epochs: int = 10, seed: int = 0) -> tuple[float, ...]:
    """Fit on made-up data, save to ``output`` (``.weights.h5``) and return each epoch's loss.

    Raises:
        ValueError: ``output`` does not end in ``.weights.h5``, or ``epochs`` is below 1.
    """
    return fit_and_save(build, regression_data, output, epochs=epochs, seed=seed, weights_only=True)
