"""The flags of ``score`` by themselves: names, groups, help. Values are looked at in ``job.cli.options``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NoReturn, get_args

from job import environment
from job.cli import usage, values
from job.cli.values import DEFAULTS
from job.errors import UsageError
from job.spec import Device, IfExists, ModelSharing, OnBadRow, OnBadShard, OnNonfinite

COMPRESSIONS: Final = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")

_DESCRIPTIONS: Final = {
    "score": "Score Parquet shards with a Keras model and write the predictions as Parquet.",
    "backfill": "Score each night from --start to --end by the flags of score; skip those that are there.",
    "plan": "Look, with the flags of score, at shards, model and output; score a sample; write nothing.",
    "doctor": "Look, with the flags of score, at its engine and paths; 0 if all is well, else 7.",
}

_EPILOG: Final = """\
examples:
  {program} score --input='features/*.parquet' --model=model.keras \\
      --keys=id --output=predictions
  {program} score --config=night.toml --ds=2026-11-25
  {program} score --input=features --model=models.custom_layer:build \\
      --weights=night.weights.h5 --output=predictions --runner=FlinkRunner

Flags of the engine (--runner, --experiments, --temp_location …) are passed on as they are.
What follows a bare -- is passed on unchecked, for options that only a job server knows.

After a crash the same command resumes: finished splits are not scored again.

exit codes:
  0  published, or already published      4  preflight failed (model, schema, shard)
  1  unexpected, or storage failed        5  too many rejects, or a gate refused; nothing published
  2  wrong usage                          6  the output holds another run
  3  no input                             7  the engine cannot be reached
"""


def build(command: str = "score") -> argparse.ArgumentParser:
    """Return the parser of our own flags; values are checked later, in :func:`parse`."""
    parser = Parser(
        prog=f"{environment.program()} {command}",
        description=_DESCRIPTIONS[command],
        epilog=_EPILOG.format(program=environment.program()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --input=GLOB --model=MODEL --output=FOLDER [flag …]",
    )
    _add_data_flags(parser)
    _add_night_flags(parser, command)
    _add_binding_flags(parser)
    _add_reject_flags(parser)
    _add_gate_flags(parser)
    _add_golden_flags(parser)
    _add_challenger_flags(parser)
    _add_output_flags(parser)
    _add_running_flags(parser)
    _add_notification_flags(parser)
    return parser


def help_of(command: str = "score") -> str:
    """Return what somebody types to be told more."""
    return f"{environment.program()} {command} --help"


class Parser(argparse.ArgumentParser):
    """Raises what is wrong as a ``UsageError``, where argparse would print it and exit."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the values of all arguments.

        Raises:
            UsageError: one is missing, malformed or unknown.
        """
        given, rest = self.parse_known_args(args, namespace)
        if not rest:
            return given
        usage.check_lists(self, args, rest)
        flag = next((arg for arg in rest if arg.startswith("-")), None)
        if flag is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        raise usage.unknown_flag(flag, self._option_string_actions, f"see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` with the command that tells more."""
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    _add(group, "input", "GLOB", "Parquet shards: a glob (in quotes), a folder, or @list.txt; repeatable")
    group = parser.add_argument_group("model")
    _add(
        group,
        "model",
        "MODEL",
        "x.keras, x.h5, a folder (SavedModel, zipped=False), or a builder: package.module:function",
    )
    _add(
        group,
        "weights",
        "FILE",
        "for a model that a function builds: x.weights.h5, x.weights.json, x.keras or x.h5",
    )
    _add(group, "model_sha256", "HEX", "refuse the model unless its SHA-256 is this one")
    _add(group, "signature", "NAME", "the signature of a SavedModel that is scored, where it has several")
    _switch(group, "trust_model", "run code that is inside the model file; such a file is refused otherwise")


def _add_night_flags(parser: argparse.ArgumentParser, command: str) -> None:
    told = "The paths above and --output may hold {ds}, {ds_nodash}, {ds-1} or {ds:%Y/%m/%d}."
    group = parser.add_argument_group("night", told)
    _add(group, "ds", "DATE", "the night, as in 2026-11-25 (default: yesterday)")
    _add(group, "timezone", "ZONE", "where it is yesterday, as in Europe/Berlin")
    _add(group, "wait_for_input", "TIME", "wait so long for input that is not there yet, as in 90m or 2h")
    _add(group, "input_marker", "NAME", "a file that a complete input folder holds, as in _SUCCESS")
    _add(group, "config", "FILE", "a TOML file of flags; those of the command line come first")
    if command == "backfill":
        _add(group, "start", "DATE", "the first night of a backfill")
        _add(group, "end", "DATE", "the last one (default: yesterday)")
        _add(group, "parallel", "NIGHTS|auto", "nights that go through the engine together (default: auto)")
    _switch(group, "print_config", "print all flags that are in force, as such a file, and end")


