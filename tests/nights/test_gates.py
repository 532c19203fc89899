"""Nights that gates refuse, end to end by the command line: refused, loosened, resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.cli import options
from job.commit import baseline, output, staging
from job.errors import UsageError
from job.gates import gates
from job.gates.gate import Compared, Gate, Nights
from job.spec import ScoringSpec
from tests.support.gate_nights import ROWS, moved, published, report, run_of, score, staged
from tests.support.nights import Night, dense, features, matrix, put_back, run_cli, saved


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a first night, published."""
    return published(tmp_path_factory.mktemp("gates"))


@pytest.fixture
def night(first: Path) -> Night:
    """The night after it: the same folder, whose shards a test replaces."""
    return put_back(first)


def textbook(night: Night, model: Any, before: pa.Table, now: pa.Table) -> float:
    """The population stability index of two tables' predictions, from raw values."""
    old, new = (model.predict(matrix(table), verbose=0)[:, 0] for table in (before, now))
    edges = np.quantile(old, np.linspace(0, 1, 11))
    edges[0], edges[-1] = -np.inf, np.inf
    p, q = (np.maximum(np.histogram(values, edges)[0] / len(values), 1e-4) for values in (old, new))
    return float(np.sum((p - q) * np.log(p / q)))


def test_a_first_night_has_nothing_to_be_compared_with(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    night = Night(tmp_path)
    night.shard("a", features(50))
    saved(dense(), night.folder / "m.keras")
    code, out, err = score(night, capfd, "--max_rows_change=0.1", "--max_psi=0.1", "--min_rows=50")
    assert code == 0, err
    assert "last good night  none in" in out
    assert report(night)["compared"]["rows_change"] is None


def test_the_report_tells_how_a_night_compares_whether_or_not_a_gate_is_asked(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    old = run_of(night)
    night.shard("a", now := moved(1800, 0.3), group_rows=100)
    code, out, err = score(night, capfd)
    assert code == 0, err
    told = report(night)["compared"]
    assert (told["baseline"], told["baseline_run"], told["baseline_rows"]) == (str(night.output), old, ROWS)
    assert told["rows_change"] == -0.25
    ((name, value),) = told["psi"]
    expected = textbook(night, dense(), features(ROWS), now)
    assert (name, value) == ("prediction", pytest.approx(expected, rel=0.3))
    assert f"-25.0% rows, PSI prediction {value:.3f}" in out
    assert f"PSI prediction {value:.3f}" in (night.output / "_report.html").read_text()
    assert (told["refused"], night.manifest()["released"]) == ([], None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_rows=1000"], "600 rows are scored, fewer than --min_rows=1000"),
        (
            ["--max_rows_change=0.5"],
            r"600 rows are scored, -75.0% against the 2,400 of the last good night \(",
        ),
        (["--max_psi=0.25"], r"PSI above --max_psi: prediction \d+\.\d+ > 0.25"),
        (["--max_psi=99,prediction=0.2"], r"PSI above --max_psi: prediction \d+\.\d+ > 0.2;"),
        (["--min_rows=601", "--max_rows_change=.7"], "601; 600 rows are scored, -75.0%"),
    ],
)
def test_a_night_is_refused_and_changes_nothing_outside_staging(
    night: Night, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in night.output.rglob("*") if path.is_file()}
    night.shard("a", moved(600, 2.0), group_rows=100)
    code, _, err = score(night, capfd, *flags)
    assert code == 5
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    (run_id,) = staged(night)
    assert f"`scoring-job publish {night.output} --run_id={run_id[:12]} --if_exists=replace`" in line
    assert {path: path.read_bytes() for path in before} == before
    assert len(staging.finished(str(night.output), run_id)) == 6


def test_a_looser_threshold_publishes_what_has_been_scored(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", moved(ROWS, 2.0), group_rows=100)
    assert score(night, capfd, "--max_psi=0.1")[0] == 5
    assert score(night, capfd, "--max_psi=0.2")[0] == 5
    code, out, err = score(night, capfd, "--max_psi=20")
    assert code == 0, err
    assert "24 splits done before, not scored again" in out
    assert report(night)["compared"]["refused"] == []
    assert not (night.output / "_staging").exists()


def test_a_night_without_rows_is_refused_where_distributions_are_asked_for(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", features(0))
    code, _, err = score(night, capfd, "--max_psi=0.25")
    assert code == 5
    assert (
        f"no rows are scored, which --max_psi cannot compare with the last good night ({night.output})" in err
    )


@pytest.mark.parametrize("spoil", ["older", "columns", "success", "empty"])
def test_a_last_good_night_that_cannot_be_compared_lets_pass_and_the_report_says_so(
    night: Night, capfd: pytest.CaptureFixture[str], spoil: str
) -> None:
    manifest = night.manifest()
    message = {
        "older": "an older version of this job scored it",
        "columns": "it has no prediction",
        "success": "nothing to compare with",
        "empty": "it has no rows",
    }[spoil]
    if spoil == "older":
        del manifest["histograms"]
    if spoil == "columns":
        manifest["histograms"] = {"other": manifest["histograms"]["prediction"]}
    if spoil == "empty":
        manifest["rows_scored"] = 0
    (night.output / "_manifest.json").write_text(json.dumps(manifest))
    if spoil == "success":
        (night.output / "_SUCCESS").unlink()
    night.shard("a", moved(600, 2.0), group_rows=100)
    rows = [] if spoil in ("older", "columns") else ["--max_rows_change=0.1"]
    code, out, err = score(night, capfd, *([] if spoil == "empty" else ["--max_psi=0.1"]), *rows)
    assert code == 0, err
    assert message in out
    # In a place without a date, where there will be no other night tomorrow, it is said at once.
    alone = f"--max_rows_change and --max_psi: nothing to compare with, as --output={night.output} holds no"
    assert (alone in err) == (spoil == "success")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], (None, None, ())),
        (["--min_rows=5", "--max_rows_change=2"], (5, 2.0, ())),
        (["--max_psi=0.25"], (None, None, (("", 0.25),))),
        (
            ['--max_psi=.3, delay=0.1,"a,b=c=1e-3"'],
            (None, None, (("", 0.3), ("delay", 0.1), ("a,b=c", 0.001))),
        ),
    ],
)
def test_flags(flags: Sequence[str], wanted: tuple[Any, ...]) -> None:
    spec, _ = options.parse(["--input=a", "--model=m.keras", "--output=o", *flags])
    assert (spec.min_rows, spec.max_rows_change, spec.max_psi) == wanted


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--min_rows=0", "must be a whole number of rows from 1"),
        ("--max_rows_change=-1", "must be a number from 0"),
        ("--max_psi=much", "must be a number from 0"),
        ("--max_psi=a=", "must be a number from 0"),
        ("--max_psi==0.1", "must be X or COLUMN=X"),
        ("--max_psi=0.1,0.2", "is listed more than once"),
        ("--max_psi=a=1,a=2", "a is listed more than once"),
    ],
)
def test_wrong_flags(flag: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.parse(["--input=a", "--model=m.keras", "--output=o", flag])


def test_a_threshold_for_no_prediction_column_is_wrong_usage(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", features(50))
    code, _, err = score(night, capfd, "--max_psi=delay=0.2")
    assert code == 2
    assert "--max_psi=delay=0.2: no prediction column has this name, of prediction" in err


def dated(night: Night, day: int, table: pa.Table, *flags: str) -> list[str]:
    """The command of one night of several, each in a folder of its own."""
    night.shard(f"2013-12-{day:02}/a", table)
    return [
        *(
            "score",
            f"--input={night.input}/{{ds}}",
            f"--output={night.folder}/out/{{ds:%Y/%m}}/d={{ds_nodash}}",
        ),
        *(f"--model={night.folder / 'm.keras'}", "--keys=id", f"--ds=2013-12-{day:02}", *flags),
    ]


class Dozens(Gate):
    """A gate that this job does not have: rows must come in dozens, and more dozens than last time."""

    limit, measure, looks_back = "dozens", "dozens_more", True

    def asked(self, spec: ScoringSpec) -> tuple[tuple[str, int], ...]:
        return (("a dozen", 12),)

    def measured(self, nights: Nights, /) -> tuple[list[Any], str]:
        return [nights.rows // 12 - nights.rows_before // 12, "dozens"], "half dozens are left out"

    def told(self, value: Sequence[Any], /) -> str:
        return f"{value[0]:+} {value[1]}"

    def refusals(self, limit: Sequence[Sequence[Any]], rows: int, compared: Compared, /) -> Iterator[str]:
        ((name, size),) = limit
        if rows % size or compared.value(self.measure)[0] < 0:
            yield f"{rows} rows are no full dozens ({name} is {size})"


def test_a_gate_is_one_class_and_one_entry(
    night: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "GATES", (*gates.GATES, Dozens()))
    night.shard("a", features(2407), group_rows=100)
    code, _, err = score(night, capfd)
    assert code == 5
    assert "2407 rows are no full dozens (a dozen is 12)" in err
    (run_id,) = staged(night)
    # The note from which a refused night is released brings limit and measure back as they were.
    run, compared = staging.read_refusal(str(night.output), run_id) or pytest.fail("no note")
    assert run.gates.limit("dozens") == (("a dozen", 12),)
    assert compared.value("dozens_more") == (0, "dozens")
    publish = ("publish", str(night.output), f"--run_id={run_id}", "--if_exists=replace")
    code, out, err = run_cli(capfd, *publish)
    assert code == 0, err
    assert "+0.3% rows, PSI prediction" in " ".join(out.split())
    assert "+0 dozens, half dozens are left out" in " ".join(out.split())
    assert report(night)["compared"]["dozens_more"] == [0, "dozens"]


def test_a_note_of_an_older_version_is_released(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    night.shard("a", features(50))
    assert score(night, capfd, "--min_rows=51")[0] == 5
    (run_id,) = staged(night)
    (path,) = (night.output / "_staging").rglob(staging.REFUSAL)
    note = json.loads(path.read_text())
    # What gates were before each of them kept its own limit.
    note["run"]["gates"] = {"min_rows": 51, "max_rows_change": None, "max_psi": [], "baselines": []}
    path.write_text(json.dumps(note))
    publish = ("publish", str(night.output), f"--run_id={run_id}", "--if_exists=replace")
    code, _, err = run_cli(capfd, *publish)
    assert code == 0, err
    assert night.manifest()["released"]["refused"] == ["50 rows are scored, fewer than --min_rows=51"]


def test_where_nights_have_folders_the_newest_that_is_published_counts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    night = Night(tmp_path)
    saved(dense(), night.folder / "m.keras")
    strict = ("--max_psi=0.25", "--max_rows_change=0.5")
    for day, seed in ((1, 1), (3, 3)):
        assert run_cli(capfd, *dated(night, day, features(2000, seed=seed), *strict))[0] == 0
    # The fourth is refused, and so is no night that others are compared with.
    code, _, err = run_cli(capfd, *dated(night, 4, moved(2000, 3.0), *strict))
    assert (code, f"the last good night ({tmp_path}/out/2013/12/d=20131203)" in err) == (5, True)
    command = dated(night, 5, features(2200, seed=5), *strict)
    # Of another job: it is passed over.
    stranger = tmp_path / "out/2013/12/d=20131202"
    stranger.mkdir()
    (stranger / "_SUCCESS").touch()
    (stranger / "_manifest.json").write_text("[]")
    assert run_cli(capfd, *command)[0] == 0
    told = json.loads((tmp_path / "out/2013/12/d=20131205/_report.json").read_text())["compared"]
    assert told["baseline"] == f"{tmp_path}/out/2013/12/d=20131203"
    assert (told["baseline_rows"], told["rows_change"]) == (2000, 0.1)
    # Once more, in the place of itself: its own rows are no yardstick.
    night.shard("2013-12-05/b", features(600, first_id=9000))
    code, _, err = run_cli(capfd, *command, "--if_exists=replace", "--max_rows_change=0.3")
    assert code == 2
    command[-1:] = ["--max_rows_change=0.3", "--if_exists=replace"]
    code, _, err = run_cli(capfd, *command)
    assert (code, "2,800 rows are scored, +40.0% against the 2,000" in err) == (5, True)
    (tmp_path / "out/2013/12/d=20131203/_SUCCESS").unlink()
    assert run_cli(capfd, *command[:-2], "--max_rows_change=0.4", "--if_exists=replace")[0] == 0
    told = json.loads((tmp_path / "out/2013/12/d=20131205/_report.json").read_text())["compared"]
    assert told["baseline"] == f"{tmp_path}/out/2013/12/d=20131201"


def test_candidates_are_the_nights_before_in_order() -> None:
    found = baseline.candidates("/o/{ds}", date(2013, 3, 2), "/o/2013-03-02")
    assert (len(found), found[:2], found[-1]) == (35, ("/o/2013-03-01", "/o/2013-02-28"), "/o/2013-01-26")
    assert baseline.candidates("/o/{ds:%Y-%m}", date(2013, 3, 2), "/o/2013-03") == (
        "/o/2013-02",
        "/o/2013-01",
    )
    assert baseline.candidates("/o/{ds}", date(1, 1, 2), "/o") == ("/o/0001-01-01",)


def test_in_a_backfill_each_night_is_compared_with_the_one_before_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    night = Night(tmp_path)
    saved(dense(), night.folder / "m.keras")
    for day in (1, 2, 3, 4):
        strict = ("--max_psi=0.25",)
        table = moved(2000, 3.0) if day == 3 else features(2000 + day, seed=day)
        command = dated(night, day, table, *strict)
    args = [arg for arg in command[1:] if not arg.startswith("--ds=")]
    code, out, err = run_cli(capfd, "backfill", *args, "--start=2013-12-01", "--end=2013-12-04")
    assert (code, " ".join(out.split()).count("PSI above --max_psi: prediction")) == (5, 1), out + err
    folders = [tmp_path / f"out/2013/12/d=2013120{day}" for day in (1, 2, 3, 4)]
    assert [(folder / "_SUCCESS").exists() for folder in folders] == [True, True, False, True]
    told = [json.loads((folders[i] / "_report.json").read_text())["compared"]["baseline"] for i in (0, 1, 3)]
    assert told == ["", str(folders[0]), str(folders[1])]
    # Released, it is what the next night is compared with.
    (run_id,) = output.leftovers(str(folders[2]), "")
    assert run_cli(capfd, "publish", str(folders[2]), f"--run_id={run_id}")[0] == 0
    night.shard("2013-12-04/b", features(10))
    assert run_cli(capfd, *command, "--if_exists=replace")[0] == 5
