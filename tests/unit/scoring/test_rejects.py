"""Promise 7: a bad row is set aside with all its columns and the reason, and costs no neighbour."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.binding.binding import Binding
from job.errors import DataError, SchemaError
from job.model.signature import CodedStrings, Feed, InputSpec, Tensor
from job.scoring.rejects import Rejects, RowPolicy, predict_around, sift, with_extras
from job.spec import ScoringSpec, Shard, Split

SPLIT = Split("a", Shard("/in/a.parquet", 1, "1"), (0,), 100, 6)
BINDING = Binding((Feed(InputSpec("x", (2,), "float32"), ("a", "b")),), ())


def policy(**changes: object) -> RowPolicy:
    most_rows = int(str(changes.pop("most_rows", 10)))
    return RowPolicy.of_choices({name: str(value) for name, value in changes.items()}, most_rows)


def batch() -> pa.RecordBatch:
    a = pa.array([1.0, None, 3.0, 1e39, 5.0, None])
    b = pa.array([1.0, 2.0, 3.0, 4.0, None, 6.0])
    return pa.record_batch({"a": a, "b": b, "note": list("uvwxyz")})


def test_rows_that_cannot_be_fed_are_set_aside() -> None:
    rejects = Rejects(SPLIT, policy())
    good, (tensor,) = sift(batch(), range(100, 110), BINDING, rejects)
    assert good is not None
    assert good.tolist() == [0, 2]
    np.testing.assert_array_equal(np.asarray(tensor), np.array([[1, 1], [3, 3]], np.float32))
    assert rejects.row_numbers.tolist() == [101, 103, 104, 105]
    assert rejects.reasons == (("null", 3), ("overflow", 1))


def test_where_no_row_is_bad_nothing_is_copied_out() -> None:
    rejects = Rejects(SPLIT, policy())
    good, (tensor,) = sift(batch().slice(2, 1), range(102, 110), BINDING, rejects)
    assert good is None
    assert np.asarray(tensor).tolist() == [[3.0, 3.0]]
    assert rejects.rows == 0


@pytest.mark.parametrize(
    ("on_null", "rows", "values"),
    [("nan", [103], [1, math.nan, 3, 5, math.nan]), ("fill=7", [103], [1, 7, 3, 5, 7])],
)
def test_nulls_are_filled(on_null: str, rows: list[int], values: list[float]) -> None:
    rejects = Rejects(SPLIT, policy(on_null=on_null, on_nonfinite="keep"))
    good, (tensor,) = sift(batch(), range(100, 110), BINDING, rejects)
    assert good is not None
    assert rejects.row_numbers.tolist() == rows
    np.testing.assert_array_equal(np.asarray(tensor)[:, 0], np.array(values, np.float32))


def test_nulls_of_strings_and_dictionaries_are_filled() -> None:
    binding = Binding((Feed(InputSpec("s", (), "string"), ("s",)),), ())
    for column in (pa.array(["u", None]), pa.array(["u", None]).dictionary_encode()):
        rejects = Rejects(SPLIT, policy(on_null="fill=none"))
        good, (tensor,) = sift(pa.record_batch({"s": column}), range(100, 110), binding, rejects)
        assert good is None
        assert isinstance(tensor, CodedStrings)
        assert [tensor.values[code] for code in tensor.codes.ravel()] == [b"u", b"none"]


def test_a_filling_that_the_column_cannot_hold_is_named() -> None:
    with pytest.raises(DataError, match=r"--on_null=fill=x: column a is double, which cannot hold it"):
        sift(batch(), range(100, 110), BINDING, Rejects(SPLIT, policy(on_null="fill=x")))


def test_which_columns_cannot_hold_a_filling() -> None:
    schema = pa.schema(
        {
            "a": pa.int8(),
            "b": pa.dictionary(pa.int32(), pa.string()),
            "c": pa.list_(pa.float32(), 2),
            "d": pa.fixed_shape_tensor(pa.float32(), (2,)),
            "e": pa.float64(),
        }
    )
    binding = Binding(tuple(Feed(InputSpec(name, (), "float32"), (name,)) for name in "abcdef"))
    wrong = {
        text: [
            line.split(" column ")[1].split(" is ")[0]
            for line in policy(on_null=text).misfits(schema, binding)
        ]
        for text in ("fill=7", "fill=300", "fill=1.5", "fill=x", "nan", "reject")
    }
    assert wrong == {
        "fill=7": [],
        "fill=300": ["a"],
        "fill=1.5": ["a"],
        "fill=x": ["a", "e"],
        "nan": [],
        "reject": [],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_null": "fail"}, r"/in/a.parquet: row 101: column a: null.*2 such row.*--on_null=reject"),
        ({"on_bad_row": "fail"}, r"row 101: column a: null.*--on_bad_row=reject"),
        ({"on_bad_row": "fail", "on_null": "nan"}, r"row 103: column a: .*1e\+39 \(overflow\)"),
    ],
)
def test_a_bad_row_can_fail_the_run(changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sift(batch(), range(100, 110), BINDING, Rejects(SPLIT, policy(**changes)))


def test_on_null_fail_says_nothing_of_other_bad_rows() -> None:
    rejects = Rejects(SPLIT, policy(on_null="fail"))
    sift(batch().slice(2, 2), range(102, 110), BINDING, rejects)
    assert rejects.reasons == (("overflow", 1),)


def test_a_row_is_rejected_once_for_its_first_reason() -> None:
    rejects = Rejects(SPLIT, policy(most_rows=2))
    rejects.add([101, 102], "null", "one")
    rejects.add([102], "overflow", "two")
    assert (rejects.rows, rejects.too_many, rejects.reasons) == (2, False, (("null", 2),))
    rejects.add([103], "overflow", "three")
    assert rejects.too_many


def test_rejected_rows_keep_all_their_columns() -> None:
    rejects = Rejects(SPLIT, policy())
    sift(batch(), range(100, 110), BINDING, rejects)
    tables = list(rejects.tables(iter([batch().slice(0, 2), batch().slice(2, 1), batch().slice(3)])))
    found = pa.concat_tables(tables).to_pylist()
    assert [row["note"] for row in found] == ["v", "x", "y", "z"]
    assert [row["_row"] for row in found] == [101, 103, 104, 105]
    assert [row["_reason"] for row in found] == ["null", "overflow", "null", "null"]
    assert {row["_shard"] for row in found} == {"/in/a.parquet"}
    assert found[1]["_error"].startswith("column a: ")
    assert "1e+39" in found[1]["_error"]


def test_a_shards_own_columns_keep_their_names() -> None:
    table = with_extras(pa.table({"_row": ["mine"]}), [("/s", 7, "null", "why")])
    assert table.schema.names == ["_row", "_shard", "__row", "_reason", "_error"]
    assert table.to_pylist()[0] == {
        "_row": "mine",
        "_shard": "/s",
        "__row": 7,
        "_reason": "null",
        "_error": "why",
    }


def most_rows(share: float, rows: int) -> int:
    return RowPolicy.of(ScoringSpec((), "m", "o", max_rejected=share), rows).most_rows


@pytest.mark.parametrize(
    ("share", "rows", "most"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.01, 99, 0), (0.01, 100, 1), (0.0, 7, 0), (1.0, 7, 7), (0.5, 0, 0)],
)
def test_the_most_rows_are_those_that_a_person_counts(share: float, rows: int, most: int) -> None:
    assert most_rows(share, rows) == most


@given(st.floats(0, 1), st.integers(1, 10**12))
def test_the_most_rows_are_those_that_the_last_check_lets_pass(share: float, rows: int) -> None:
    most = most_rows(share, rows)
    assert most / rows <= share
    assert most == rows or (most + 1) / rows > share


@given(st.integers(1, 10**6), st.data())
def test_a_share_that_is_written_as_a_number_of_rows_lets_them_pass(rows: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, rows))
    assert most_rows(wanted / rows, rows) == wanted


class Fussy:
    """Doubles its input, and fails on whole batches that hold a value it does not like."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.calls = 0

    def __call__(self, tensors: list[Tensor]) -> list[np.ndarray]:
        self.calls += 1
        (values,) = tensors
        assert isinstance(values, np.ndarray)
        if self.bad & set(values.tolist()):
            raise ValueError("do not like it")
        return [values * 2, values + 1]


@given(st.integers(0, 300), st.data())
def test_only_the_rows_to_blame_are_left_out(rows: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, rows - 1), max_size=5)) if rows else set()
    model = Fussy(bad)
    outputs, failed = predict_around([np.arange(rows)], rows, model, rows)  # type: ignore[arg-type]
    good = np.array([i for i in range(rows) if i not in bad])
    assert set(failed) == bad
    assert all(error == "ValueError: do not like it" for error in failed.values())
    if len(good):
        np.testing.assert_array_equal(outputs[0], good * 2)
        np.testing.assert_array_equal(outputs[1], good + 1)
    else:
        assert outputs == []
    # Each bad row fails one batch on each level, and its sibling is tried as well.
    levels = math.ceil(math.log2(rows)) + 1 if rows > 1 else 1
    assert model.calls <= 1 + 2 * len(bad) * levels


def test_one_bad_row_of_sixteen_thousand_takes_few_predictions() -> None:
    model = Fussy({11_111})
    _, failed = predict_around([np.arange(16_384)], 16_384, model, 100)  # type: ignore[arg-type]
    assert list(failed) == [11_111]
    assert model.calls == 1 + 2 * 14


@given(st.integers(1, 2000), st.integers(0, 2000))
def test_a_model_that_fails_on_every_row_is_given_up_early(rows: int, most_bad: int) -> None:
    model = Fussy(set(range(rows)))
    _, failed = predict_around([np.arange(rows)], rows, model, most_bad)  # type: ignore[arg-type]
    # From the front, and no more than are needed to see that it is hopeless.
    assert list(failed) == list(range(min(rows, most_bad + 1)))
    assert model.calls <= 2 * (most_bad + 1) + math.ceil(math.log2(rows))


