"""The facts that docs/eager.md claims about predicting with an eagerly built model. No timings here."""

import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from models import custom_layer, custom_training_loop, sequential

SIZES = (16, 32, 64, 128)
PAGE = Path(__file__).parents[3] / "docs" / "eager.md"


class Watched(keras.Model):
    """Two dense layers that count how often Python runs their ``call``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.out = keras.layers.Dense(1)
        self.calls = 0

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        self.calls += 1
        return self.out(self.hidden(inputs))


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((1000, 10), dtype=np.float32)


@pytest.fixture
def functions_run_eagerly() -> Iterator[None]:
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def seeded(**compiled: object) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = sequential.build()
    if compiled:
        model.compile(optimizer="adam", loss="mse", **compiled)
    return model


def traces(model: keras.Model) -> int:
    return int(model.predict_function.experimental_get_tracing_count())


@pytest.mark.parametrize("build", [Watched, custom_layer.build])
def test_predict_builds_a_model_that_has_no_weights_yet(
    build: type[Watched], rows: NDArray[np.float32]
) -> None:
    model = build()
    assert not model.built
    predicted = model.predict(rows, verbose=0)
    assert model.built
    assert predicted.shape == (1000, 1)
    np.testing.assert_allclose(predicted, np.asarray(model(rows)), rtol=1e-5, atol=1e-6)


def test_the_first_batch_fixes_the_width(rows: NDArray[np.float32]) -> None:
    model = custom_layer.build()
    model.predict_on_batch(rows)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Matrix size-incompatible"):
        model.predict_on_batch(rows[:, :9])


def test_four_sizes_trace_twice(rows: NDArray[np.float32]) -> None:
    model = seeded()
    counts = []
    for size in SIZES:
        model.predict_on_batch(rows[:size])
        counts.append(traces(model))
    assert counts == [1, 2, 2, 2]


def test_predict_traces_as_predict_on_batch_does(rows: NDArray[np.float32]) -> None:
    model = seeded()
    counts = []
    for size in SIZES:
        model.predict(rows[:size], batch_size=size, verbose=0)
        counts.append(traces(model))
    assert counts == [1, 2, 2, 2]


def test_a_short_last_batch_costs_the_second_trace(rows: NDArray[np.float32]) -> None:
    even, odd = seeded(), seeded()
    even.predict(rows[:96], batch_size=32, verbose=0)
    odd.predict(rows[:97], batch_size=32, verbose=0)
    assert (traces(even), traces(odd)) == (1, 2)


def test_an_open_batch_axis_up_front_traces_once(rows: NDArray[np.float32]) -> None:
    model = seeded()
    model.make_predict_function()
    model.predict_function.get_concrete_function([(tf.TensorSpec((None, 10), tf.float32),)])
    predicted = [model.predict_on_batch(rows[:size]) for size in SIZES]
    assert traces(model) == 1
    for size, of_size in zip(SIZES, predicted, strict=True):
        np.testing.assert_array_equal(of_size, seeded().predict_on_batch(rows[:size]))


def test_python_runs_while_tracing_and_not_again(rows: NDArray[np.float32]) -> None:
    model = Watched()
    model(rows[:1])
    model.calls = 0
    for _ in range(5):
        model.predict_on_batch(rows[:16])
    assert model.calls == traces(model) == 1
    for _ in range(5):
        model(rows[:16])
    assert model.calls == 6


def test_another_dtype_is_another_trace(rows: NDArray[np.float32]) -> None:
    model = seeded()
    model.predict_on_batch(rows)
    model.predict_on_batch(rows.astype(np.float64))
    assert traces(model) == 2


def test_a_graph_sees_new_weights_without_a_trace(rows: NDArray[np.float32]) -> None:
    model = seeded()
    before = model.predict_on_batch(rows)
    model.set_weights([2 * weight for weight in model.get_weights()])
    np.testing.assert_allclose(model.predict_on_batch(rows), 4 * before, rtol=1e-5)
    assert traces(model) == 1


def test_prediction_needs_no_compile(rows: NDArray[np.float32]) -> None:
    model = custom_training_loop.build()
    assert not model.compiled
    predicted = model.predict(rows, batch_size=1000, verbose=0)
    model.compile(optimizer="adam", loss="mse")
    np.testing.assert_array_equal(model.predict(rows, batch_size=1000, verbose=0), predicted)


def test_compile_throws_the_traced_function_away(rows: NDArray[np.float32]) -> None:
    model = seeded()
    model.predict_on_batch(rows)
    assert model.predict_function is not None
    model.compile(optimizer="adam", loss="mse")
    assert model.predict_function is None


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="says what holds without a GPU")
def test_auto_means_no_xla_without_an_accelerator() -> None:
    assert keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)]).jit_compile is False
    assert seeded(jit_compile="auto").jit_compile is False
    assert seeded(jit_compile=True).jit_compile is True


@pytest.mark.slow
def test_a_file_keeps_the_answer_of_the_machine_that_compiled(
    rows: NDArray[np.float32], tmp_path: Path
) -> None:
    model = seeded(jit_compile=True)
    model.fit(rows, rows[:, :1], verbose=0)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").jit_compile is True
    bare = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert bare.jit_compile is seeded(jit_compile="auto").jit_compile


def test_a_model_with_strings_never_gets_xla() -> None:
    texts = keras.Input((1,), dtype="string")
    coded = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(texts)
    model = keras.Model(texts, keras.layers.Dense(1)(coded))
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        model.compile(jit_compile=True)
    assert model.jit_compile is False


def test_xla_agrees_to_rounding(rows: NDArray[np.float32]) -> None:
    predicted = seeded(jit_compile=True).predict_on_batch(rows)
    plain = seeded().predict_on_batch(rows)
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(predicted, plain, rtol=1e-5, atol=1e-6)


def test_the_ways_to_predict_agree(rows: NDArray[np.float32]) -> None:
    model = seeded()
    predicted = model.predict(rows, batch_size=1000, verbose=0)
    np.testing.assert_array_equal(model.predict_on_batch(rows), predicted)
    np.testing.assert_allclose(np.asarray(model(rows, training=False)), predicted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(rows, verbose=0), predicted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("functions_run_eagerly")
def test_run_functions_eagerly_traces_nothing_and_agrees(rows: NDArray[np.float32]) -> None:
    model = Watched()
    keras.utils.set_random_seed(0)
    model(rows[:1])
    model.calls = 0
    predicted = [model.predict_on_batch(rows) for _ in range(5)]
    assert (model.calls, traces(model)) == (5, 0)
    tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(predicted[0], model.predict_on_batch(rows), rtol=1e-5, atol=1e-6)


def test_run_eagerly_of_one_model_makes_no_function(rows: NDArray[np.float32]) -> None:
    model = seeded(run_eagerly=True)
    predicted = model.predict_on_batch(rows)
    assert not hasattr(model.predict_function, "experimental_get_tracing_count")
    np.testing.assert_allclose(predicted, seeded().predict_on_batch(rows), rtol=1e-5, atol=1e-6)


def test_the_page_names_every_test_here_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    here = {name for name in globals() if name.startswith("test_")}
    assert named | {"test_the_page_names_every_test_here_and_no_other"} == here
