"""Keras models behind their small face: signatures, feeding, outputs, trust."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from job.errors import ModelError
from job.model import artifact
from job.model.kind import Step
from job.model.signature import CodedStrings, InputSpec, OutputSpec, Signature
from job.spec import ModelReference
from tests.support.nights import dense, module, saved

X = InputSpec("x", (4,), "float32")


def load(path: Path | str, weights: str | None = None, *, trusted: bool = False) -> Step:
    reference = ModelReference(str(path), weights, trusted, "0" * 64)
    return artifact.held(str(path), weights).load(reference)


def built(path: Path | str, *inputs: InputSpec, weights: str | None = None, trusted: bool = False) -> Step:
    step = load(path, weights, trusted=trusted)
    step.build(inputs or step.signature().inputs)
    return step


def two_inputs() -> Any:
    keras.utils.set_random_seed(0)
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right", dtype="int32")
    joined = keras.layers.Concatenate()([left, keras.ops.cast(right, "float32")])
    return keras.Model([left, right], keras.layers.Dense(1, name="sum")(joined))


def dict_inputs() -> Any:
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((1,), name=name) for name in ("zeta", "alpha")}
    weighted = inputs["zeta"] * 10.0 + inputs["alpha"]
    return keras.Model(inputs, keras.layers.Identity(name="value")(weighted))


def dict_outputs() -> Any:
    x = keras.Input((2,), name="x")
    return keras.Model(x, {"wide": keras.layers.Dense(3)(x), "narrow": keras.layers.Dense(1)(x)})


def list_outputs() -> Any:
    x = keras.Input((2,), name="x")
    return keras.Model(x, [keras.layers.Dense(3, name="b")(x), keras.layers.Dense(1, name="a")(x)])


def one_in_a_list() -> Any:
    x = keras.Input((2,), name="x")
    return keras.Model([x], [keras.layers.Dense(1, name="y")(x)])


@pytest.mark.parametrize(
    ("make", "inputs", "outputs", "named"),
    [
        (lambda: dense(4, 3), [("(4,)", "float32")], [OutputSpec("prediction", (3,), "float32")], False),
        (
            two_inputs,
            [("left", (2,), "float32"), ("right", (3,), "int32")],
            [OutputSpec("sum", (1,), "float32")],
            True,
        ),
        # In the order of their names, which is the order in which Keras flattens a dict.
        (
            dict_inputs,
            [("alpha", (1,), "float32"), ("zeta", (1,), "float32")],
            [OutputSpec("value", (1,), "float32")],
            True,
        ),
        (
            dict_outputs,
            [("x", (2,), "float32")],
            [OutputSpec("narrow", (1,), "float32"), OutputSpec("wide", (3,), "float32")],
            False,
        ),
        (
            list_outputs,
            [("x", (2,), "float32")],
            [OutputSpec("b", (3,), "float32"), OutputSpec("a", (1,), "float32")],
            False,
        ),
        (one_in_a_list, [("x", (2,), "float32")], [OutputSpec("y", (1,), "float32")], False),
    ],
)
def test_signature_and_outputs(
    tmp_path: Path, make: Callable[[], Any], inputs: list[Any], outputs: list[OutputSpec], named: bool
) -> None:
    step = built(saved(make(), tmp_path / "m.keras"))
    signature = step.signature()
    if len(inputs[0]) == 3:
        assert signature.inputs == tuple(InputSpec(*spec) for spec in inputs)
    assert (signature.named, step.outputs()) == (named, tuple(outputs))
    rows = [np.ones((5, *[e or 1 for e in spec.shape]), spec.dtype) for spec in signature.inputs]
    predicted = step.predict(rows)
    assert [p.shape for p in predicted] == [(5, *output.shape) for output in outputs]
    assert [str(p.dtype) for p in predicted] == [output.dtype for output in outputs]
    assert step.traces() == 1


def test_dict_inputs_are_fed_by_name_and_not_by_place(tmp_path: Path) -> None:
    step = built(saved(dict_inputs(), tmp_path / "m.keras"))
    alpha, zeta = np.full((2, 1), 7, np.float32), np.full((2, 1), 1, np.float32)
    np.testing.assert_array_equal(step.predict([alpha, zeta])[0], [[17], [17]])


def test_keras_still_has_the_trap_that_extra_columns_fall_into() -> None:
    """The reason why nothing but the declared inputs is passed; when this fails the reason is gone."""
    model = dict_inputs()
    fed = {"alpha": np.full((2, 1), 7, np.float32), "zeta": np.full((2, 1), 1, np.float32)}
    assert model.predict_on_batch(fed)[0, 0] == 17
    with pytest.warns(UserWarning, match="structure"):
        wrong = model.predict_on_batch({"ID": np.full((2, 1), 5, np.float32), **fed})
    assert wrong[0, 0] != 17


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_number_of_tensors_must_be_that_of_the_inputs(tmp_path: Path, rows: int) -> None:
    step = built(saved(dict_inputs(), tmp_path / "m.keras"))
    cells = np.ones((rows, 1), np.float32)
    for wrong in ([cells], [cells] * 3):
        with pytest.raises(ValueError, match="argument"):
            step.predict(wrong)


def test_ragged_batches_are_traced_once_and_equal_plain_predict(tmp_path: Path) -> None:
    model = dense(4)
    step = built(saved(model, tmp_path / "m.keras"))
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    for rows in (1, 2, 7, 64, 99, 100):
        np.testing.assert_array_equal(
            step.predict([x[:rows]])[0], model.predict(x[:rows], batch_size=rows, verbose=0)
        )
    assert step.traces() == 1


def test_strings_are_gathered_by_code(tmp_path: Path) -> None:
    x = keras.Input((), dtype="string", name="city")
    lookup = keras.layers.StringLookup(vocabulary=["Rome", "Oslo"])
    step = built(saved(keras.Model(x, lookup(x)), tmp_path / "m.keras"))
    assert step.signature().inputs == (InputSpec("city", (), "string"),)
    values = np.array([b"Oslo", b"Lima", b"Rome"], dtype=object)
    cities = CodedStrings(values, np.array([0, 0, 2, 1, 2], np.int32))
    np.testing.assert_array_equal(step.predict([cities])[0], [2, 2, 1, 0, 1])
    none = CodedStrings(np.array([], dtype=object), np.array([], np.int32))
    assert step.predict([none])[0].shape == (0,)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint8", "int64", "bool"])
def test_inputs_of_every_type(tmp_path: Path, dtype: str) -> None:
    x = keras.Input((2,), name="x", dtype=dtype)
    model = keras.Model(x, keras.ops.cast(x, "float32") * 2.0)
    step = built(saved(model, tmp_path / "m.keras"))
    assert step.signature().inputs == (InputSpec("x", (2,), dtype),)
    fed = keras.ops.convert_to_numpy(keras.ops.cast([[0, 1]], dtype))
    np.testing.assert_array_equal(step.predict([fed])[0], [[0, 2]])


@pytest.mark.parametrize(
    ("policy", "output"),
    [
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("mixed_float16", "float16"),
        ("mixed_bfloat16", "bfloat16"),
        ("float64", "float64"),
    ],
)
def test_precision_policies(tmp_path: Path, policy: str, output: str) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y", dtype=policy)(x))
    step = built(saved(model, tmp_path / "m.keras"))
    assert step.outputs() == (OutputSpec("y", (1,), output),)
    fed = np.ones((3, 2), np.float32)
    predicted = step.predict([fed])[0]
    assert str(predicted.dtype) == output
    np.testing.assert_array_equal(predicted, model.predict(fed, verbose=0))


def test_a_model_without_an_input_shape_learns_it_from_the_columns() -> None:
    step = load("models.custom_layer:build")
    assert step.signature() == Signature((), (), named=False)
    step.build([X])
    assert step.outputs() == (OutputSpec("prediction", (1,), "float32"),)
    assert step.predict([np.ones((3, 4), np.float32)])[0].shape == (3, 1)
    assert step.traces() == 1


@pytest.mark.parametrize(
    ("policy", "fed"),
    [("float64", "float64"), ("mixed_float16", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_a_model_without_an_input_shape_tells_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, fed: str
) -> None:
    source = """import keras
