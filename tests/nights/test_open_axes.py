"""Models that leave axes open: every row gets what ``Model.predict`` gives for it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.binding.binding import Binding, by_shape, pieces, to_tensors
from job.handler import KerasModelHandler
from job.model.signature import Feed, InputSpec
from tests.support.nights import Night, run_cli, saved

ROWS = 40
RNG = np.random.default_rng(3)
LENGTHS = RNG.integers(0, 9, ROWS)
SERIES = [RNG.normal(size=n).astype(np.float32).tolist() for n in LENGTHS]
GRIDS = [RNG.normal(size=(n % 3 + 1, n % 2 + 2)).astype(np.float32).tolist() for n in LENGTHS]
WORDS = [[["red", "green", "blue"][i % 3] for i in range(n // 2 + 1)] for n in LENGTHS]
BASE = RNG.normal(size=ROWS).astype(np.float32)


def of_series() -> Any:
    x = keras.Input((None,), name="series")
    sums = keras.ops.stack([keras.ops.sum(x, axis=1), keras.ops.sum(x * x, axis=1)], axis=1)
    keras.utils.set_random_seed(1)
    return keras.Model(x, keras.layers.Dense(1, name="y")(sums))


def of_sequences() -> Any:
    x = keras.Input((None,), name="series")
    keras.utils.set_random_seed(2)
    hidden = keras.layers.Reshape((-1, 1))(x)
    return keras.Model(x, keras.layers.GRU(2, return_sequences=True, name="y")(hidden))


def of_several() -> Any:
    grid = keras.Input((None, None), name="grid")
    words = keras.Input((None,), name="words", dtype="string")
    base = keras.Input((), name="base")
    keras.utils.set_random_seed(3)
    codes = keras.layers.StringLookup(vocabulary=["red", "green"])(words)
    embedded = keras.layers.Embedding(3, 2)(codes)
    pooled = keras.layers.GlobalAveragePooling1D()(embedded)
    side = keras.ops.stack([keras.ops.max(keras.ops.sum(grid, axis=2), axis=1), base], axis=1)
    joined = keras.layers.Concatenate()([pooled, side])
    return keras.Model({"grid": grid, "words": words, "base": base}, keras.layers.Dense(1, name="y")(joined))


def alone(model: Any, *rows: Any) -> list[Any]:
    """What ``Model.predict`` gives for each row by itself."""
    found = []
    for row in zip(*rows, strict=True):
        fed = [keras.ops.convert_to_tensor([cell]) for cell in row]
        named = dict(zip(("grid", "words", "base"), fed, strict=True)) if len(fed) > 1 else fed[0]
        found.append(model.predict(named, verbose=0)[0])
    return found


def check(found: pa.Table, expected: list[Any]) -> None:
    ids = found.column("id").to_pylist()
    assert ids == list(range(ROWS))
    for value, wanted in zip(found.column("y").to_pylist(), expected, strict=True):
        got = np.array(value, np.float64).reshape(
            np.shape(wanted) if np.size(wanted) else (0, *wanted.shape[1:])
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], pa.DataType]] = {
    "a series": (of_series, {"series": pa.array(SERIES, pa.list_(pa.float32()))}, pa.float32()),
    "sequences out": (
        of_sequences,
        {"series": pa.array([s or [0.5] for s in SERIES], pa.large_list(pa.float32()))},
        pa.list_(pa.list_(pa.float32(), 2)),
    ),
    "several axes of several inputs": (
        of_several,
        {
            "grid": pa.array(GRIDS, pa.list_(pa.list_(pa.float32()))),
            "words": pa.array(WORDS, pa.list_(pa.string())),
            "base": BASE,
        },
        pa.float32(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_gets_what_it_would_get_alone(
    night: Night, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, columns, kind = CASES[case]
    model = make()
    table = pa.table({"id": np.arange(ROWS), **columns})
    expected = alone(model, *(table.column(name).to_pylist() for name in columns))
    night.shard("a", table.slice(0, 25), group_rows=7)
    night.shard("b", table.slice(25))
    path = saved(model, night.folder / "m.keras")
    report = night.score(path, "--keys=id", f"--challenger={path}", "--split_rows=12", "--max_rejected=0")
    assert report.rows_scored == ROWS
    scored = night.scored()
    assert scored.schema.field("y").type == kind
    check(scored, expected)
    check(scored.drop_columns(["y"]).rename_columns(["id", "y"]), expected)
    code, out, err = run_cli(capfd, "verify", str(night.output), "--sample_rows=all")
    assert (code, err) == (0, ""), out
    golden = night.folder / "golden.parquet"
    assert run_cli(capfd, "golden", str(night.output), f"--to={golden}", "--rows=20")[0] == 0
    for batch_size in (3,):
        again = night.beside(f"of-{batch_size}")
        again.score(path, "--keys=id", f"--batch_size={batch_size}", f"--golden={golden}")
        check(again.scored(), expected)
    handler = KerasModelHandler(str(path), keys=["id"], batch_size=5)
    (result,) = handler.run_inference([table.combine_chunks().to_batches()[0]], handler.load_model())
    check(pa.table({"id": table.column("id"), "y": result.inference.column(0)}), expected)


def test_a_batch_size_is_chosen_among_rows_of_several_shapes(night: Night) -> None:
    x = keras.Input((None,), name="series")
    path = saved(keras.Model(x, keras.ops.sum(x, axis=1)), night.folder / "m.keras")
    lengths = np.random.default_rng(1).integers(0, 4, 20_000)
    values = np.arange(lengths.sum(), dtype=np.float32) % 1000
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    series = pa.ListArray.from_arrays(offsets, values)
    night.shard("a", pa.table({"id": np.arange(20_000), "series": series}))
    report = night.score(path, "--keys=id")
    wanted = np.add.reduceat(np.append(values, 0), offsets[:-1]) * (lengths > 0)
    np.testing.assert_array_equal(night.scored().column(1).to_numpy(), wanted)
    assert 4 <= report.batches < 200


def test_a_row_is_bad_by_itself_whatever_its_neighbours_are(night: Night) -> None:
    grid = keras.Input((None, None), name="grid")
    summed = keras.layers.Reshape((1,), name="y")(keras.ops.sum(grid, axis=(1, 2), keepdims=True))
    path = saved(keras.Model(grid, summed), night.folder / "m.keras")
    cells = [[[1.0, 2.0]], [[1.0], [2.0, 3.0]], None, [[1.0], None], [[4.0], [5.0]], [[6.0, 7.0]], []]
    column = pa.array(cells, pa.list_(pa.list_(pa.float64())))
    night.shard("a", pa.table({"id": np.arange(7), "grid": column}))
    told = {}
    for batch_size in (1, 2, 3, 100):
        other = night.beside(f"of-{batch_size}")
        other.score(path, "--keys=id", "--max_rejected=0.5", f"--batch_size={batch_size}")
        (rejected,) = (other.output / "_rejected").rglob("*.rejected")
        table = pq.ParquetFile(rejected).read()
        told[batch_size] = [
            *zip(*(table.column(name).to_pylist() for name in ("_row", "_reason", "_error")), strict=True),
            other.scored().to_pylist(),
        ]
    assert all(one == told[1] for one in told.values())
    several = "column grid: lists of several lengths in one cell, first value 2"
    null = "column grid: null in a model input, first value None"
    assert told[1] == [
        (1, "shape", several),
        (2, "null", null),
        (3, "null", null),
        [{"id": 0, "y": 3.0}, {"id": 4, "y": 9.0}, {"id": 5, "y": 13.0}, {"id": 6, "y": 0.0}],
    ]


BINDING = Binding(
    (
        Feed(InputSpec("a", (None,), "int64"), ("a",)),
        Feed(InputSpec("b", (None, None), "int64"), ("b",)),
    )
)
LISTS = st.lists(st.integers(0, 9), max_size=3)


@given(
    st.lists(st.tuples(LISTS, st.lists(LISTS, max_size=2)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_rows_of_one_shape_go_together_and_none_is_lost(rows: list[Any], batch_rows: int) -> None:
    a = pa.array([row[0] for row in rows], pa.list_(pa.int64()))
    b = pa.array([row[1] for row in rows], pa.list_(pa.list_(pa.int64())))
    batch = pa.record_batch({"a": a, "b": b})
    seen: dict[int, tuple[Any, Any]] = {}
    bad: set[int] = set()
    for places, piece in pieces(batch, BINDING, batch_rows):
        assert piece.num_rows <= batch_rows
        (left, right), faults = to_tensors(piece, BINDING)
        bad |= {int(places[int(row)]) for fault in faults for row in fault.rows}
        for i, place in enumerate(places):
            assert int(place) not in seen
            seen[int(place)] = (np.asarray(left)[i].tolist(), np.asarray(right)[i].tolist())
    assert sorted(seen) == list(range(len(rows)))
    assert bad == {i for i, row in enumerate(rows) if len({len(inner) for inner in row[1]}) > 1}
    for i in set(seen) - bad:
        assert seen[i] == tuple(rows[i])
    shapes = [
        {(len(rows[i][0]), *np.shape(rows[i][1])) for i in map(int, some) if i not in bad}
        for some, _ in by_shape(batch, BINDING)
    ]
    assert all(len(shape) <= 1 for shape in shapes)
    assert len(set().union(*shapes)) == sum(map(len, shapes))
