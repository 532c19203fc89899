"""Models that look at a row's neighbours are refused, and no others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from job.errors import ModelError
from job.handler import KerasModelHandler
from job.model.independence import Batch, Independence
from job.model.signature import CodedStrings, Tensor
from tests.support.nights import Array, Night, dense, features, matrix, module, run_cli, saved

Model = Callable[[Array], Array]
RNG = np.random.default_rng(5)
UNIFORM = RNG.random((3000, 4)).astype(np.float32)
CALLS = itertools.count(1)


def checked(function: Model, x: Array, rows: Sequence[int] | None = None) -> Independence:
    """Check a model of NumPy on one batch, of which it could predict some rows."""
    sizes: list[int] = []

    def predict(tensors: Sequence[Tensor], steady_rows: int) -> list[np.ndarray]:
        (fed,) = tensors
        assert isinstance(fed, np.ndarray)
        sizes.append(len(fed))
        return [function(fed)]

    places = np.arange(len(x)) if rows is None else np.array(rows)
    batch = Batch([x], places, [function(x[places])], len(x), range(len(x)), "it")
    independence = Independence()
    assert independence.is_due(len(places), "load 1")
    independence.check("m.keras", ["y"], batch, predict, "load 1")
    assert len(sizes) <= 8
    assert max(sizes, default=0) <= 16
    return independence


def first(x: Array) -> Array:
    return np.asarray(x[:, 0])


NEIGHBOURS: dict[str, Model] = {
    "less the mean": lambda x: first(x - x.mean(axis=0)),
    "less a thousandth of the mean": lambda x: first(x - 1e-3 * x.mean(axis=0)),
    "over the deviation": lambda x: first(x / (x.std(axis=0) + 1e-3)),
    "softmax over the batch": lambda x: np.exp(first(x)) / np.exp(first(x)).sum(),
    "added up": lambda x: first(x).cumsum(),
    "sorted": lambda x: np.sort(first(x)),
    "turned round": lambda x: first(x)[::-1],
    "rolled": lambda x: np.roll(first(x), 1),
    "less the first": lambda x: first(x) - x[0, 0],
    "less the last": lambda x: first(x) - x[-1, 0],
    "rank": lambda x: np.argsort(np.argsort(first(x))),
    "the ten best": lambda x: np.where(first(x) >= np.sort(first(x))[-10:].min(), first(x), 0),
    "the best so far": lambda x: np.maximum.accumulate(first(x)),
    "counted": lambda x: first(x) + np.arange(len(x)),
    "every other row": lambda x: first(x) * (np.arange(len(x)) % 2),
    "divided by the rows": lambda x: first(x) / len(x),
    "state": lambda x: first(x) + next(CALLS),
    "a little state": lambda x: first(x) + 1e-4 * next(CALLS),
    "noise": lambda x: first(x) + 1e-3 * RNG.normal(size=len(x)),
    "dropout": lambda x: first(x) * (RNG.random(len(x)) < 0.5),
    "nothing alone": lambda x: np.where(len(x) > 1, first(x), np.nan),
    "as wide as the batch": lambda x: np.repeat(x[:, :1], len(x), axis=1),
    "text": lambda x: np.where(first(x) > x[:, 0].mean(), b"high", b"low").astype(object),
    "int8": lambda x: np.argsort(first(x)).argsort().astype(np.int8),
    "float16": lambda x: first(x - x.mean(axis=0)).astype(np.float16),
}


UNSTEADY = {"state", "a little state", "noise", "dropout"}


# Of three rows, all are among the ten best, and each may be on one side of their mean.
FEW = [(name, 3) for name in NEIGHBOURS if name not in {"the ten best", "text"}]


@pytest.mark.parametrize(
    ("name", "rows"), [*((name, rows) for name in NEIGHBOURS for rows in (3000, 40)), *FEW]
)
def test_a_model_that_looks_at_neighbours_is_refused(name: str, rows: int) -> None:
    refused = pytest.raises(ModelError, match=r"^m\.keras: it (looks at|gives other predictions)")
    with np.errstate(all="ignore"), refused as error:
        checked(NEIGHBOURS[name], UNIFORM[:rows])
    assert "\n" not in str(error.value)
    is_unsteady = "gives other predictions each time" in str(error.value)
    # Of three rows, all may be kept twice.
    assert is_unsteady == (name in UNSTEADY) or (name == "dropout" and rows == 3)


@pytest.mark.parametrize("name", ["sorted", "the best so far", "rank", "added up", "rolled", "turned round"])
def test_rows_that_are_in_order_hide_nothing(name: str) -> None:
    ordered = np.sort(UNIFORM, axis=0)
    for x in (ordered, ordered[::-1].copy()):
        with pytest.raises(ModelError, match="looks at a row's neighbours"):
            checked(NEIGHBOURS[name], x)


def test_few_rows_that_differ_among_many_equal_ones_are_found() -> None:
    x = np.zeros((2000, 4), np.float32)
    x[::100] = UNIFORM[:20]
    with pytest.raises(ModelError, match="looks at a row's neighbours"):
        checked(NEIGHBOURS["rolled"], x)
    # Equal rows show a model that adds them up.
    with pytest.raises(ModelError, match=r"row \d+ of it is given y = \d+ in .* and \d+ "):
        checked(NEIGHBOURS["added up"], np.ones((2000, 4), np.float32))


def test_the_message_says_what_was_compared() -> None:
    with pytest.raises(ModelError) as error:
        checked(lambda x: first(x) * 0 + len(x), UNIFORM[:2], None)
    assert str(error.value) == (
        "m.keras: it looks at a row's neighbours: row 0 of it is given y = 2 in a batch of 2 rows and 1 "
        "alone; a prediction must depend on its own row alone: take out what works over the batch axis "
        "(axis=0), or give it fixed statistics"
    )


def rounded(x: Array, digits: type, share: float) -> Array:
    """A product whose last digits depend on how many rows there are, as a library's do."""
    terms = x.astype(np.float64) * np.array([3.0, -2.0, 1.0, -1.9])
    noise = np.random.default_rng(len(x)).normal(size=len(x)) * share * np.abs(terms).mean(axis=1)
    return np.asarray((terms.sum(axis=1) + noise).astype(digits))