class Own(keras.Model):
    def call(self, x):
        return x
def build():
    return Own(dtype="POLICY")
"""
    name = module(tmp_path, f"backend_policy_{policy}", source.replace("POLICY", policy), monkeypatch)
    assert load(f"{name}:build").signature() == Signature((), (), named=False, default_dtype=fed)


def test_only_inputs_in_a_list_or_alone_have_an_order(tmp_path: Path) -> None:
    ab = {name: keras.Input((1,), name=name) for name in ("b", "a")}
    joined = keras.layers.Concatenate()(list(ab.values()))
    one = keras.Input((1,), name="a")
    orders = [
        load(str(saved(keras.Model(inputs, output), tmp_path / f"{i}.keras"))).signature().ordered
        for i, (inputs, output) in enumerate(
            [(ab, joined), (list(ab.values()), joined), ({"a": one}, one * 2.0), (one, one * 2.0)]
        )
    ]
    assert orders == [False, True, True, True]


def test_a_subclassed_model_is_scored_whether_it_has_been_called_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """import keras
class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
    def call(self, x):
        return self.dense(x)
def fresh():
    return Own()
def called():
    model = Own()
    model(keras.ops.zeros((1, 4)))
    return model
"""
    name = module(tmp_path, "backend_subclass", source, monkeypatch)
    for function in ("fresh", "called"):
        step = built(f"{name}:{function}", X)
        assert step.outputs() == (OutputSpec("prediction", (2,), "float32"),)
        assert step.predict([np.ones((3, 4), np.float32)])[0].shape == (3, 2)


def test_weights_reach_the_built_model_and_need_no_digest_of_their_own(tmp_path: Path) -> None:
    from models import custom_layer

    keras.utils.set_random_seed(5)
    model = custom_layer.build()
    x = np.ones((3, 4), np.float32)
    expected = model.predict(x, batch_size=3, verbose=0)
    model.save_weights(tmp_path / "a.weights.h5")
    keras.utils.set_random_seed(6)
    step = built("models.custom_layer:build", X, weights=str(tmp_path / "a.weights.h5"))
    np.testing.assert_array_equal(step.predict([x])[0], expected)
    assert step.weights_digest() == ""


def test_only_a_builder_without_weights_has_a_weights_digest(tmp_path: Path) -> None:
    assert built(saved(dense(4), tmp_path / "m.keras")).weights_digest() == ""
    keras.utils.set_random_seed(1)
    one = built("models.custom_layer:build", X).weights_digest()
    keras.utils.set_random_seed(1)
    same = built("models.custom_layer:build", X).weights_digest()
    other = built("models.custom_layer:build", X).weights_digest()
    assert one == same != other
    assert len(one) == 64


def words(mode: str, shape: tuple[int, ...], **more: Any) -> Any:
    x = keras.Input(shape, name="x", dtype="string")
    weights = {"idf_weights": [1.0, 2.0, 3.0]} if mode == "tf_idf" else {}
    layer = keras.layers.TextVectorization(
        output_mode=mode, vocabulary=["a", "b", "c"], **weights, **more, name="y"
    )
    return keras.Model(x, layer(x))


def buckets(mode: str, shape: tuple[int, ...]) -> Any:
    x = keras.Input(shape, name="x", dtype="string")
    return keras.Model(x, keras.layers.Hashing(8, output_mode=mode, name="y")(x))


@pytest.mark.parametrize(
    "model",
    [
        *(lambda mode=mode: words(mode, (1,)) for mode in ("multi_hot", "count", "tf_idf")),
        *(lambda mode=mode: words(mode, ()) for mode in ("multi_hot", "count", "tf_idf")),
        lambda: words("multi_hot", (1,), max_tokens=9, pad_to_max_tokens=True),
        lambda: words("int", (1,), output_sequence_length=7),
        lambda: buckets("one_hot", ()),
        lambda: buckets("one_hot", (1,)),
        lambda: buckets("multi_hot", (1,)),
    ],
)
def test_the_shape_of_an_output_is_what_the_model_gives(tmp_path: Path, model: Callable[[], Any]) -> None:
    step = built(saved(model(), tmp_path / "m.keras"))
    (spec,) = step.signature().inputs
    texts = np.array([b"a c", b"b", b"a a"], object)
    rows = CodedStrings(texts, np.arange(3, dtype=np.int32).reshape(3, *spec.shape))
    (real,) = step.predict([rows])
    assert step.outputs() == (OutputSpec("y", real.shape[1:], str(real.dtype)),)
    np.testing.assert_array_equal(real, step.predict_plain([rows])[0])


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (keras.ops.sum, r"\(\)"),
        (lambda x: keras.ops.sum(x, axis=0), r"\(4\)"),
        (lambda x: keras.ops.reshape(x, (4, -1)), r"\(4, \?\)"),
    ],
)
def test_an_output_without_a_batch_axis_is_refused(
    tmp_path: Path, function: Callable[[Any], Any], shape: str
) -> None:
    x = keras.Input((4,), name="x")
    with pytest.raises(ModelError, match=f"m.keras: its output .* has no batch axis: its shape is {shape};"):
        built(saved(keras.Model(x, function(x)), tmp_path / "m.keras"))


def test_layers_that_keep_state_for_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    x = keras.Input((4, 2), batch_size=32, name="x")
    model = keras.Model(x, keras.layers.LSTM(3, stateful=True, name="y")(x))
    with pytest.raises(ModelError, match=r"has no batch axis: its shape is \(32, 3\); save a model whose"):
        built(saved(model, tmp_path / "m.keras"))


TWO_LAYERS = """import keras
def build():
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(50)(x)))
"""
# Of 900 bytes each, so that the two layers are in two of them.
SHARD_GB = 900 / 1024**3


def write_weights(model: Any, path: Path) -> None:
    """Save weights in the form that the file's name tells."""
    if path.name.endswith(".weights.json"):
        model.save_weights(path, max_shard_size=SHARD_GB)
        assert len(list(path.parent.glob("*_0000[01].weights.h5"))) == 2
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)


@pytest.mark.filterwarnings("ignore:.*HDF5:UserWarning")
@pytest.mark.parametrize("name", ["m.weights.h5", "m.weights.json", "m.keras", "m.h5", "m.hdf5"])
def test_weights_in_every_form_that_keras_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    builder = module(tmp_path, "backend_weights", TWO_LAYERS, monkeypatch)
    keras.utils.set_random_seed(3)
    trained = importlib.import_module(builder).build()
    write_weights(trained, tmp_path / name)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    reference = artifact.resolve(f"{builder}:build", str(tmp_path / name), trusted=False, sha256=None)
    step = artifact.opened(reference).load(reference)
    step.build([X])
    np.testing.assert_array_equal(step.predict([x])[0], trained.predict(x, batch_size=5, verbose=0))


def test_a_folder_of_keras_is_a_model_like_the_archive(tmp_path: Path) -> None:
    model = dense(4, 2)
    model.save(tmp_path / "m", zipped=False)
    reference = artifact.resolve(str(tmp_path / "m"), None, trusted=False, sha256=None)
    step = artifact.opened(reference).load(reference)
    step.build(step.signature().inputs)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(step.predict([x])[0], model.predict(x, batch_size=5, verbose=0))
