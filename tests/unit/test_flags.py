"""A flag is declared once: one that is made up, in a copy of the sources, is seen wherever flags are."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import flags as generated
from job.launch import identity
from job.spec import ModelReference, ScoringSpec, Shard

ROOT = Path(__file__).parents[2]
DECLARATION = """\
    made_up: Annotated[
        int, Flag(Group.OUTPUT, "what nobody needs", forms.Count(), run_id=RunId.IF_SET)
    ] = 7
"""
# Reads a list of command lines; prints what comes of each, and the help.
PROGRAM = """\
import json, sys
import shtab
from docs import flags
from job import make_spec
from job.cli.commands import completion
from job.cli import options, parser
from job.errors import JobError
from job.launch import identity
from job.spec import ModelReference, Shard

flags.main()
models = identity.Models(ModelReference("/m.keras", None, False, "ab" * 32), None)
found = {
    "help": parser.build().format_help(),
    "bash": shtab.complete(completion._all_commands("bash"), "bash"),
    "library": make_spec(input="a", model="/m.keras", output="o", made_up=5).made_up,
}
for line in json.load(sys.stdin):
    try:
        with options.parsed(line) as asked:
            spec = asked.template
            printed = asked.printed(spec)
        found[line[-1]] = [spec.made_up, identity.run_id(spec, [Shard("/a/1", 10, "5")], models), printed]
    except JobError as e:
        found[line[-1]] = str(e)
print(json.dumps(found))
"""
REQUIRED = ["--input=a", "--model=/m.keras", "--output=o"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources in which one declaration is added."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("job", "docs", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "job" / "spec.py"
    before, at, after = path.read_text().partition("    output_template: str")
    assert at
    path.write_text(before + DECLARATION + at + after)
    return folder


@pytest.fixture(scope="module")
def seen(tree: Path) -> dict[str, Any]:
    """What the copy says of command lines, by their last words, and its help."""
    lines = [[*REQUIRED, *flags] for flags in ([], ["--made_up=3"], ["--made_up=0"])]
    for text in ("made_up = 4", "made_up = 'x'", "made_up = true", "mad_up = 4"):
        path = tree / f"{text}.toml"
        path.write_text(f"# a night\n{text}\n")
        lines.append([*REQUIRED, f"--config={path}"])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(lines),
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_command_line_has_it(seen: dict[str, Any]) -> None:
    output = seen["help"].partition("\noutput:\n")[2].partition("\nrunning:\n")[0]
    assert "--made_up ROWS" in output
    assert "what nobody needs (default: 7)" in output
    assert seen["--output=o"][0] == 7
    assert seen["--made_up=3"][0] == 3
    assert seen["--made_up=0"] == "--made_up=0: must be a whole number of rows from 1"


def test_a_shell_completes_it_and_the_library_takes_it(seen: dict[str, Any]) -> None:
    assert "--made_up" in seen["bash"]
    assert seen["library"] == 5


def test_a_file_has_it(seen: dict[str, Any], tree: Path) -> None:
    def told(text: str) -> Any:
        return seen[f"--config={tree}/{text}.toml"]

    assert told("made_up = 4")[0] == 4
    assert told("made_up = 'x'").startswith(
        f"{tree}/made_up = 'x'.toml:2: --made_up=x: must be a whole number"
    )
    assert told("made_up = true").endswith(":2: made_up: true is no value that --made_up could have")
    assert told("mad_up = 4").endswith(":2: mad_up: no flag of the job; did you mean made_up?")
    assert "\nmade_up = 4\n" in told("made_up = 4")[2]
    assert "\n# made_up = 7\n" in seen["--output=o"][2]


def test_it_is_in_the_runs_id_where_it_is_given(seen: dict[str, Any]) -> None:
    models = identity.Models(ModelReference("/m.keras", None, False, "ab" * 32), None)
    before = identity.run_id(ScoringSpec(("a",), "/m.keras", "o"), [Shard("/a/1", 10, "5")], models)
    assert seen["--output=o"][1] == before
    assert seen["--made_up=3"][1] != before


def test_what_is_written_for_people_and_programs_has_it(seen: dict[str, Any], tree: Path) -> None:
    assert (
        "| `--made_up=ROWS` | `7` | what nobody needs. | if given |" in (tree / "docs/flags.md").read_text()
    )
    schema = json.loads((tree / "docs/scoring-job.schema.json").read_text())["properties"]["made_up"]
    assert (schema["description"], schema["default"]) == ("what nobody needs", 7)
    assert {"type": "integer", "minimum": 1} in schema["anyOf"]
    parameters = json.loads((tree / "deploy/dataflow/metadata.json").read_text())["parameters"]
    (made_up,) = [one for one in parameters if one["name"] == "made_up"]
    assert made_up == {
        "name": "made_up",
        "label": "Made up",
        "helpText": "what nobody needs (default: 7)",
        "isOptional": True,
        "paramType": "NUMBER",
        "regexes": [r"^\+?0*[1-9][0-9]*$"],
        "defaultValue": "7",
    }


def test_no_other_file_was_touched(seen: dict[str, Any], tree: Path) -> None:
    assert seen
    changed = {path for name in ("job", "docs", "deploy") for path in different(ROOT / name, tree / name)}
    by_itself = {"docs/flags.md", "docs/scoring-job.schema.json", "deploy/dataflow/metadata.json"}
    assert {str(path.relative_to(tree)) for path in changed} - by_itself == {"job/spec.py"}


def different(before: Path, after: Path) -> Iterator[Path]:
    found = filecmp.dircmp(before, after, ignore=["__pycache__"])
    yield from (after / name for name in found.diff_files)
    for name in found.common_dirs:
        yield from different(before / name, after / name)


@pytest.mark.parametrize("path", generated.written(), ids=lambda path: path.name)
def test_what_is_written_is_what_the_flags_are(path: Path) -> None:
    """Else: ``python -m docs.flags``."""
    assert path.read_text(encoding="utf-8") == generated.written()[path]