def _add_binding_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("binding", "A name that holds a comma goes in double quotes.")
    _add(group, "features", "COL,…", "feature columns in the model's order; needed only where ambiguous")
    _add(group, "ignore", "COL,…", "columns that are no features, such as a label, though they could be")
    _add(group, "cast", "COL=TYPE,…", "casts of columns that would otherwise be refused")


def _add_reject_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bad rows")
    _add(group, "on_bad_row", "|".join(get_args(OnBadRow)), "what to do with a row that cannot be scored")
    _add(group, "on_null", "|".join((*values.NULL_POLICIES, "fill=VALUE")), "what to do with a null feature")
    _add(
        group,
        "on_nonfinite",
        "|".join(get_args(OnNonfinite)),
        "what to do with a feature that is NaN or infinite",
    )
    _add(group, "on_nonfinite_prediction", "|".join(get_args(OnNonfinite)), "the same, of a prediction")
    _add(
        group,
        "on_bad_shard",
        "|".join(get_args(OnBadShard)),
        "what to do with a shard that cannot be read or bound",
    )
    _add(group, "max_rejected", "SHARE", "nothing is published if more of the rows are rejected")


def _add_gate_flags(parser: argparse.ArgumentParser) -> None:
    told = (
        f"What is refused stays in staging; `{environment.program()} publish` releases it. See docs/gates.md."
    )
    group = parser.add_argument_group("gates before publishing", told)
    _add(group, "min_rows", "ROWS", "nothing is published if fewer rows are scored")
    _add(group, "max_rows_change", "SHARE", "nor if their number differs so much from the last good night's")
    _add(group, "max_psi", "X|COL=X,…", "nor if the predictions' distribution does, by its PSI, as in 0.25")


def _add_golden_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "golden rows", f"`{environment.program()} golden` makes such a file of a night that is right."
    )
    told = "Parquet rows with known predictions, checked after each loading of the model, before it scores"
    _add(group, "golden", "FILE", told)
    _add(group, "golden_rtol", "X", "a prediction may differ by this share of itself")
    _add(group, "golden_atol", "X", "and by this much, times their median magnitude if that is above 1")


def _add_challenger_flags(parser: argparse.ArgumentParser) -> None:
    told = "A second model, scored in the same pass into columns of its own. See docs/challenger.md."
    group = parser.add_argument_group("challenger", told)
    _add(group, "challenger", "MODEL", "predicts each scored row as well, into challenger_… columns")
    _add(group, "challenger_weights", "FILE", "the same, for a challenger that a function builds")
    _add(group, "challenger_sha256", "HEX", "refuse the challenger unless its SHA-256 is this one")
    _add(group, "challenger_signature", "NAME", "the challenger's, where it is a SavedModel with several")
    _add(group, "challenger_features", "COL,…", "its feature columns, where they are not those of --features")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    _add(group, "output", "FOLDER", "where predictions are published, all or nothing")
    _add(group, "keys", "COL,…", "columns carried to the output unchanged")
    _add(group, "prediction_columns", "COL,…", "names of the predictions (default: the model's output names)")
    _add(
        group,
        "if_exists",
        "|".join(get_args(IfExists)),
        "what to do when another run's night is there",
    )
    _add(group, "compression", "|".join(COMPRESSIONS), "of the output files")
    _add(group, "row_group_rows", "ROWS", "rows per row group of the output files")


def _add_running_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    _add(group, "batch_size", "ROWS|auto", "rows per predict step (default: auto, which measures)")
    _add(group, "split_rows", "ROWS", "about how many rows are scored as one unit of work")
    _add(group, "model_sharing", "|".join(get_args(ModelSharing)), "who shares one copy of the model")
    _add(group, "device", "|".join(get_args(Device)), "where the model runs")
    _add(group, "requester_pays", "PROJECT", "pay for requests to buckets that ask for it (S3: any word)")
    _add(group, "kms_key", "KEY", "encrypt what is written to a bucket with this key")
    _switch(group, "wait", "wait for the night to be published (default); Ctrl-C then cancels the job")
    group.add_argument(
        "--no_wait", action="store_true", help="submit the job, which publishes by itself, and end"
    )
    _switch(group, "debug", "show tracebacks and everything that TensorFlow and the engine say")


def _add_notification_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("notifications")
    _switch(group, "json", "print one JSON line on how it ended, whatever happens, and nothing else")
    _add(
        group,
        "notify_url",
        "URL",
        "post the same to this webhook (better: SCORING_JOB_NOTIFY_URL in the environment)",
    )
    _add(group, "notify_on", "always|failure", "when to post (default: always)")


def _add(group: argparse._ArgumentGroup, name: str, metavar: str, text: str) -> None:
    # Appended even where one value is wanted, so that a second one is seen, not swallowed.
    default = DEFAULTS.get(name)
    shown = f"{text} (default: {default})" if default not in (None, (), "") else text
    group.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=shown)


def _switch(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    group.add_argument(f"--{name}", action="store_true", help=text)
