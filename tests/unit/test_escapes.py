"""What steers a terminal reaches none, whoever's name or text it stands in."""

from __future__ import annotations

import ast
import json
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import escapes
from job.report import page
from job.terminal import console, progress
from tests.support.nights import Night, dense, features, run_cli, saved

JOB = Path(__file__).parents[2] / "job"

# A title, a colour, C1's clearing of the screen, DEL, an override and an isolate, line breaks of three kinds,
# what rich would read as markup and as an emoji, and what a reader might take for another line.
STEERING = "\x1b]0;t\x07\x1b[31m\x9b2J\x7f\u202e\u2066\u2028\r\t[red]x[/red]:smile:\nerror: no"
SHOWN = r"\u001b]0;t\u0007\u001b[31m\u009b2J\u007f\u202e\u2066\u2028\r\t[red]x[/red]:smile:\nerror: no"
# What rich itself sends to a terminal: styles, and the movements of its bar.
OF_RICH = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A|1G)|\r(?=\x1b\[2K|\n)")


# Unicode's property Bidi_Control.
TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def steers(character: str) -> bool:
    """As Unicode's own tables have it."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in TURNS


def steering(text: str) -> set[str]:
    return {character for character in text if character != "\n" and steers(character)}


def test_every_character_that_steers_is_shown_and_no_other_is_touched() -> None:
    every = list(map(chr, range(0x110000)))
    harmless = "".join(one for one in every if not steers(one))
    assert escapes.visible(harmless) == harmless
    for one in filter(steers, every):
        assert escapes.visible(one).isprintable(), hex(ord(one))
    assert escapes.visible(STEERING) == SHOWN == escapes.visible(SHOWN)
    assert escapes.visible_lines("a\nb\x1bc") == "a\nb\\u001bc"


def test_text_of_json_and_toml_means_what_it_meant() -> None:
    written = json.dumps(STEERING, ensure_ascii=False)
    assert json.loads(escapes.visible(written)) == STEERING
    assert tomllib.loads(escapes.visible(f"a = {written}")) == {"a": STEERING}


def test_what_is_drawn_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    console.draw(console.grid({f"a{STEERING}": f"b{STEERING}"}))
    console.draw(f"raw {STEERING}")
    console.show(f"line {STEERING}", "next")
    progress.say(f"said {STEERING}")
    progress.say_lines("two\nlines\x1b[31m")
    out, err = capfd.readouterr()
    assert not steering(out + err)
    assert f"line {SHOWN}\nnext\n" in out
    assert err == f"said {SHOWN}\ntwo\nlines\\u001b[31m\n"
    assert out.count("[red]x[/red]:smile:") >= 2


def test_pages_show_it_too() -> None:
    made = page.render("r", {f"a{STEERING}": f"<b>{STEERING}"}, {}, [(STEERING, STEERING, 1.0)])
    assert not steering(made)
    assert f"&lt;b&gt;{SHOWN}" in made


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A night whose folder, shard, columns, predictions and model are called so."""
    night = Night(tmp_path_factory.mktemp("spoilt"))
    name = STEERING.replace("/", "|")
    table = features(20).rename_columns([f"id{STEERING}", *(f"f{i}{STEERING}" for i in range(4))])
    night.shard(f"ds{name}/a{name}", table)
    saved(dense(), night.folder / "m.keras").rename(night.folder / f"m{name}.keras")
    return night


def flags(night: Night) -> list[str]:
    model = next(night.folder.glob("m*.keras"))
    keys = f'--keys="id{STEERING}"'
    return [*night.args(model), keys, f'--prediction_columns="p{STEERING}"', "--batch_size=8"]


def commands(night: Night) -> Iterator[list[str]]:
    """Every command with a text of its own, well and ill."""
    asked, output = flags(night), str(night.output)
    model = asked[1]
    yield ["score", *asked, "--print_config"]
    yield ["plan", *asked]
    yield ["doctor", *asked]
    yield ["score", *asked]
    yield ["score", *asked, "--json"]
    yield ["report", output]
    yield ["verify", output]
    yield ["verify", output, "--json", "--sample_rows=0"]
    yield ["diff", output, output]
    yield ["diff", output, output, "--json"]
    yield ["golden", output, f"--to={night.folder}/golden.parquet"]
    yield ["clean", output]
    yield ["score", *asked, "--batch_size=4"]
    yield ["score", *asked, f'--features="{STEERING}"', "--if_exists=replace"]
    yield ["score", *asked, "--debug", f"--input={STEERING}"]
    yield ["score", f"--input={night.input}", model, f"--output={output}/{STEERING}/x", "--keys=no"]
    yield ["backfill", *asked[1:2], f"--input={night.input}/{{ds}}{STEERING}", *asked[3:], "--days=1"]
    yield ["backfill", *asked[1:2], f"--input={night.input}/{{ds}}", f"--output={output}{{ds}}[red]x[/red]"]
    yield [f"un{STEERING}"]


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True])
def test_no_command_sends_it(
    spoilt: Night, terminal: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    progress.console.cache_clear()
    told = ""
    try:
        for args in commands(spoilt):
            _, out, err = run_cli(capfd, *args)
            found = OF_RICH.sub("", out + err) if terminal else out + err
            assert found, args
            assert not steering(found), (args[0], found)
            told += found
    finally:
        progress.console.cache_clear()
    assert r"\u001b]0;t\u0007\u001b[31m\u009b2J\u007f\u202e\u2066\u2028\r\t[red]x[/red]:smile:\n" in told


# Of the night that the first test has scored.
@pytest.mark.slow
def test_what_is_written_for_programs_keeps_the_true_names(spoilt: Night) -> None:
    (file,) = spoilt.files()
    assert f"p{STEERING}" in pq.read_schema(file).names
    assert spoilt.manifest()["files"][0]["shard"].count(STEERING.replace("/", "|")) == 2


def test_a_night_of_several_is_told_without_markup(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"id": [1], "[red]x[/red]": ["text"]})
    night.shard("ds=2024-01-01/a", table)
    model = saved(dense(1), night.folder / "m.keras")
    where = [f"--input={night.input}/ds={{ds}}", f"--output={night.output}/{{ds}}", f"--model={model}"]
    code, out, _ = run_cli(capfd, "backfill", *where, "--keys=id", "--start=2024-01-01", "--end=2024-01-01")
    assert code == 4
    assert "[red]x[/red]" in re.sub(r"\s+", "", out)


def test_nothing_is_printed_but_through_the_doors() -> None:
    """``print``, the streams and rich's console are named by the doors alone."""
    doors = {
        "print": set[str](),
        # The streams themselves are wrapped or flushed here.
        "stdout": {"console", "doctor"},
        "stderr": {"console", "library_output"},
        "Console": {"console", "progress"},
    }
    for path in sorted(JOB.glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.id if isinstance(node, ast.Name) else ""
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "sys"
            ):
                name = node.attr
            assert path.stem in doors.get(name, {path.stem}), f"{path.name}:{getattr(node, 'lineno', 0)}"
