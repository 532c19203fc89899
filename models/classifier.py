"""A classifier of flattened 28 by 28 images: a list column of 784 in, ten probabilities out."""

from __future__ import annotations

from pathlib import Path

import keras

from models.artifacts import digit_data, fit_and_save


def build() -> keras.Model:
    """Return the compiled model: ``(rows, 784) float32`` to ``(rows, 10) float32``; each row sums to 1."""
    model = keras.Sequential(
        [
            keras.Input((784,), name="image"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="classifier",
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def train(output: str | Path, *, epochs: int = 5, seed: int = 0) -> tuple[float, ...]:
    """Fit on made-up images, save to ``output`` (``.keras``) and return each epoch's loss.

    Raises:
        ValueError: ``output`` does not end in ``.keras``, or ``epochs`` is below 1.
    """
    return fit_and_save(build, digit_data, output, epochs=epochs, seed=seed)
