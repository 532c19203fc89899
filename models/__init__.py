"""Example models, built eagerly, one per file: see ``python -m models list``.

Each module has ``build()``, which returns a ``keras.Model``, and ``train(output)``, which
fits one and saves it. Listing them imports none of them, and so no TensorFlow.
"""

from __future__ import annotations

MODELS = {
    "sequential": "10 numbers to 1: a Sequential, saved as .keras",
    "functional": "10 numbers to 1: the functional API, saved as .keras",
    "custom_layer": "10 numbers to 1: a layer that cannot be loaded again, saved as .weights.h5",
    "classifier": "784 numbers to 10 probabilities, saved as .keras",
    "custom_loss": "10 numbers to 1: trained with a loss of its own, saved as .keras",
    "custom_training_loop": "10 numbers to 1: trained by a tf.function of its own, saved as .keras",
    "flights": "arrival delay of real flights, 14 named columns to minutes, saved as .keras",
}
