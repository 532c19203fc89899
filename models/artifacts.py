"""What the ``train`` functions share: a look at the output first, data to learn from, and the fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

ROWS = 2048

Examples = tuple[NDArray[np.float32], NDArray[np.float32]]


def checked_output(output: str | Path, suffix: str, epochs: int) -> Path:
    """Return ``output`` as a path whose folder exists.

    Looked at before the fit, which is the expensive part.

    Raises:
        ValueError: ``output`` does not end in ``suffix``, or ``epochs`` is below 1.
    """
    if not str(output).endswith(suffix):
        raise ValueError(f"output {output} does not end in {suffix}, the format this model is saved in")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; at least 1 is needed to train {output}")
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def regression_data(seed: int) -> Examples:
    """Return ``(ROWS, 10) float32`` features and ``(ROWS, 1) float32`` targets.

    A fixed plane with one bend, plus a little noise: learnable, and not by the mean alone.
    """
    random = np.random.default_rng(seed)
    features = random.standard_normal((ROWS, 10), dtype=np.float32)
    slopes = np.linspace(-1.0, 1.0, 10, dtype=np.float32)
    noise = 0.05 * random.standard_normal((ROWS, 1), dtype=np.float32)
    return features, (features @ slopes)[:, None] + np.abs(features[:, :1]) + noise


def digit_data(seed: int) -> Examples:
    """Return ``(ROWS, 784) float32`` images and their ``(ROWS, 10) float32`` one-hot classes.

    Ten random templates, each image one of them under as much noise again.
    """
    random = np.random.default_rng(seed)
    templates = random.random((10, 784), dtype=np.float32)
    classes = random.integers(0, 10, ROWS)
    images = templates[classes] + 0.5 * random.standard_normal((ROWS, 784), dtype=np.float32)
    return images, np.eye(10, dtype=np.float32)[classes]


def fit_and_save(
    build: Callable[[], keras.Model],
    examples: Callable[[int], Examples],
    output: str | Path,
    *,
    epochs: int,
    seed: int,
    weights_only: bool = False,
) -> tuple[float, ...]:
    """Fit what ``build`` returns on what ``examples`` returns, save it, and return each epoch's loss.

    ``seed`` settles the first weights, the data and its order.

    Raises:
        ValueError: as ``checked_output``; the suffix is ``.keras``, or ``.weights.h5`` with ``weights_only``.
    """
    path = checked_output(output, ".weights.h5" if weights_only else ".keras", epochs)
    import keras  # here, because the flights' features need this module and no TensorFlow

    keras.utils.set_random_seed(seed)
    model = build()
    features, targets = examples(seed)
    history = model.fit(features, targets, epochs=epochs, verbose=0)
    if weights_only:
        # A weights file holds the optimizer's state too; loading that into a model never fitted warns.
        bare = build()
        bare(features[:1])
        bare.set_weights(model.get_weights())
        bare.save_weights(path)
    else:
        model.save(path)
    return tuple(history.history["loss"])