INDEPENDENT: dict[str, Model] = {
    "one": first,
    "all zero": lambda x: first(x) * 0,
    "never finite": lambda x: first(x) * np.nan,
    "sometimes infinite": lambda x: np.where(first(x) > 0.5, np.inf, first(x)),
    "small": lambda x: first(x) * 1e-20,
    "text": lambda x: np.where(first(x) > 0.5, b"high", b"low").astype(object),
    "class": lambda x: x.argmax(axis=1),
    "yes or no": lambda x: first(x) > 0.5,
    "no values": lambda x: x[:, :0],
    "float32 of another order": lambda x: rounded(x, np.float32, 1e-6),
    "TF32": lambda x: rounded(x, np.float32, 1e-3),
    "float16, deep": lambda x: rounded(x, np.float16, 1e-2),
    "mostly zero": lambda x: np.maximum(0, first(x) - 0.9),
}


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("rows", [3000, 40, 3, 2])
def test_a_model_that_does_not_is_not(name: str, rows: int) -> None:
    function = INDEPENDENT[name]
    found = checked(function, UNIFORM[:rows])
    assert 2 <= found.rows <= min(16, rows)
    assert found.apart < (0.3 if "of another" in name or "TF32" in name or "deep" in name else 1e-6)
    heavy = UNIFORM[:rows] * np.float32(10) ** RNG.integers(-8, 8, (rows, 1)).astype(np.float32)
    if "float16" not in name:
        checked(function, heavy)


def test_rows_that_the_model_failed_on_are_left_out() -> None:
    def strict(x: Array) -> Array:
        if (x < 0).any():
            raise ValueError("no root")
        return np.sqrt(first(x))

    x = UNIFORM[:50].copy()
    x[::2] = -1
    checked(strict, x, range(1, 50, 2))


