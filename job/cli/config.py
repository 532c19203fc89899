"""A run's flags as a TOML file, for schedulers: ``--config``.

Keys are names of flags; a list stands for a flag that is repeated or that lists things, ``true`` for a
switch. The table ``[engine]`` holds flags of the engine. What the command line gives comes first::

    input = "s3://features/ds={ds}"
    model = "s3://models/flights/@champion"
    output = "s3://predictions/ds={ds}"
    keys = ["flight_id", "carrier"]

    [engine]
    runner = "FlinkRunner"
    flink_master = "flink:8081"
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import difflib
import io
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from job import errors, secrets, storage
from job.cli import parser
from job.cli import values as cli_values
from job.errors import JobError, PreflightError, UsageError
from job.report import json_line
from job.spec import ScoringSpec

ENGINE: Final = "engine"

# Flags that list things, with commas between them; ``input`` is given several times instead.
_LISTS: Final = ("keys", "features", "ignore", "cast", "prediction_columns", "challenger_features")
_REPEATED: Final = ("input",)
_OPPOSITES: Final = {"wait": "no_wait", "no_wait": "wait"}
# Defaults that a spec has in another form.
_UNSPOKEN: Final = {"batch_size": "auto", "wait_for_input": "0s", "notify_on": json_line.NOTIFY_ON[0]}
# They belong to a command line, and a night to the day on which it is scored.
_NOT_HERE: Final = ("config", "print_config", "json", "debug")


@contextlib.contextmanager
def merged(argv: Sequence[str], command: str = "score") -> Iterator[list[str]]:
    """Yield a command line with the flags of its configuration in front, where it has one.

    An error of the body that begins with a flag which comes from the file is raised again with the file and
    the line.

    Raises:
        UsageError: the file cannot be read, or a key is unknown or has no value that a flag could have.
    """
    argv, off = _switched_off(argv)
    given, rest = parser.build(command).parse_known_args(argv)
    paths = list(dict.fromkeys(given.config))
    if not paths:
        yield argv
        return
    if len(paths) > 1:
        raise UsageError(f"--config is given twice, as {paths[0]!r} and {paths[1]!r}; give it once")
    file = _File(paths[0])
    mine = _given(given, rest) | off
    own, engine = file.flags(mine)
    secrets.learn([*own, *engine])
    try:
        yield [*own, *argv, *engine]
    except (UsageError, PreflightError) as e:
        if (where := file.line_of(e, mine)) is None:
            raise
        raise type(e)(f"{where}: {e}") from e


def _switched_off(argv: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return a command line without ``--switch=false``, and the names of those that it overrides in a file.

    ``--switch=true`` becomes the switch. One that has an opposite is overridden by that.
    """
    names = {
        action.dest
        for action in parser.build()._actions
        if action.nargs == 0 and action.dest not in (*_NOT_HERE, *_OPPOSITES, "help")
    }
    left: list[str] = []
    off = set()
    for arg in argv:
        name, _, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in names and value == "false":
            off.add(name)
        else:
            is_on = arg.startswith("--") and name in names and value == "true"
            left.append(f"--{name}" if is_on else arg)
    for name in sorted(off):
        if f"--{name}" in left:
            raise UsageError(f"--{name} is given twice, as true and false; give it once")
    return left, off


def _given(given: argparse.Namespace, rest: Sequence[str]) -> set[str]:
    """Return the names of the flags that a command line gives, and of those that they exclude."""
    own = {name for name, value in vars(given).items() if value}
    engines = {arg.partition("=")[0].removeprefix("--") for arg in rest if arg.startswith("--")}
    return own | engines | {_OPPOSITES[name] for name in own & _OPPOSITES.keys()}


