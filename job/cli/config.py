"""The configuration file: the flags of a run as TOML (``--config``), for schedulers.

A key is the name of a flag. Its value is a list for a flag that is repeated or that lists things, and
``true`` for a switch. The table ``[engine]`` holds flags of the engine. The command line overrides the file::

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
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from job import errors, secrets, storage
from job.cli import parser
from job.errors import JobError, PreflightError, UsageError
from job.flags import Flag
from job.forms import Form, Switch, WrongTypeError, scalar
from job.spec import ScoringSpec

ENGINE: Final = "engine"


@contextlib.contextmanager
def merged(argv: Sequence[str], command: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Yield a command line with the flags of its configuration file, if it names one, before its own.

    ``command`` is the parser of the command. If the body raises an error whose message begins with a flag of
    the file, the error is raised again with the file and the line.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    argv, off = _switched_off(argv)
    given, rest = command.parse_known_args(argv)
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
    """Return a command line without ``--switch=false``, and the names of these switches.

    They override the file. ``--switch=true`` becomes ``--switch``. A switch that has an opposite is not among
    them: its opposite overrides it.
    """
    names = {
        flag.name
        for flag in parser.flags_of()
        if isinstance(flag.form, Switch) and flag.in_file and not flag.form.off
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
    """Return the names of the flags on a command line, and of those that contradict them."""
    own = {name for name, value in vars(given).items() if value}
    engines = {arg.partition("=")[0].removeprefix("--") for arg in rest if arg.startswith("--")}
    opposites = {name for flag in parser.flags_of() if own & {*flag.names} for name in flag.names}
    return own | engines | opposites


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
        """Return the job's flags and the engine's, without those that the command line overrides."""
        flags = {name: flag for flag in parser.flags_of() for name in flag.names}
        known = [name for name, flag in flags.items() if flag.in_file]
        for name in self._own:
            if name in flags and not flags[name].in_file:
                raise self._error(name, "goes on the command line, not into a file")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"a flag of the engine goes below [{ENGINE}]"
                raise self._error(name, f"no flag of the job; {hint}")
        own = [
            arg
            for name, value in self._own.items()
            if name not in overridden
            for arg in self._args(name, flags[name].form, value)
        ]
        for name in self._engine:
            if name in flags:
                raise self._error(name, f"a flag of the job; it goes above [{ENGINE}]", table=ENGINE)
        engine = [
            flag
            for name, value in self._engine.items()
            if name not in overridden
            for flag in self._engine_flag(name, value)
        ]
        return own, engine

    def line_of(self, error: JobError, overridden: set[str]) -> str | None:
        """Return file and line of the first flag that an error names, if the flag comes from the file."""
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

    def _args(self, name: str, form: Form, value: Any) -> list[str]:
        with self._telling_of(name):
            texts = form.texts(value)
        return [f"--{name}" if isinstance(form, Switch) else f"--{name}={text}" for text in texts]

    def _engine_flag(self, name: str, value: Any) -> list[str]:
        if isinstance(value, bool):
            return [f"--{name}"] if value else []
        with self._telling_of(name, ENGINE):
            return [f"--{name}={scalar(one)}" for one in (value if isinstance(value, list) else [value])]

    @contextlib.contextmanager
    def _telling_of(self, name: str, table: str = "") -> Iterator[None]:
        """Turn an error of the body about a value's type into one that names its line."""
        try:
            yield
        except WrongTypeError as e:
            told = f"must be {e.wanted}" if e.wanted else f"is no value that --{name} could have"
            raise self._error(name, f"{json.dumps(e.value, default=str)} {told}", table=table) from e

    def _error(self, name: str, text: str, *, table: str = "") -> UsageError:
        return UsageError(f"{self._where(name, table)}: {name}: {text}")

    def _where(self, name: str, table: str) -> str:
        """Return the file and the line of a key; Python's parser does not give the line."""
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


def rendered(given: argparse.Namespace, spec: ScoringSpec, engine: Sequence[str]) -> str:
    """Return the given flags as a file for ``--config``, and the defaults in force as comments in it.

    Defaults are only comments, because some flags may not be given together.
    """
    lines = []
    for flag in (flag for flag in parser.flags_of() if flag.in_file):
        for name in flag.names:
            if texts := getattr(given, name):
                lines.append(_line(name, flag.form.typed(name, texts)))
            elif name == flag.name and (value := _in_force(flag, spec)):
                lines.append(f"# {_line(name, value)}")
    table = _engine_table(engine)
    return "".join(lines) + (f"\n[{ENGINE}]\n{table}" if table else "")


def _in_force(flag: Flag, spec: ScoringSpec) -> Any:
    """Return the value in force of a flag that is not given; empty if it has none."""
    value = getattr(spec, flag.field, flag.default)
    if isinstance(flag.form, Switch):
        return value
    text = flag.form.write(value)
    return flag.form.typed(flag.name, [text]) if text else ""


def _line(name: str, value: Any) -> str:
    """Return a line of the file. A secret is only a comment, because ``***`` would be read as its value."""
    args = [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    if secrets.flags(args) != args:
        return f"# {name} is given, and left out here: it is secret\n"
    return f"{name} = {json.dumps(value, ensure_ascii=False)}\n"


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