def test_a_model_that_fails_alone_is_refused() -> None:
    def pairs(x: Array) -> Array:
        return np.asarray(np.squeeze(x[:, :1]))

    with pytest.raises(ModelError, match=r"y of shape \(1,\) in a batch of 40 rows and \(\) alone"):
        checked(pairs, UNIFORM[:40])

    def fails(x: Array) -> Array:
        if len(x) == 1:
            raise ValueError("too few rows")
        return first(x)

    with pytest.raises(
        ModelError, match=r"it predicts row .* fails beside others or alone: ValueError: too few"
    ):
        checked(fails, UNIFORM[:40])


def test_strings_are_compared_by_their_codes() -> None:
    seen: list[Any] = []

    def predict(tensors: Sequence[Tensor], steady_rows: int) -> list[np.ndarray]:
        (fed,) = tensors
        assert isinstance(fed, CodedStrings)
        seen.append(fed.codes)
        return [fed.values[fed.codes]]

    codes = np.arange(300, dtype=np.int32) % 7
    cities = CodedStrings(np.array([b"%d" % i for i in range(7)], object), codes)
    batch = Batch([cities], np.arange(300), [cities.values[codes]], 300, range(300), "it")
    Independence().check("m", ["y"], batch, predict, "1")
    assert sorted(seen[0].tolist()) == list(range(7))


def test_it_is_done_once_a_loading_and_again_on_a_larger_batch() -> None:
    calls: list[int] = []

    def predict(tensors: Sequence[Tensor], steady_rows: int) -> list[np.ndarray]:
        calls.append(steady_rows)
        return [np.asarray(tensors[0])[:, 0]]

    found = Independence()
    due: list[tuple[str, int]] = []
    for load, rows in [("a", 1), ("a", 2), ("a", 7), ("a", 8), ("a", 8), ("a", 3000), ("a", 3000), ("b", 2)]:
        x = UNIFORM[:rows]
        if found.is_due(rows, load):
            due.append((load, rows))
            found.check(
                "m", ["y"], Batch([x], np.arange(rows), [x[:, 0]], 64, range(rows), "it"), predict, load
            )
    assert due == [("a", 2), ("a", 8), ("a", 3000), ("b", 2)]
    # Where each batch shape is compiled, these two have been.
    assert {*calls} == {64, 2}


def test_batches_of_equal_rows_are_not_taken_for_an_answer() -> None:
    calls: list[int] = []

    def predict(tensors: Sequence[Tensor], steady_rows: int) -> list[np.ndarray]:
        calls.append(len(calls))
        return [np.roll(np.asarray(tensors[0])[:, 0], 1)]

    found = Independence()
    same = np.ones((2000, 4), np.float32)
    equal = Batch([same], np.arange(2000), [same[:, 0]], 0, range(2000), "it")
    for _ in range(7):
        assert found.is_due(2000, "1")
        found.check("m", ["y"], equal, predict, "1")
    other = Batch([UNIFORM], np.arange(3000), [np.roll(UNIFORM[:, 0], 1)], 0, range(3000), "it")
    with pytest.raises(ModelError, match="neighbours"):
        found.check("m", ["y"], other, predict, "1")
    # A night of nothing but equal rows is not to pay for each batch.
    patient = Independence()
    for _ in range(8):
        patient.check("m", ["y"], equal, predict, "1")
    assert not patient.is_due(2000, "1")


def test_whoever_asks_after_a_refusal_is_refused() -> None:
    found = Independence()
    calls: list[int] = []

    def predict(tensors: Sequence[Tensor], steady_rows: int) -> list[np.ndarray]:
        calls.append(steady_rows)
        return [np.asarray(tensors[0])[:, 0].cumsum()]

    batch = Batch([UNIFORM], np.arange(3000), [UNIFORM[:, 0].cumsum()], 64, range(3000), "it")
    for _ in range(3):
        asked = len(calls)
        with pytest.raises(ModelError, match="neighbours"):
            found.check("m", ["y"], batch, predict, "1")
    assert len(calls) == asked


LAYERS: dict[str, Callable[[Any], Any]] = {
    "less the mean": lambda x: x - keras.ops.mean(x, axis=0, keepdims=True),
    "sorted": lambda x: keras.ops.sort(x, axis=0),
    "turned round": lambda x: keras.ops.flip(x, axis=0),
}