class _File:
    def __init__(self, path: str) -> None:
        self._path = path
        with errors.of_place(f"--config={path}: "):
            content = storage.read_bytes(storage.absolute(path)) if path else None
        if content is None:
            raise UsageError(f"--config={path}: no such file")
        try:
            self._text = content.decode()
            read = tomllib.loads(self._text)
        except UnicodeDecodeError as e:
            raise UsageError(f"{path}: no TOML: {e}") from e
        except tomllib.TOMLDecodeError as e:
            reason, _, where = str(e).partition(" (at ")
            line = re.match(r"line (\d+)", where)
            number = line[1] if line else len(self._text.splitlines())
            raise UsageError(f"{path}:{number}: no TOML: {reason}") from e
        self._engine = read.pop(ENGINE, {})
        self._own = read
        if not isinstance(self._engine, dict):
            raise self._error(ENGINE, f"must be a table, [{ENGINE}]")

    def flags(self, overridden: set[str]) -> tuple[list[str], list[str]]:
        """Return the flags of ours and of the engine, less those that the command line overrides."""
        actions = {action.dest: action for action in parser.build()._actions}
        known = [name for name in actions if name not in (*_NOT_HERE, "help")]
        for name in self._own:
            if name not in known:
                raise self._unknown(name, known)
        own = [
            flag
            for name, value in self._own.items()
            if name not in overridden
            for flag in self._flag(name, value, is_switch=actions[name].nargs == 0)
        ]
        for name in self._engine:
            if name in actions:
                raise self._error(name, f"a flag of the job; it goes above [{ENGINE}]", table=ENGINE)
        engine = [
            flag
            for name, value in self._engine.items()
            if name not in overridden
            for flag in self._engine_flag(name, value)
        ]
        return own, engine

    def line_of(self, error: JobError, overridden: set[str]) -> str | None:
        """Return the line of the flag that an error begins with, or else names first, if it is from here."""
        text = str(error)
        if not re.match(r"(unknown flag )?--\w", text):
            return None
        for name in re.findall(r"--([A-Za-z_]\w*)", text):
            if name in overridden or name == "help":
                break
            for table, keys in (("", self._own), (ENGINE, self._engine)):
                if name in keys:
                    return self._where(name, table)
        return None

    def _flag(self, name: str, value: Any, *, is_switch: bool) -> list[str]:
        if is_switch:
            if not isinstance(value, bool):
                raise self._error(name, f"{_told(value)} must be true or false")
            return [f"--{name}"] if value else []
        if name in _REPEATED and isinstance(value, list):
            return [f"--{name}={self._text_of(name, one)}" for one in value]
        if name == "cast" and isinstance(value, dict):
            value = [f"{column}={self._text_of(name, dtype)}" for column, dtype in value.items()]
        if name in _LISTS and isinstance(value, list):
            # An empty one is a flag that is left out.
            return value and [f"--{name}={_joined([self._text_of(name, one) for one in value])}"]
        return [f"--{name}={self._text_of(name, value)}"]

    def _engine_flag(self, name: str, value: Any) -> list[str]:
        if isinstance(value, bool):
            return [f"--{name}"] if value else []
        values = value if isinstance(value, list) else [value]
        return [f"--{name}={self._text_of(name, one, ENGINE)}" for one in values]

    def _text_of(self, name: str, value: Any, table: str = "") -> str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, datetime.date)):
            raise self._error(name, f"{_told(value)} is no value that --{name} could have", table=table)
        return str(value)

    def _unknown(self, name: str, known: Sequence[str]) -> UsageError:
        near = difflib.get_close_matches(name, known, n=1)
        if name in _NOT_HERE:
            return self._error(name, "goes on the command line, not into a file")
        hint = f"did you mean {near[0]}?" if near else f"a flag of the engine goes below [{ENGINE}]"
        return self._error(name, f"no flag of the job; {hint}")

    def _error(self, name: str, text: str, *, table: str = "") -> UsageError:
        return UsageError(f"{self._where(name, table)}: {name}: {text}")

    def _where(self, name: str, table: str) -> str:
        """Return the file, and the line of a key, which the parser of TOML does not tell."""
        inside = ""
        key = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*[=.]""")
        for number, line in enumerate(self._text.splitlines(), 1):
            if found := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
                inside = found[1]
                if inside.strip("\"'") == name and not table:
                    return f"{self._path}:{number}"
            elif inside == table and key.match(line):
                return f"{self._path}:{number}"
        return self._path


def _told(value: Any) -> str:
    return json.dumps(value, default=str)


def _joined(items: Sequence[str]) -> str:
    """Return items with commas between them, as flags list them; one with a comma or a blank is quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(items)
    return text.getvalue() if items else ""


def rendered(given: argparse.Namespace, spec: ScoringSpec, engine: Sequence[str]) -> str:
    """Return the flags that are given as a file that ``--config`` reads, and as comments what else holds.

    A default is no key there, for some flags exclude each other when they are given.
    """
    lines = []
    for action in parser.build()._actions:
        name = action.dest
        if name in (*_NOT_HERE, "help"):
            continue
        if getattr(given, name):
            lines.append(_line(name, action.nargs == 0 or _typed(given, name)))
            continue
        value = getattr(spec, name, None)
        if value is None:
            value = _UNSPOKEN.get(name)
        if isinstance(value, (str, int, float)) and value is not False and value != "":
            lines.append(f"# {_line(name, value)}")
    table = _engine_table(engine)
    return "".join(lines) + (f"\n[{ENGINE}]\n{table}" if table else "")


def _line(name: str, value: Any) -> str:
    """Return a line of the file; of a secret a comment, for ``***`` would be taken for its value."""
    args = [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    if secrets.flags(args) != args:
        return f"# {name} is given, and left out here: it is secret\n"
    return f"{name} = {json.dumps(value, ensure_ascii=False)}\n"


def _typed(given: argparse.Namespace, name: str) -> Any:
    """Return a flag's value as TOML has it; all values of ours are so in JSON's writing too."""
    values = getattr(given, name)
    if name in _REPEATED:
        return values if len(values) > 1 else values[0]
    if name in _LISTS:
        return cli_values.items(given, name)
    text = values[-1]
    is_number = isinstance(cli_values.DEFAULTS.get(name), (int, float)) or name == "batch_size"
    return json.loads(text) if is_number and re.fullmatch(r"[1-9][0-9]*|0\.[0-9]+", text) else text


def _engine_table(args: Sequence[str]) -> str:
    found: dict[str, list[str] | bool] = {}
    name = ""
    for arg in args:
        if arg.startswith("--"):
            name, has_value, value = arg.removeprefix("--").partition("=")
            if has_value:
                _append(found, name, value)
            else:
                found.setdefault(name, True)
        elif name:
            _append(found, name, arg)
    return "".join(
        _line(name, value if isinstance(value, bool) or len(value) > 1 else value[0])
        for name, value in found.items()
    )


def _append(found: dict[str, list[str] | bool], name: str, value: str) -> None:
    before = found.get(name)
    found[name] = [*before, value] if isinstance(before, list) else [value]
