"""Load once, predict many times: one model per process, whatever asks for it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest

from job.errors import ModelError
from job.model import artifact, loading
from job.model.loading import LoadedModel
from job.model.signature import CodedStrings, InputSpec, OutputSpec, Signature, Tensor
from job.spec import ModelReference, Reads
from tests.support.nights import dense, module, saved

X = InputSpec("x", (4,), "float32")


class FakeStep:
    """Counts what it is asked; adds up each row."""

    def __init__(self, *, recompiles: bool = False, named: bool = False) -> None:
        self.recompiles = recompiles
        self.builds: list[tuple[InputSpec, ...]] = []
        self.seen: list[Sequence[Tensor]] = []
        self._named = named

    def signature(self) -> Signature:
        return Signature((), (), self._named)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        self.builds.append(tuple(inputs))

    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("y", (), "float32"),)

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        self.seen.append(tensors)
        first = tensors[0]
        return [first.codes if isinstance(first, CodedStrings) else first.sum(axis=1)]

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return self.predict(tensors)

    def traces(self) -> int:
        return 3

    def reads(self) -> Reads:
        return ()

    def weights_digest(self) -> str:
        return f"digest of {len(self.builds)} builds"


def loaded_with(step: FakeStep) -> LoadedModel:
    return LoadedModel(ModelReference("m", None, False, "0" * 64), lambda: step)


def test_a_model_is_built_once_however_often_it_is_asked() -> None:
    step = FakeStep()
    loaded = loaded_with(step)
    assert (step.builds, loaded.signature.inputs, loaded.weights_digest) == ([], (), "")
    threads = [threading.Thread(target=loaded.build, args=([X],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded.build([X])
    assert step.builds == [(X,)]
    assert loaded.signature == Signature((X,), (OutputSpec("y", (), "float32"),), named=False)
    assert (loaded.weights_digest, loaded.traces) == ("digest of 1 builds", 3)


@pytest.mark.parametrize(
    ("recompiles", "steady_rows", "fed_rows"), [(False, 8, 3), (True, 8, 8), (True, 0, 3), (True, 2, 3)]
)
def test_ragged_batches_are_filled_only_where_a_new_shape_is_compiled(
    recompiles: bool, steady_rows: int, fed_rows: int
) -> None:
    step = FakeStep(recompiles=recompiles)
    x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    (y,) = loaded_with(step).predict([x, x[:, :1]], steady_rows)
    np.testing.assert_array_equal(y, [3, 7, 11])
    for fed, given in zip(step.seen[0], (x, x[:, :1]), strict=True):
        assert isinstance(fed, np.ndarray)
        assert len(fed) == fed_rows
        np.testing.assert_array_equal(fed[:3], given)
        np.testing.assert_array_equal(fed[3:], np.repeat(given[-1:], fed_rows - 3, axis=0))


def test_filled_strings_keep_their_values() -> None:
    step = FakeStep(recompiles=True)
    cities = CodedStrings(np.array([b"a", b"b"], dtype=object), np.array([0, 1], np.int32))
    (codes,) = loaded_with(step).predict([cities], 4)
    np.testing.assert_array_equal(codes, [0, 1])
    fed = step.seen[0][0]
    assert isinstance(fed, CodedStrings)
    assert (fed.values.tolist(), fed.codes.tolist()) == ([b"a", b"b"], [0, 1, 1, 1])


def test_no_rows_are_not_filled() -> None:
    step = FakeStep(recompiles=True)
    (y,) = loaded_with(step).predict([np.zeros((0, 2), np.float32)], 8)
    assert len(y) == 0


@pytest.mark.slow
def test_an_xla_model_is_compiled_for_one_shape_and_predicts_the_same(tmp_path: Path) -> None:
    source = """import keras
def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    model.compile(jit_compile=True)
    return model
