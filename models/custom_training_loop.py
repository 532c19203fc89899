"""A model that is never compiled: a ``tf.function`` of its own takes each step of Adam."""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf

from models.artifacts import ROWS, checked_output, regression_data

BATCH_ROWS = 32


def build() -> keras.Model:
    """Return the model, not compiled: ``(rows, 10) float32`` to ``(rows, 1) float32``."""
    return keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)],
        name="custom_training_loop",
    )


def train(output: str | Path, *, epochs: int = 10, seed: int = 0) -> tuple[float, ...]:
    """Fit on made-up data, save to ``output`` (``.keras``) and return each epoch's mean loss.

    Raises:
        ValueError: ``output`` does not end in ``.keras``, or ``epochs`` is below 1.
    """
    path = checked_output(output, ".keras", epochs)
    keras.utils.set_random_seed(seed)
    model = build()
    optimizer = keras.optimizers.Adam()
    # Variables cannot be made inside a traced function that runs more than once.
    optimizer.build(model.trainable_variables)
    mean_squared_error = keras.losses.MeanSquaredError()

    @tf.function  # type: ignore[untyped-decorator]  # tensorflow ships no types
    def step(features: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = mean_squared_error(targets, model(features, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    batches = (
        tf.data.Dataset.from_tensor_slices(regression_data(seed))
        .shuffle(ROWS, seed=seed)
        .batch(BATCH_ROWS, drop_remainder=True)
    )
    losses = []
    for _ in range(epochs):
        of_epoch = [step(features, targets) for features, targets in batches]
        losses.append(float(tf.reduce_mean(of_epoch)))
    model.save(path)
    return tuple(losses)
