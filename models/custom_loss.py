"""A model trained with a loss function of its own.

The file holds the loss as a bare name, so a plain load fails for want of it. Predicting needs no loss:
with ``compile=False`` the file loads anywhere. (Under the name of a loss that Keras has, Keras'
own would quietly be taken.)
"""

from __future__ import annotations

from pathlib import Path

import keras

from models.artifacts import fit_and_save, regression_data


def absolute_error(truth: keras.KerasTensor, predicted: keras.KerasTensor) -> keras.KerasTensor:
    """Return the mean of ``|truth - predicted|`` over the last axis: ``(rows, k)`` twice to ``(rows,)``."""
    return keras.ops.mean(keras.ops.abs(truth - predicted), axis=-1)


def build() -> keras.Model:
    """Return the compiled model: ``(rows, 10) float32`` to ``(rows, 1) float32``."""
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(1)],
        name="custom_loss",
    )
    model.compile(optimizer="sgd", loss=absolute_error, metrics=["mae"])
    return model


def train(output: str | Path, *, epochs: int = 10, seed: int = 0) -> tuple[float, ...]:
    """Fit on made-up data, save to ``output`` (``.keras``) and return each epoch's loss.

    Raises:
        ValueError: ``output`` does not end in ``.keras``, or ``epochs`` is below 1.
    """
    return fit_and_save(build, regression_data, output, epochs=epochs, seed=seed)
