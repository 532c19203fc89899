"""Two nights that were really scored, and what plain Python says of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.compare import night_files
from job.compare.diff import Asked, diff
from job.compare.night_files import NightFiles
from job.errors import DataError, StateUnknownError, UsageError
from tests.support.night_pairs import by_id, check_against_python, folder, replaced, retold, scored
from tests.support.nights import Night, put_back, run_cli, visible
from tests.support.remote_store import Remote
from tests.support.tampering import table_of
from tests.unit.report.test_run_report import Page


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored(Night(tmp_path_factory.mktemp("two") / "night"))


@pytest.fixture
def nights(aside: Path) -> Callable[[str], Night]:
    night = put_back(aside)
    return lambda name: Night(night.folder / name)


@pytest.mark.slow
def test_rows_are_matched_by_the_keys_of_both(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    assert len(a.files()) != len(b.files())
    found = diff([folder(a), folder(b)], Asked(threshold=0.1, top=5))
    assert (found.matched_by, found.rows, found.only_a, found.only_b) == (("id",), 882, 0, 18)
    (told,) = found.columns
    check_against_python(told, by_id(a), by_id(b))
    of_a, of_b = by_id(a), by_id(b)
    for one in told["movers"]:
        assert (one["a"], one["b"]) == (of_a[one["keys"]["id"]], of_b[one["keys"]["id"]])


def test_without_keys_rows_are_matched_by_their_place(nights: Callable[[str], Night]) -> None:
    a, b = nights("plain_a"), nights("plain_b")
    found = diff([folder(a), folder(b)], Asked(threshold=0.1, top=5))
    assert (found.matched_by, found.rows, found.only_a, found.only_b) == (("shard", "row"), 882, 0, 18)
    (told,) = found.columns
    check_against_python(told, by_id(nights("a")), by_id(nights("b")))
    for one in told["movers"]:
        row = pq.ParquetFile(one["keys"]["shard"]).read().slice(one["keys"]["row"], 1)
        assert one["a"] == by_id(nights("a"))[row["id"][0].as_py()]


def test_a_night_is_as_itself(nights: Callable[[str], Night]) -> None:
    found = diff([folder(nights("a"))] * 2, Asked(top=5))
    (told,) = found.columns
    assert (found.rows, found.moved, told["equal"], told["movers"]) == (882, 0, 882, [])
    assert (told["correlation"], told["psi"], told["max_abs"]) == (pytest.approx(1), 0.0, 0.0)


def test_columns_of_hive_folders_are_keys_too(nights: Callable[[str], Night]) -> None:
    found = diff([folder(nights("a")), folder(nights("b"))], Asked(keys=("hour", "id"), top=1))
    assert (found.rows, found.matched_by) == (882, ("hour", "id"))
    assert found.columns[0]["movers"][0]["keys"]["hour"] in ("07", "10")


def test_two_columns_of_one_night(nights: Callable[[str], Night]) -> None:
    a = nights("a")
    for path in a.files():
        scores = table_of(path)["score"].to_numpy()
        replaced(a, path, challenger_score=pa.array(scores + np.float32(1)), label=["x"] * len(scores))
    found = diff([folder(a)], Asked(top=2))
    (told,) = found.columns
    assert (told["column"], told["rows"], told["moved"]) == ("score → challenger_score", 882, 882)
    assert told["mean"] == pytest.approx(1, abs=1e-6)
    assert list(told["movers"][0]["keys"]) == ["id"]
    (told,) = diff([folder(a)], Asked(columns=("challenger_score", "score"))).columns
    assert told["mean"] == pytest.approx(-1, abs=1e-6)
    with pytest.raises(UsageError, match=r"^column score is float, and label is string; these cannot be com"):
        diff([folder(a)], Asked(columns=("score", "label")))


def test_vectors_are_compared_number_by_number_and_texts_whole(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    for night, shift, label in ((a, 0.0, "x"), (b, 2.0, "y")):
        for path in night.files():
            ids = table_of(path)["id"].to_numpy()
            both = np.stack([ids + shift, -ids], axis=1).ravel().astype(np.float32)
            vector = pa.FixedSizeListArray.from_arrays(pa.array(both), 2)
            texts = pa.array([label if i % 2 else "same" for i in ids]).dictionary_encode()
            replaced(night, path, vector=vector, label=texts, sure=pa.array(ids % 3 == 0))
    asked = Asked(columns=("vector", "label", "sure"), tolerance=2.0)
    found = diff([folder(a), folder(b)], asked)
    first, second, texts_told, sure = found.columns
    assert (first["column"], first["mean"], first["moved"]) == ("vector[0]", 2.0, 0)
    assert (second["column"], second["equal"]) == ("vector[1]", 882)
    odd = sum(key % 2 for key in by_id(a))
    assert texts_told["moved"] == odd
    assert texts_told["changes"] == [{"a": "x", "b": "y", "rows": odd}]
    assert (sure["kind"], sure["equal"]) == ("text", 882)
    assert found.moved == odd


def test_lists_of_any_length_are_equal_or_not(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    ids = sorted(by_id(a).keys() & by_id(b).keys())
    # What could be taken for one another, were it written without care; and what is equal.
    told_apart = [[None], ["null"], [], None, ['", "'], ["", ""], ["\\"], ['"'], ["x"], ["x", None]]
    of_a = {key: told_apart[i % 10] for i, key in enumerate(ids)}
    of_b = {key: told_apart[(i // 10) % 10] for i, key in enumerate(ids)}
    for night, values in ((a, of_a), (b, of_b)):
        for path in night.files():
            keys = table_of(path)["id"].to_pylist()
            words = pa.array([values.get(key) for key in keys], pa.list_(pa.string()))
            numbers = pa.array(
                [[[float(key)], None, []] for key in keys], pa.large_list(pa.list_(pa.float32()))
            )
            replaced(night, path, words=words, numbers=numbers)
    words_told, numbers_told = diff([folder(a), folder(b)], Asked(columns=("words", "numbers"))).columns
    assert (words_told["kind"], words_told["equal"]) == ("text", sum(of_a[key] == of_b[key] for key in ids))
    assert {one["a"] for one in words_told["changes"]} <= {None, "[]", '["x"]', '["x", null]', "[null]"} | {
        '["null"]',
        '["\\", \\""]',
        '["", ""]',
        '["\\\\"]',
        '["\\""]',
    }
    assert (numbers_told["kind"], numbers_told["equal"]) == ("text", len(ids))


def test_times_in_other_units_are_the_same_keys(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    for night, unit in ((a, "us"), (b, "ns")):
        for path in night.files():
            times = pa.array(table_of(path)["id"].to_numpy() * 1_000_000, pa.timestamp("us"))
            replaced(night, path, at=times.cast(pa.timestamp(unit)))
    found = diff([folder(a), folder(b)], Asked(keys=("at",), top=5))
    assert (found.rows, found.only_a, found.only_b) == (882, 0, 18)
    for one in found.columns[0]["movers"]:
        assert one["a"] == by_id(a)[_seconds(one["keys"]["at"])]


def _seconds(at: Any) -> int:
    return int(np.datetime64(at, "s").astype(np.int64))


def refusal(folders: list[str], **asked: Any) -> str:
    with pytest.raises(UsageError) as refused:
        diff(folders, Asked(**asked))
    return str(refused.value)


def test_what_cannot_be_compared_is_told_with_both_sides(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    both = [folder(a), folder(b)]
    assert refusal(both, keys=("nr",)).startswith(
        "--keys: A has no column nr, it has id, score, hour; choose"
    )
    assert refusal(both, columns=("p",)).startswith("there is no column p; there are id, score, hour; choose")
    assert refusal(both, keys=("hour",)).startswith(f"A ({folder(a)}): ")
    assert " rows have the same key, hour=" in refusal(both, keys=("hour",))
    assert refusal(both[:1]).startswith(
        f"{both[0]}: there are id, score, hour; give a second output, or pairs"
    )
    for path in b.files():
        ids = table_of(path)["id"]
        replaced(b, path, id=pa.array([f"id-{i}" for i in ids]), score=pa.array(["high"] * len(ids)))
    assert refusal(both).startswith("column score is float in A and string in B; these cannot be compared: ")
    assert refusal(both, columns=("hour",)) == "--keys: id is int64 in A and string in B; choose others"
    other = retold(b, lambda night: night["scoring"].update(predictions=["p"]))
    assert refusal([both[0], other]).startswith("no prediction is in both: A has score, B has p; compare")


def test_rows_that_cannot_be_matched_are_told(nights: Callable[[str], Night], tmp_path: Path) -> None:
    a, b, plain_a, plain_b = (nights(name) for name in ("a", "b", "plain_a", "plain_b"))
    for path in b.files():
        replaced(b, path, id=pa.array(table_of(path)["id"].to_numpy() + 10**6))
    told = f"no row of {folder(a)} is in {folder(b)}, by id; choose other --keys"
    assert refusal([folder(a), folder(b)]) == told
    retold(plain_b, lambda night: night["files"][0].update(shard_stamp="later"))
    told = refusal([folder(plain_a), folder(plain_b)])
    assert "carry no common keys, and rows cannot be matched by their place: " in told
    assert ".parquet was written again in between; give --keys" in told
    retold(plain_b, lambda night: [entry.update(shard="/x") for entry in night["files"]])
    assert "place: they have no shard in common" in refusal([folder(plain_a), folder(plain_b)])
    assert refusal([folder(a), str(tmp_path)]).startswith(
        f"{tmp_path}: it holds no published night; without _SU"
    )


def test_files_of_other_types_are_named(nights: Callable[[str], Night]) -> None:
    a, b = nights("a"), nights("b")
    last = a.files()[-1]
    # What means the same is taken, as the ids of shards that were written by different hands.
    replaced(a, last, id=table_of(last)["id"].cast(pa.int32()).combine_chunks())
    assert diff([folder(a), folder(b)], Asked()).rows == 882
    replaced(a, last, score=pa.array(["high"] * table_of(last).num_rows))
    with pytest.raises(
        DataError, match=rf"{last.name}: column score is string, in the night's first file flo"
    ):
        diff([folder(a), folder(b)], Asked())


def test_a_night_that_is_replaced_meanwhile_is_not_mixed(nights: Callable[[str], Night]) -> None:
    opened = NightFiles.of(folder(nights("a")))
    opened.check_same()
    retold(nights("a"), lambda night: night.update(run_id="f" * 64))
    with pytest.raises(StateUnknownError, match="was replaced while it was read; run again"):
        opened.check_same()


@pytest.mark.slow
def test_one_of_them_lies_in_a_bucket(nights: Callable[[str], Night], bucket: Remote, top: str) -> None:
    a, b = nights("a"), nights("b")
    # More files than are on their way at a time.
    assert len(a.files()) > night_files._FILES_AHEAD
    for path in [*visible(a.output), a.output / "_manifest.json", a.output / "_SUCCESS"]:
        storage.write_atomic(f"{top}/{path.relative_to(a.output)}", path.read_bytes())
    found = diff([folder(b), top], Asked(threshold=0.1, top=5))
    assert (found.rows, found.only_a, found.only_b) == (882, 18, 0)
    check_against_python(found.columns[0], by_id(b), by_id(a))


def test_the_command_tells_it_as_a_table_and_as_a_page(
    nights: Callable[[str], Night], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = nights("a"), nights("b")
    hostile = "<b>&[bold]"
    for path in b.files():
        replaced(b, path, label=pa.array([hostile] * len(table_of(path))))
    for path in a.files():
        replaced(a, path, label=pa.array(["x"] * len(table_of(path))))
    page = tmp_path / "diff.html"
    more = ("--columns=score,label", "--threshold=0.1", "--top=3", f"--page={page}")
    code, out, err = run_cli(capfd, "diff", folder(a), folder(b), *more)
    assert (code, err) == (0, "")
    for line in (
        "882 in both, 0 only in A, 18 only in B",
        "882 rows (100.00%)",
        "equal",
        "flips at 0.1",
        hostile,
    ):
        assert line in out
    seen = Page()
    seen.feed(page.read_text())
    assert seen.links == []
    assert not {"script", "link", "img", "b"} & set(seen.tags)
    assert "&lt;b&gt;&amp;[bold]" in page.read_text()
    widths = [float(text) for text in page.read_text().split("width:")[3:] for text in [text.split("%")[0]]]
    assert max(widths) == 100
    wrong = f"{page}/within"
    code, out, err = run_cli(capfd, "diff", folder(a), folder(b), *more[:-1], f"--page={wrong}")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --page={wrong}: {wrong}: cannot be written: ")


def test_the_command_tells_it_as_one_line_and_says_when_it_is_too_much(
    nights: Callable[[str], Night], capfd: pytest.CaptureFixture[str]
) -> None:
    both = (folder(nights("a")), folder(nights("b")))
    (told,) = diff(both, Asked(tolerance=0.5)).columns
    share = told["moved"] / 882
    assert 0.1 < share < 0.9
    more = ("--tolerance=0.5", "--json", "--top=1")
    code, out, err = run_cli(capfd, "diff", *both, *more, f"--max_change={share + 1e-6:.8f}")
    assert (code, err, out.count("\n")) == (0, "", 1)
    line = json.loads(out)
    assert (line["version"], line["rows"], line["moved"]) == (1, 882, told["moved"])
    assert [night["output"] for night in line["nights"]] == list(both)
    assert line["share_moved"] == pytest.approx(share)
    code, out, err = run_cli(capfd, "diff", *both, *more, f"--max_change={share - 1e-6:.8f}")
    assert (code, out.count("\n")) == (5, 1)
    assert err.startswith(
        f"error: {told['moved']} of 882 rows moved by more than --tolerance=0.5: a share of "
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--tolerance=-1", "--tolerance=-1: must be a number from 0, as in 1e-5"),
        ("--threshold=half", "--threshold=half: must be a number, as in 0.5"),
        ("--max_change=2", "--max_change=2: must be a share of the rows from 0 to 1, as in 0.01"),
        ("--top=-1", "--top=-1: must be a whole number from 0"),
        ("--keys=a,,b", "--keys=a,,b: item 2 of 3 is empty"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_read(
    flag: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(capfd, "diff", "/no/a", "/no/b", flag) == (2, "", f"error: {message}\n")
