"""Models that are refused, each in one line that says why."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from job.errors import ModelError
from tests.support.archives import CONFIG, METADATA, members, written
from tests.support.nights import dense, module, saved
from tests.unit.model.test_keras_step import X, built, load


@pytest.mark.parametrize("content", ["other", "garbage"])
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.weights.h5"
    if content == "garbage":
        path.write_bytes(b"garbage")
    else:
        dense(4).save_weights(path)
    with pytest.raises(ModelError, match=r"cannot be built for x float32\[4\]") as error:
        built("models.custom_layer:build", X, weights=str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def build():\n    raise RuntimeError('no\\n licence')\n", "RuntimeError: no licence"),
        ("def build():\n    return 3\n", "it returned int, not a keras.Model"),
        ("def make():\n    return 3\n", "the builder failed: AttributeError: .*'build'"),
        ("build = 3\n", "the builder failed: TypeError"),
        ("def build(width):\n    return width\n", "the builder failed: TypeError: .*'width'"),
        ("import no_such_package\n", "the builder failed: ModuleNotFoundError: .*no_such_package"),
    ],
)
def test_a_builder_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    name = module(tmp_path, "backend_builder", source, monkeypatch)
    with pytest.raises(ModelError, match=message) as error:
        load(f"{name}:build")
    assert "\n" not in str(error.value)


def test_a_class_that_is_not_installed_points_to_the_builder(tmp_path: Path) -> None:
    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    path = saved(keras.Sequential([keras.layers.Input((4,)), Own()]), tmp_path / "m.keras")
    with pytest.raises(
        ModelError, match=r"cannot load it: .*--model=package\.module:function --weights=…"
    ) as e:
        load(path)
    # It is in the middle of what Keras says, which is mostly about other things.
    assert "Could not locate class 'Own'" in str(e.value)


def test_an_archive_of_keras_2_says_which_version_saved_it(tmp_path: Path) -> None:
    """What Keras 2.15 and tf_keras write: classes at places where Keras 3 has none."""
    x = keras.Input((4,))
    content = members(saved(keras.Model(x, keras.layers.Dense(1)(x)), tmp_path / "three.keras"))
    config = json.loads(content[CONFIG])
    config["module"] = "keras.src.engine.functional"
    content[CONFIG] = json.dumps(config).encode()
    content[METADATA] = b'{"keras_version": "2.15.0", "date_saved": "2024-01-02@03:04:05"}'
    path = written(tmp_path / "two.keras", content)
    with pytest.raises(
        ModelError, match=r"Keras 2\.15\.0 saved it: load it with that version, write a Sa"
    ) as e:
        load(path)
    assert "classes of its own" not in str(e.value)
    content[METADATA] = b'{"keras_version": 7}'
    with pytest.raises(ModelError, match=r"Could not deserialize class 'Functional' .*--weights"):
        load(written(tmp_path / "odd.keras", content))


def test_an_h5_file_of_keras_2_says_which_version_saved_it(tmp_path: Path) -> None:
    """``TFOpLambda`` is what Keras 2 makes of an operator between tensors; Keras 3 has no such class."""
    path = tmp_path / "two.h5"
    x = keras.Input((4,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.Model(x, keras.layers.Dense(1)(x)).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1] |= {"class_name": "TFOpLambda", "module": "keras.layers"}
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = b"2.15.0"
    with pytest.raises(ModelError, match=r"TFOpLambda.*Keras 2\.15\.0 saved it: load it with that version"):
        load(path, trusted=True)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = 7
    with pytest.raises(ModelError, match=r"TFOpLambda.*--weights"):
        load(path, trusted=True)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ModelError, match="cannot load it"):
        load(path, trusted=True)


def test_safe_mode_is_on_unless_trusted(tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    path = saved(keras.Model(x, keras.layers.Lambda(lambda x: x * 2)(x)), tmp_path / "m.keras")
    with pytest.raises(ModelError, match="cannot load it"):
        load(path)
    step = built(path, trusted=True)
    np.testing.assert_array_equal(step.predict([np.ones((1, 4), np.float32)])[0], [[2] * 4])


@pytest.mark.parametrize("kind", ["lists in a dict", "a dict in a list"])
def test_inputs_within_inputs_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    a, b, c = (keras.Input((1,), name=name) for name in "abc")
    nested = {"a": a, "b": [b, c]} if kind == "lists in a dict" else [a, {"b": b, "c": c}]
    path = saved(keras.Model(nested, a + b + c), tmp_path / "m.keras")
    with pytest.raises(ModelError, match="inputs within inputs"):
        load(path).signature()


def test_outputs_within_outputs_are_refused_in_one_line(tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    path = saved(keras.Model(x, {"a": x, "b": [x, x]}), tmp_path / "m.keras")
    with pytest.raises(ModelError, match="outputs within outputs"):
        built(path)