def of_layers(name: str, path: Path) -> Path:
    x = keras.Input((4,), name="x")
    return saved(keras.Model(x, keras.ops.sum(LAYERS[name](x), axis=1, keepdims=True)), path)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_published_of_a_model_that_looks_at_neighbours(
    night: Night, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", features(1))
    night.shard("b", features(3000, first_id=1))
    path = of_layers(name, night.folder / "m.keras")
    code, out, err = run_cli(capfd, "score", *night.args(path, "--keys=id"))
    assert (code, out) == (4, "")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "m.keras: it looks at a row's neighbours: row " in line
    assert "in/b.parquet is given " in line
    assert not night.files()
    assert run_cli(capfd, "plan", *night.args(path, "--keys=id"))[0] == 4


UNSTEADY_LAYERS = """
import keras

class Noisy(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.noise = keras.layers.GaussianNoise(0.01)
    def call(self, x):
        return keras.ops.sum(self.noise(x, training=True), axis=1, keepdims=True)

class Counting(keras.layers.Layer):
    def build(self, shape):
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)
    def call(self, x):
        self.seen.assign_add(0.01)
        return keras.ops.sum(x, axis=1, keepdims=True) + self.seen

def noisy(layer=Noisy):
    x = keras.Input((4,), name="x")
    return keras.Model(x, layer(name="y")(x))

def counting():
    return noisy(Counting)
"""


@pytest.mark.parametrize("builder", ["noisy", "counting"])
def test_a_model_that_draws_or_keeps_state_is_refused(
    night: Night, builder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.shard("a", features(3000))
    name = module(night.folder, "unsteady_layers", UNSTEADY_LAYERS, monkeypatch)
    with pytest.raises(
        ModelError, match=r"it gives other predictions each time: row \d+ of .* is given y = "
    ):
        night.score(f"{name}:{builder}", "--keys=id")
    assert not night.files()


@pytest.mark.slow
def test_a_challenger_that_looks_at_neighbours_has_no_predictions(night: Night) -> None:
    table = features(3000)
    night.shard("a", table)
    champion = dense()
    path = saved(champion, night.folder / "m.keras")
    rival = of_layers("less the mean", night.folder / "rival.keras")
    report = night.score(path, "--keys=id", f"--challenger={rival}")
    assert report.challenger is not None
    assert report.challenger.failed == report.rows_scored == 3000
    assert "rival.keras: it looks at a row's neighbours: row " in report.challenger.error
    scored = night.scored()
    assert scored.column("challenger_prediction").null_count == 3000
    expected = champion.predict(matrix(table), batch_size=3000, verbose=0)[:, 0]
    np.testing.assert_allclose(scored.column("prediction").to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert report.again_rows == 16
    assert report.again_apart < 1e-5


def test_run_inference_refuses_it_too(tmp_path: Path) -> None:
    handler = KerasModelHandler(str(of_layers("less the mean", tmp_path / "m.keras")), keys=["id"])
    batch = features(20).combine_chunks().to_batches()[0]
    with pytest.raises(ModelError, match=r"neighbours: row \d+ of a batch is given "):
        list(handler.run_inference([batch], handler.load_model()))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16", "float16", "bfloat16"])
def test_deep_models_of_few_digits_are_scored(night: Night, policy: str) -> None:
    keras.utils.set_random_seed(1)
    x = keras.Input((4,), name="x")
    y = x
    for _ in range(6):
        y = keras.layers.Dense(64, activation="relu", dtype=policy)(y)
        y = keras.layers.LayerNormalization(dtype=policy)(y)
    model = keras.Model(x, keras.layers.Dense(3, activation="softmax", dtype=policy, name="p")(y))
    night.shard("a", features(1500))
    report = night.score(saved(model, night.folder / "m.keras"), "--keys=id")
    assert (report.rows_scored, report.again_rows) == (1500, 16)
    assert pa.types.is_fixed_size_list(night.scored().schema.field("p").type)
