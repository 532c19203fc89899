"""Writes what is made of the declarations of flags: a page, a schema for editors, a template's parameters.

``python -m docs.flags`` writes ``docs/flags.md``, ``docs/scoring-job.schema.json`` and
``deploy/dataflow/metadata.json``; ``--check`` only says whether they are what the declarations are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.cli import config, parser
from job.cli.commands import COMMANDS
from job.cli.commands.backfill import BackfillOptions
from job.flags import Flag, RunId
from job.forms import Choice, Switch

DOCS = Path(__file__).parent
PAGE = DOCS / "flags.md"
SCHEMA = DOCS / "scoring-job.schema.json"
TEMPLATE = DOCS.parent / "deploy" / "dataflow" / "metadata.json"
BEGIN, END = "<!-- written by docs/flags.py -->", "<!-- end of the tables -->"

IN_ID = {
    RunId.NEVER: "",
    RunId.ALWAYS: "yes",
    RunId.IF_SET: "if given",
    RunId.WITH_CHALLENGER: "with a challenger",
}


def tables() -> str:
    """Return a table for each group of flags, as Markdown."""
    parts = [BEGIN]
    for group, flags in itertools.groupby(parser.flags_of(BackfillOptions), lambda flag: flag.group):
        parts += ["", f"## {group.title[0].upper()}{group.title[1:]}", ""]
        if group.text:
            text = group.text.replace("{program}", "scoring-job")
            parts += [re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text), ""]
        parts += ["| flag | default | | in the run's id |", "|---|---|---|---|"]
        parts += [_row(flag) for flag in flags]
    for command in COMMANDS.values():
        made = command.parser()
        # The others take the flags above.
        if "--input" not in made._option_string_actions:
            parts += [
                "",
                f"## `{command.name}`",
                "",
                f"{command.summary[0].upper()}{command.summary[1:]}.",
                "",
                "| | |",
                "|---|---|",
            ]
            parts += [*_rows(made)]
    return "\n".join([*parts, "", END])


def _row(flag: Flag) -> str:
    default = flag.default_text
    if isinstance(flag.form, Switch):
        names = ", ".join(f"`--{name}`" for name in flag.names)
        default = "on" if flag.default else "off"
    else:
        metavar = flag.form.metavar.replace("|", "\\|")
        names = f"`--{flag.name}={metavar}`"
        default = f"`{default}`" if default else ""
    text = f"{flag.text}."
    if isinstance(flag.form, Switch) and flag.form.off:
        text += f" `--{flag.form.off}`: {flag.form.off_text}."
    if flag.more:
        text += f" {flag.more}"
    cells = (names, default, text, IN_ID[flag.run_id])
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _rows(made: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a row for each argument of a parser that another command has made."""
    for action in made._actions:
        if action.dest == "help":
            continue
        metavar = action.metavar or ("|".join(action.choices) if action.choices else "")
        name = f"--{action.dest}" if action.option_strings else ""
        shown = f"{name}={metavar}" if name and action.nargs != 0 else f"{name or metavar}"
        shown = shown.replace("|", "\\|")
        yield f"| `{shown}` | {action.help}. |"


def schema() -> str:
    """Return the JSON Schema of a configuration, which editors check and complete it by."""
    scalar: dict[str, Any] = {"type": ["string", "number"]}
    properties = dict(itertools.chain.from_iterable(map(_properties, parser.flags_of())))
    properties[config.ENGINE] = {
        "type": "object",
        "description": "flags of the engine (Beam's), without their dashes",
        "additionalProperties": {"anyOf": [{"type": "boolean"}, scalar, {"type": "array", "items": scalar}]},
    }
    whole = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A scoring job's configuration",
        "description": "What --config takes: flags of scoring-job without their dashes.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _properties(flag: Flag) -> Iterator[tuple[str, dict[str, Any]]]:
    if not flag.in_file:
        return
    form = flag.form
    if isinstance(form, Switch):
        for name, text, default in zip(
            flag.names, (flag.text, form.off_text), (flag.default, not flag.default), strict=False
        ):
            yield name, {"description": text, "default": default, **form.schema()}
        return
    told: dict[str, Any] = {"description": flag.text}
    if flag.default_text:
        told["default"] = form.typed(flag.name, [flag.default_text])
    yield flag.name, {**told, **form.schema()}


def template() -> str:
    """Return the metadata of the Flex Template: its parameters, those that are required first."""
    flags = [flag for flag in parser.flags_of() if flag.in_template]
    # A flag of Beam's, without which every launch would fail.
    image = {
        "name": "sdk_container_image",
        "label": "Worker image",
        "helpText": "The image of the workers, made from the Dockerfile's target worker-cpu or worker-gpu.",
        "paramType": "TEXT",
        "regexes": ["^.+$"],
    }
    whole = {
        "name": "scoring-job",
        "description": "Nightly batch scoring: Parquet shards through a Keras model, back to Parquet. "
        "Paths are in buckets; several inputs are given as one @list.",
        "parameters": [
            *(_parameter(flag) for flag in flags if flag.required),
            image,
            *(_parameter(flag) for flag in flags if not flag.required),
        ],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _parameter(flag: Flag) -> dict[str, Any]:
    form = flag.form
    words = form.words if isinstance(form, Choice) and form.kind == "ENUM" else ()
    return {
        "name": flag.name,
        "label": flag.label or flag.name.replace("_", " ").capitalize(),
        "helpText": flag.template_text or flag.help,
        **({} if flag.required else {"isOptional": True}),
        "paramType": form.kind,
        **({"enumOptions": [{"value": word, "label": word} for word in words]} if words else {}),
        "regexes": [f"^{form.remote_pattern}$"],
        **({"defaultValue": flag.default_text} if flag.default_text else {}),
    }


def written() -> dict[Path, str]:
    """Return the text of each file."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return {PAGE: before + tables() + rest.partition(END)[2], SCHEMA: schema(), TEMPLATE: template()}


def main() -> int:
    """Write the files, or compare them with those that are there; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is old")
    check = arguments.parse_args().check
    code = 0
    for path, text in written().items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name}: it is not what the flags are: run python -m docs.flags")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