@given(st.integers(1, 300), st.integers(0, 5), st.data())
def test_up_to_the_limit_nothing_is_given_up(rows: int, most_bad: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, rows - 1), max_size=8))
    outputs, failed = predict_around([np.arange(rows)], rows, Fussy(bad), most_bad)  # type: ignore[arg-type]
    assert list(failed) == sorted(bad)[: most_bad + 1]
    if len(bad) <= most_bad and len(bad) < rows:
        np.testing.assert_array_equal(outputs[0], [2 * i for i in range(rows) if i not in bad])


@pytest.mark.parametrize(("on_bad_row", "most"), [("reject", 3), ("fail", 0)])
def test_how_many_rows_more_the_model_may_fail_on(on_bad_row: str, most: int) -> None:
    rejects = Rejects(SPLIT, policy(most_rows=5, on_bad_row="reject"))
    rejects.add([101, 102], "null", "why")
    rejects.policy = policy(most_rows=5, on_bad_row=on_bad_row)
    assert rejects.most_model_errors == most


def test_strings_are_halved_by_code() -> None:
    values = np.array([b"good", b"bad"], dtype=object)

    def predict(tensors: list[Tensor]) -> list[np.ndarray]:
        (strings,) = tensors
        assert isinstance(strings, CodedStrings)
        if 1 in strings.codes:
            raise ValueError("bad")
        return [strings.codes]

    tensor = CodedStrings(values, np.array([0, 0, 1, 0], np.int32))
    outputs, failed = predict_around([tensor], 4, predict, 4)  # type: ignore[arg-type]
    assert (outputs[0].tolist(), list(failed)) == ([0, 0, 0], [2])


def test_an_error_of_our_own_is_no_bad_row() -> None:
    def predict(_: object) -> list[np.ndarray]:
        raise SchemaError("no")

    with pytest.raises(SchemaError):
        predict_around([np.arange(4)], 4, predict, 4)
