"""Keras on JAX: nights of the zoo, all in one process of their own, beside the same ones on TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models import classifier, custom_layer, custom_loss, flights, flights_data, functional, sequential
from tests.support.nights import Night, features, saved, visible

ROOT = Path(__file__).parents[2]
# CI must have it; who installs without the lock file may do without.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None and not os.environ.get("CI"), reason="jax is not installed"
)

# One process for all nights: most of a run's time would be imports.
PROGRAM = """
import json, sys
from job.cli import main as cli
print([cli.main(argv) for argv in json.load(sys.stdin)])
"""


def zoo(folder: Path) -> dict[str, tuple[Night, list[str]]]:
    """A night for each model that takes numbers, and what names the model."""
    import keras

    scalars = features(1000, 10).rename_columns(["id", *(f"f{i}" for i in range(10))])
    pixels = pa.array(np.random.default_rng(1).random(300 * 784, dtype=np.float32))
    images = pa.table({"id": np.arange(300), "image": pa.FixedSizeListArray.from_arrays(pixels, 784)})
    nights = {}
    for module in (sequential, functional, custom_loss, custom_layer, classifier):
        name = module.__name__.rpartition(".")[2]
        night = Night(folder / name)
        night.shard("a", images if module is classifier else scalars)
        keras.utils.set_random_seed(7)
        model = module.build()
        if module is custom_layer:
            model(np.zeros((2, 10), np.float32))
            model.save_weights(night.folder / "m.weights.h5")
            named = ["--model=models.custom_layer:build", f"--weights={night.folder / 'm.weights.h5'}"]
        else:
            named = [f"--model={saved(model, night.folder / 'm.keras')}"]
        nights[name] = night, [*named, f"--input={night.input}", "--keys=id", "--batch_size=300"]
    return nights


@pytest.mark.slow
def test_jax_gives_the_rows_that_tensorflow_gives(tmp_path: Path) -> None:
    from job.cli import main

    nights = zoo(tmp_path)
    # A batch of 300, three times, and a ragged one that is filled up: JAX compiles for one shape.
    commands = [["score", *flags, f"--output={night.folder / 'jax'}"] for night, flags in nights.values()]
    texts = Night(tmp_path / "texts")
    texts.shard(
        "a",
        pa.table({name: ["x"] for name in flights_data.TEXTS + flights_data.INTEGERS + flights_data.NUMBERS}),
    )
    model = saved(flights.build(), texts.folder / "m.keras")
    commands.append(["score", *texts.args(model), "--cast=hour=int64"])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str([0] * len(nights) + [4]), done.stderr
    for night, flags in nights.values():
        assert main.main(["score", *flags, f"--output={night.output}"]) == 0
        ours = night.scored()
        other = pa.concat_tables([pq.read_table(path) for path in visible(night.folder / "jax")])
        assert other.column("id").equals(ours.column("id"))
        for name in ours.column_names[1:]:
            left, right = (np.array(table.column(name).to_pylist()) for table in (ours, other))
            scale = np.abs(left).max()
            assert scale > 1e-3
            np.testing.assert_allclose(right, left, rtol=1e-6, atol=1e-6 * scale)
        reports = [json.loads((night.folder / out / "_report.json").read_text()) for out in ("out", "jax")]
        assert reports[0]["run_id"] != reports[1]["run_id"]
    # Nothing that JAX, Keras or TensorFlow say while they start.
    ours = (" rows (", "error: ", "model inputs: ")
    assert [line for line in done.stderr.splitlines() if not any(text in line for text in ours)] == []
    assert "JAX knows no strings" in done.stderr
