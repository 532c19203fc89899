"""The command line of ``score`` as a frozen, validated :class:`~job.spec.ScoringSpec`.

Our flags are taken out; what is left must be Beam's and is passed on untouched. A flag that
neither knows is an error, because the alternative is a night scored with a setting that
somebody believes to be in force. Beam is imported only when something is left to look up.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Final, NoReturn, get_args

from job import clusters, flags, quiet
from job.errors import UsageError
from job.flags import DEFAULTS
from job.spec import Device, IfExists, ModelSharing, OnBadRow, OnBadShard, OnNonfinite, ScoringSpec

COMPRESSIONS: Final = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")
HELP: Final = "python -m job score --help"

_DESCRIPTIONS: Final = {
    "score": "Score Parquet shards with a Keras model and write the predictions as Parquet.",
    "doctor": "Look, with the flags of score, at its engine and paths; 0 if all is well, else 7.",
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


def build_parser(command: str = "score") -> argparse.ArgumentParser:
    """Return the parser of our own flags; values are checked later, in :func:`parse`."""
    parser = Parser(
        prog=f"python -m job {command}",
        description=_DESCRIPTIONS[command],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --input=GLOB --model=MODEL --output=FOLDER [flag …]",
    )
    _add_data_flags(parser)
    _add_binding_flags(parser)
    _add_reject_flags(parser)
    _add_output_flags(parser)
    _add_running_flags(parser)
    return parser


class Parser(argparse.ArgumentParser):
    """Raises what is wrong as a ``UsageError``, where argparse would print it and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` with the command that tells more."""
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


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


def _add_reject_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bad rows")
    _add(group, "on_bad_row", "|".join(get_args(OnBadRow)), "what to do with a row that cannot be scored")
    _add(group, "on_null", "|".join((*flags.NULL_POLICIES, "fill=VALUE")), "what to do with a null feature")
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
    _add(group, "model_sharing", "|".join(get_args(ModelSharing)), "who shares one copy of the model")
    _add(group, "device", "|".join(get_args(Device)), "where the model runs")
    _add(group, "requester_pays", "PROJECT", "pay for requests to buckets that ask for it (S3: any word)")
    _add(group, "kms_key", "KEY", "encrypt what is written to a bucket with this key")
    _switch(group, "wait", "wait for the night to be published (default); Ctrl-C then cancels the job")
    group.add_argument(
        "--no_wait", action="store_true", help="submit the job, which publishes by itself, and end"
    )
    _switch(group, "debug", "show tracebacks and everything that TensorFlow and the engine say")


def _add(group: argparse._ArgumentGroup, name: str, metavar: str, text: str) -> None:
    # Appended even where one value is wanted, so that a second one is seen, not swallowed.
    default = DEFAULTS.get(name)
    shown = f"{text} (default: {default})" if default not in (None, (), "") else text
    group.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=shown)


def _switch(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    group.add_argument(f"--{name}", action="store_true", help=text)


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    args = list(argv)
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _spec(given: argparse.Namespace) -> ScoringSpec:
    _check_required(given)
    if given.wait and given.no_wait:
        raise UsageError("--wait and --no_wait are both given; leave one of them out")
    model = flags.one(given, "model")
    spec = ScoringSpec(
        inputs=flags.inputs(given.input),
        model=model,
        output=flags.one(given, "output"),
        weights=flags.weights(flags.one(given, "weights"), model),
        keys=flags.columns(given, "keys"),
        features=flags.columns(given, "features"),
        casts=flags.casts(given),
        prediction_columns=flags.columns(given, "prediction_columns"),
        batch_size=flags.batch_size(flags.one(given, "batch_size")),
        split_rows=flags.count_of_rows(given, "split_rows"),
        on_bad_row=flags.choice(given, "on_bad_row", get_args(OnBadRow)),
        on_null=(null_policy := flags.on_null(given)),
        on_nonfinite=flags.on_nonfinite(given, null_policy),
        on_nonfinite_prediction=flags.choice(given, "on_nonfinite_prediction", get_args(OnNonfinite)),
        on_bad_shard=flags.choice(given, "on_bad_shard", get_args(OnBadShard)),
        max_rejected=flags.share(given, "max_rejected"),
        if_exists=flags.choice(given, "if_exists", get_args(IfExists)),
        model_sha256=flags.sha256(flags.one(given, "model_sha256")),
        trust_model=given.trust_model,
        model_sharing=flags.choice(given, "model_sharing", get_args(ModelSharing)),
        device=flags.choice(given, "device", get_args(Device)),
        compression=flags.choice(given, "compression", COMPRESSIONS),
        row_group_rows=flags.count_of_rows(given, "row_group_rows"),
        requester_pays=flags.one(given, "requester_pays"),
        kms_key=flags.one(given, "kms_key"),
        wait=not given.no_wait,
        debug=given.debug,
    )
    _check_no_clash(spec)
    return spec


def _check_required(given: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("input", "model", "output") if not any(getattr(given, name))]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given; see {HELP}")


def _check_no_clash(spec: ScoringSpec) -> None:
    both = [name for name in spec.prediction_columns if name in spec.keys]
    if both:
        raise UsageError(f"--prediction_columns={','.join(both)}: also in --keys; choose another name")


def _check_beam_args(args: list[str]) -> None:
    if any(arg.startswith("--dask") for arg in args):
        with quiet.imports():
            # It is not among Beam's own flags before that.
            clusters.flags()
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
