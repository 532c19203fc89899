"""The command line of ``score`` as a frozen, validated :class:`~job.spec.ScoringSpec`.

Our flags are taken out; what is left must be Beam's and is passed on untouched. A flag that
neither knows is an error, because the alternative is a night scored with a setting that
somebody believes to be in force. Beam is imported only when something is left to look up.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final, NoReturn, get_args

from job import quiet
from job.errors import UsageError
from job.spec import Device, IfExists, ScoringSpec

COMPRESSIONS: Final = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")
HELP: Final = "python -m job score --help"

_BUILDER: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_DEFAULTS: Final[Mapping[str, Any]] = {
    field.name: field.default for field in fields(ScoringSpec) if field.default is not MISSING
}

_EPILOG: Final = """\
examples:
  python -m job score --input='features/*.parquet' --model=model.keras \\
      --keys=id --output=predictions
  python -m job score --input=features --model=models.custom_layer:build \\
      --weights=night.weights.h5 --output=predictions --runner=FlinkRunner

Flags of the engine (--runner, --experiments, --temp_location …) are passed on as they are.
What follows a bare -- is passed on unchecked, for options that only a job server knows.

After a crash the same command resumes: finished splits are not scored again.

exit codes:
  0  published, or already published      4  preflight failed (model, schema, shard)
  1  unexpected, or storage failed        5  rows that cannot be scored; nothing published
  2  wrong usage                          6  the output holds another run
  3  no input                             7  the engine cannot be reached
"""


def parse(argv: Sequence[str]) -> tuple[ScoringSpec, tuple[str, ...]]:
    """Return what ``score`` is asked to do, and the flags meant for Beam in their order.

    Everything after a bare ``--`` goes to Beam unchecked.

    Raises:
        UsageError: a flag is unknown, missing, repeated, malformed or at odds with another.
    """
    checked, unchecked = _split_at_dashes(argv)
    given, rest = build_parser().parse_known_args(checked)
    if rest:
        _check_beam_args(rest)
    return _spec(given), (*rest, *unchecked)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of our own flags; values are checked later, in :func:`parse`."""
    parser = _Parser(
        prog="python -m job score",
        description="Score Parquet shards with a Keras model and write the predictions as Parquet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --input=GLOB --model=MODEL --output=FOLDER [flag …]",
    )
    _add_data_flags(parser)
    _add_binding_flags(parser)
    _add_output_flags(parser)
    _add_running_flags(parser)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; see {HELP}")


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    _add(group, "input", "GLOB", "Parquet shards: a glob (in quotes), a folder, or @list.txt; repeatable")
    group = parser.add_argument_group("model")
    _add(group, "model", "MODEL", "x.keras, x.h5, a SavedModel folder, or a builder: package.module:function")
    _add(group, "weights", "FILE", "x.weights.h5 for a model that a function builds")
    _add(group, "model_sha256", "HEX", "refuse the model unless its SHA-256 is this one")
    _switch(group, "trust_model", "run code that is inside the model file; such a file is refused otherwise")


def _add_binding_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("binding", "A name that holds a comma goes in double quotes.")
    _add(group, "features", "COL,…", "feature columns in the model's order; needed only where ambiguous")
    _add(group, "cast", "COL=TYPE,…", "casts of columns that would otherwise be refused")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    _add(group, "output", "FOLDER", "where predictions are published, all or nothing")
    _add(group, "keys", "COL,…", "columns carried to the output unchanged")
    _add(group, "prediction_columns", "COL,…", "names of the predictions (default: the model's output names)")
    _add(group, "if_exists", "|".join(get_args(IfExists)), "what to do when the output holds another run")
    _add(group, "compression", "|".join(COMPRESSIONS), "of the output files")
    _add(group, "row_group_rows", "ROWS", "rows per row group of the output files")


def _add_running_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    _add(group, "batch_size", "ROWS|auto", "rows per predict step (default: auto, which measures)")
    _add(group, "split_rows", "ROWS", "about how many rows are scored as one unit of work")
    _add(group, "device", "|".join(get_args(Device)), "where the model runs")
    _switch(group, "debug", "show tracebacks and everything that TensorFlow and the engine say")


def _add(group: argparse._ArgumentGroup, name: str, metavar: str, text: str) -> None:
    # Appended even where one value is wanted, so that a second one is seen, not swallowed.
    default = _DEFAULTS.get(name)
    shown = f"{text} (default: {default})" if default not in (None, ()) else text
    group.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=shown)