"""
    with pytest.MonkeyPatch.context() as patch:
        name = module(tmp_path, "model_xla", source, patch)
        loaded = LoadedModel(artifact.resolve(f"{name}:build", None, trusted=False, sha256=None))
        plain = __import__(name).build()
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    traces = []
    for rows in (16, 5, 16, 1):
        (y,) = loaded.predict([x[:rows]], 16)
        np.testing.assert_allclose(y, plain.predict(x[:rows], verbose=0), rtol=1e-5)
        traces.append(loaded.traces)
    # Once to build, on two rows, and once for the batch's shape.
    assert traces[0] == traces[-1] <= 2


def test_one_process_loads_once_for_all_its_threads(tmp_path: Path) -> None:
    path = str(saved(dense(4), tmp_path / "m.keras"))
    reference = artifact.resolve(path, None, trusted=False, sha256=None)
    found: list[LoadedModel] = []
    threads = [threading.Thread(target=lambda: found.append(loading.acquire(reference))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.append(loading.acquire(reference, threads=3))
    assert len({id(loaded) for loaded in found}) == 1
    assert found[0].load_s > 0
    # Another model is another load, with another name.
    path = str(saved(dense(4, seed=1), tmp_path / "n.keras"))
    other = artifact.resolve(path, None, trusted=False, sha256=None)
    assert loading.acquire(other).load != found[0].load


def test_an_unseeded_builder_gives_all_threads_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """import keras
def build():
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
"""
    name = module(tmp_path, "model_unseeded", source, monkeypatch)
    reference = artifact.resolve(f"{name}:build", None, trusted=False, sha256=None)
    loads = [loading.acquire(reference) for _ in range(3)]
    assert len({loaded.weights_digest for loaded in loads}) == 1
    # The builder itself makes other weights each time, which is why the digest is in the receipts.
    assert LoadedModel(reference).weights_digest != loads[0].weights_digest


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes this process forget the copies that it holds, and find no others."""

    def forget() -> None:
        (tmp_path / "another").mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "another"))
        monkeypatch.setattr(artifact, "_kept", {})

    return forget


def test_an_artifact_that_changed_since_it_was_planned_is_scored_as_planned_or_refused(
    tmp_path: Path, another_machine: Callable[[], None]
) -> None:
    path = tmp_path / "m.keras"
    planned = dense(4)
    reference = artifact.resolve(str(saved(planned, path)), None, trusted=False, sha256=None)
    saved(dense(4, seed=1), path)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    found = LoadedModel(reference).predict([x])[0]
    np.testing.assert_array_equal(found, planned.predict(x, batch_size=20, verbose=0))
    another_machine()
    with pytest.raises(ModelError, match=f"is .* here, the run was planned with {reference.digest}"):
        loading.acquire(reference)


def test_a_failed_load_is_tried_again(tmp_path: Path, another_machine: Callable[[], None]) -> None:
    path = tmp_path / "m.keras"
    reference = artifact.resolve(str(saved(dense(4), path)), None, trusted=False, sha256=None)
    another_machine()
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(ModelError, match="the run was planned with"):
        loading.acquire(reference)
    path.write_bytes(content)
    assert loading.acquire(reference).signature.inputs[0].shape == (4,)


def test_two_threads_predict_at_once_as_one_does(tmp_path: Path) -> None:
    plain = dense(4)
    path = str(saved(plain, tmp_path / "m.keras"))
    loaded = loading.acquire(artifact.resolve(path, None, trusted=False, sha256=None))
    x = np.random.default_rng(0).normal(size=(2, 40, 500, 4)).astype(np.float32)
    found: list[list[np.ndarray]] = [[], []]

    def work(i: int) -> None:
        found[i] = [loaded.predict([batch])[0] for batch in x[i]]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = keras.ops.convert_to_numpy(plain.predict(x.reshape(-1, 4), batch_size=500, verbose=0))
    np.testing.assert_array_equal(np.array(found).reshape(-1, 1), expected)
    assert loaded.traces == 1


def test_where_shapes_are_compiled_a_shape_has_few_sizes_of_batches() -> None:
    step = FakeStep(recompiles=True)
    loaded = loaded_with(step)
    loaded.build([InputSpec("x", (None,), "float32")])
    fed = {}
    for rows in (*range(1, 200), 5461, 8192, 65_536):
        (y,) = loaded.predict([np.ones((rows, 3), np.float32)], steady_rows=8192)
        assert y.tolist() == [3.0] * rows
        array = step.seen.pop()[0]
        assert isinstance(array, np.ndarray)
        fed[rows] = len(array)
    assert all(rows <= filled <= max(16, 2 * rows) for rows, filled in fed.items())
    assert {*fed.values()} <= {16 << i for i in range(13)}
