"""A batch that does not fit the memory: predicted in halves, and the size that fits is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.errors import ModelError
from job.model import artifact
from job.model.loading import LoadedModel
from tests.support.nights import Night, dense, features, matrix, saved


def loaded(path: Path) -> LoadedModel:
    return LoadedModel(artifact.resolve(str(path), None, trusted=False, sha256=None))


def full_above(rows: int, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let TensorFlow run out of memory for more than ``rows`` rows; return the sizes that were tried."""
    import tensorflow as tf

    keras_model: Any = model._step._model  # type: ignore[attr-defined]
    real = keras_model.predict_on_batch
    sizes: list[int] = []

    def predict_on_batch(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > rows:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return real(batch)

    monkeypatch.setattr(keras_model, "predict_on_batch", predict_on_batch)
    return sizes


def test_halves_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(saved(dense(), tmp_path / "m.keras"))
    batch = matrix(features(1000))
    (wanted,) = model.predict([batch])
    sizes = full_above(300, model, monkeypatch)
    (got,) = model.predict([batch])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert sizes == [1000, 500, 250, 250, 500, 250, 250]
    assert model.batch.within(1000) == 250
    assert model.batch.within(100) == 100


def test_filling_that_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(saved(dense(), tmp_path / "m.keras"))
    batch = matrix(features(10))
    (wanted,) = model.predict([batch])
    sizes = full_above(300, model, monkeypatch)
    monkeypatch.setattr(model._step, "recompiles", True)
    (got,) = model.predict([batch], 1000)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert sizes == [1000, 500, 250]
    assert model.batch.within(1000) == 250


def test_one_row_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(saved(dense(), tmp_path / "m.keras"))
    full_above(0, model, monkeypatch)
    with pytest.raises(ModelError, match="one row does not fit the memory: ResourceExhaustedError: OOM"):
        model.predict([matrix(features(4))])


@pytest.mark.parametrize("recompiles", [False, True])
def test_the_size_that_fits_is_used_from_then_on(
    night: Night, monkeypatch: pytest.MonkeyPatch, recompiles: bool
) -> None:
    """Where batches are filled up to a steady size, not to the one that did not fit."""
    night.shard("a", features(2000))
    planned = night.planned(saved(dense(), night.folder / "m.keras"), "--keys=id", "--batch_size=1000")
    sizes = full_above(300, planned.loaded, monkeypatch)
    monkeypatch.setattr(planned.loaded._step, "recompiles", recompiles)
    from job.scoring.split import score_split

    receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    assert (receipt.rows_scored, receipt.rows_rejected) == (2000, 0)
    assert sizes[:7] == [1000, 500, 250, 250, 500, 250, 250]
    # The first batch is followed by some of its rows once more, beside others and alone.
    again = [250] * 4 + [2] * 4 if recompiles else [16] * 4 + [1] * 4
    assert sizes[7:] == again + [250] * 4