def _switch(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    group.add_argument(f"--{name}", action="store_true", default=_DEFAULTS[name], help=text)


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    args = list(argv)
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _spec(given: argparse.Namespace) -> ScoringSpec:
    _check_required(given)
    model = _one(given, "model")
    spec = ScoringSpec(
        inputs=_inputs(given.input),
        model=model,
        output=_one(given, "output"),
        weights=_weights(_one(given, "weights"), model),
        keys=_columns(given, "keys"),
        features=_columns(given, "features"),
        casts=_casts(given),
        prediction_columns=_columns(given, "prediction_columns"),
        batch_size=_batch_size(_one(given, "batch_size")),
        split_rows=_rows(given, "split_rows"),
        if_exists=_choice(given, "if_exists", get_args(IfExists)),
        model_sha256=_sha256(_one(given, "model_sha256")),
        trust_model=given.trust_model,
        device=_choice(given, "device", get_args(Device)),
        compression=_choice(given, "compression", COMPRESSIONS),
        row_group_rows=_rows(given, "row_group_rows"),
        debug=given.debug,
    )
    _check_no_clash(spec)
    return spec


def _check_required(given: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("input", "model", "output") if not any(getattr(given, name))]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given; see {HELP}")


def _one(given: argparse.Namespace, name: str) -> Any:
    values = list(dict.fromkeys(getattr(given, name)))
    if len(values) > 1:
        raise UsageError(f"--{name} is given twice, as {values[0]!r} and {values[1]!r}; give it once")
    if values == [""]:
        raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    return values[0] if values else _DEFAULTS.get(name)


def _inputs(values: Sequence[str]) -> tuple[str, ...]:
    if not all(values):
        raise UsageError("--input= is empty; give a glob, a folder or @list.txt")
    _refuse_repeats("input", values)
    return tuple(values)


def _weights(weights: str | None, model: str) -> str | None:
    if weights is not None and not _BUILDER.fullmatch(model):
        raise UsageError(
            f"--weights={weights} goes only with --model=package.module:function, not with "
            f"--model={model}, which holds its own weights; leave --weights out"
        )
    return weights


def _items(given: argparse.Namespace, name: str) -> list[str]:
    text = _one(given, name)
    if not text:
        return []
    try:
        items = [item.strip() for item in next(csv.reader([text], skipinitialspace=True, strict=True))]
    except csv.Error as error:
        raise UsageError(f"--{name}={text}: {error}; a name with a comma goes in double quotes") from error
    if not all(items):
        raise UsageError(f"--{name}={text}: item {items.index('') + 1} of {len(items)} is empty")
    return items


def _columns(given: argparse.Namespace, name: str) -> tuple[str, ...]:
    items = _items(given, name)
    _refuse_repeats(name, items)
    return tuple(items)


def _casts(given: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    casts = []
    for item in _items(given, "cast"):
        column, _, dtype = (part.strip() for part in item.partition("="))
        if not column or not dtype:
            raise UsageError(f"--cast={item}: must be COLUMN=TYPE, as in price=float32")
        casts.append((column, dtype))
    _refuse_repeats("cast", [column for column, _ in casts])
    return tuple(casts)


def _refuse_repeats(name: str, items: Iterable[str]) -> None:
    repeated = [item for item, times in Counter(items).items() if times > 1]
    if repeated:
        raise UsageError(f"--{name}: {', '.join(repeated)} is listed more than once; list it once")


def _batch_size(text: str | None) -> int | None:
    if text is None or text == "auto":
        return None
    return _count("batch_size", text, "a whole number of rows from 1, or auto")


def _rows(given: argparse.Namespace, name: str) -> int:
    return _count(name, str(_one(given, name)), "a whole number of rows from 1")


def _count(name: str, text: str, allowed: str) -> int:
    # int() would also take "1_000", " 7 " and other scripts' digits.
    if not re.fullmatch(r"\+?[0-9]+", text) or int(text) < 1:
        raise UsageError(f"--{name}={text}: must be {allowed}")
    return int(text)


def _choice(given: argparse.Namespace, name: str, allowed: Sequence[str]) -> Any:
    value = _one(given, name)
    if value not in allowed:
        raise UsageError(f"--{name}={value}: must be one of {', '.join(allowed)}")
    return value


def _sha256(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise UsageError(f"--model_sha256={text}: must be 64 hexadecimal digits, as sha256sum prints them")
    return text.lower() if text else None


def _check_no_clash(spec: ScoringSpec) -> None:
    both = [name for name in spec.prediction_columns if name in spec.keys]
    if both:
        raise UsageError(f"--prediction_columns={','.join(both)}: also in --keys; choose another name")


def _check_beam_args(args: list[str]) -> None:
    beam = _beam_parser()
    unknown = beam.parse_known_args(args)[1]
    flag = next((arg for arg in unknown if arg.startswith("-")), None)
    if unknown and flag is None:
        raise UsageError(
            f"{unknown[0]!r} belongs to no flag; put a glob in quotes so that the shell leaves it alone, "
            "and repeat --input for several"
        )
    if flag is None:
        return
    name = flag.partition("=")[0]
    # Ours come first, so that they win where Beam has an equally near one.
    known = [*build_parser()._option_string_actions, *beam._option_string_actions]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see {HELP}, or pass it unchecked after a bare --"
    raise UsageError(f"unknown flag {name}; {hint}")


def _beam_parser() -> argparse.ArgumentParser:
    with quiet.imports():
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    class BeamParser(_BeamArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message.removeprefix('argument ')} (a flag of the engine)")

    # "resolve", because a subclass that is defined twice may be registered twice.
    settings = {"allow_abbrev": False, "add_help": False, "conflict_handler": "resolve"}
    parser: argparse.ArgumentParser = BeamParser(**settings)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser
