"""The same question as ``models.sequential`` in the functional API, two hidden layers deep."""

from __future__ import annotations

from pathlib import Path

import keras

from models.artifacts import fit_and_save, regression_data


def build() -> keras.Model:
    """Return the compiled model: ``(rows, 10) float32`` to ``(rows, 1) float32``."""
    inputs = keras.Input((10,), name="features")
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    hidden = keras.layers.Dense(32, activation="relu")(hidden)
    outputs = keras.layers.Dense(1)(hidden)
    model = keras.Model(inputs, outputs, name="functional")
    model.compile(optimizer="adam", loss="mse")
    return model


def train(output: str | Path, *, epochs: int = 10, seed: int = 0) -> tuple[float, ...]:
    """Fit on made-up data, save to ``output`` (``.keras``) and return each epoch's loss.

    Raises:
        ValueError: ``output`` does not end in ``.keras``, or ``epochs`` is below 1.
    """
    return fit_and_save(build, regression_data, output, epochs=epochs, seed=seed)
