"""The flags of a night, and the values that packages hand to each other. No I/O, no engine, no Keras.

* **shard**: one Parquet file of features.
* **split**: a run of whole row groups of one shard; it is read, scored and written in one place.
* **receipt**: what one finished split did; a split with a receipt is never scored again.
* **run**: one set of shards, one model, one set of options; its id is a digest of these.

Everything here is frozen and picklable, so it can cross any engine. Classes with an object for each shard or
split have slots, because a run may have a million of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, get_args

from job import forms
from job.flags import Flag, Group, RunId

Device = Literal["auto", "cpu", "gpu"]
IfExists = Literal["fail", "keep", "replace"]
OnBadRow = Literal["reject", "fail"]
OnBadShard = Literal["fail", "reject"]
OnNonfinite = Literal["reject", "keep", "fail"]
ModelSharing = Literal["process", "machine"]
COMPRESSIONS: Final = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")


@dataclass(frozen=True)
class StoreOptions:
    """Options for object stores, in addition to the stores' own environment variables and files.

    ``requester_pays`` is the project that pays for requests to Cloud Storage; in S3 any text will do. It is
    empty where the bucket's owner pays. ``kms_key`` encrypts what is written; if it is empty, the bucket
    decides.
    """

    requester_pays: str = ""
    kms_key: str = ""


NO_OPTIONS = StoreOptions()


@dataclass(frozen=True)
class Gates:
    """The conditions for publishing a night. They are no part of the run's identity.

    ``limits`` are those that somebody asked for, by their names in ``job.gates``. ``baselines`` are the
    folders where the last good night may be, the latest first; there are none if it is the night that the
    output holds.
    """

    limits: tuple[tuple[str, Any], ...] = ()
    baselines: tuple[str, ...] = ()

    def limit(self, name: str) -> Any:
        """Return a limit, ``None`` where nobody asked for it."""
        return dict(self.limits).get(name)


@dataclass(frozen=True)
class ScoringSpec:
    """What a person asked for, validated: each field is a flag, declared here and nowhere else.

    ``batch_size`` is rows; ``None`` means ``auto``. ``ds`` is empty where no path has a date in it and nobody
    gave one. ``output_template`` is the output with its placeholders, see ``job.shards.dates``.
    """

    inputs: Annotated[
        tuple[str, ...],
        Flag(
            Group.INPUT,
            "Parquet shards: a glob (in quotes), a folder, or @list.txt; repeatable",
            forms.Inputs(),
            name="input",
            template_text="Parquet shards in a bucket: a glob, a folder, or @list.txt",
        ),
    ]
    model: Annotated[
        str,
        Flag(
            Group.MODEL,
            "x.keras, x.h5, a folder (SavedModel, zipped=False), or a builder: package.module:function",
            forms.Model(),
            more="A glob takes the newest by the numbers in its names, `FOLDER/@ALIAS` the one that this "
            "file names.",
        ),
    ]
    output: Annotated[
        str, Flag(Group.OUTPUT, "where predictions are published, all or nothing", forms.Folder())
    ]

    weights: Annotated[
        str | None,
        Flag(
            Group.MODEL,
            "for a model that a function builds: x.weights.h5, x.weights.json, x.keras or x.h5",
            forms.Path(),
        ),
    ] = None
    model_sha256: Annotated[
        str | None,
        Flag(
            Group.MODEL,
            "refuse the model unless its SHA-256 is this one",
            forms.Digest(),
            more="As `sha256sum model.keras` prints it.",
        ),
    ] = None
    signature: Annotated[
        str,
        Flag(
            Group.MODEL,
            "the signature of a SavedModel that is scored, where it has several",
            forms.Form("NAME"),
            more="Without it `serving_default`; needed where none has that name.",
        ),
    ] = ""
    trust_model: Annotated[
        bool,
        Flag(
            Group.MODEL,
            "run code that is inside the model file; such a file is refused otherwise",
            forms.Switch(),
            more="Without it Lambda layers, `.h5`, and a SavedModel that does more than [compute](trust.md) "
            "are refused. `--trust_model=false` overrides a file.",
        ),
    ] = False

    ds: Annotated[
        str,
        Flag(
            Group.NIGHT,
            "the night, as in 2026-11-25 (default: yesterday)",
            forms.Day(),
            label="Date",
        ),
    ] = ""
    timezone: Annotated[
        str, Flag(Group.NIGHT, "where it is yesterday, as in Europe/Berlin", forms.Zone())
    ] = "UTC"
    wait_for_input_s: Annotated[
        float,
        Flag(
            Group.NIGHT,
            "wait so long for input that is not there yet, as in 90m or 2h",
            forms.Duration(),
            name="wait_for_input",
            more="Then exit 3. A backfill does not wait.",
        ),
    ] = 0.0
    input_marker: Annotated[
        str,
        Flag(
            Group.NIGHT,
            "a file that a complete input folder holds, as in _SUCCESS",
            forms.FileName(),
            more="Without that file a folder is not complete.",
        ),
    ] = ""

    features: Annotated[
        tuple[str, ...],
        Flag(
            Group.BINDING,
            "feature columns in the model's order; needed only where ambiguous",
            forms.Names(),
            run_id=RunId.ALWAYS,
        ),
    ] = ()
    ignore: Annotated[
        tuple[str, ...],
        Flag(
            Group.BINDING,
            "columns that are no features, such as a label, though they could be",
            forms.Names(),
            run_id=RunId.IF_SET,
        ),
    ] = ()
    casts: Annotated[
        tuple[tuple[str, str], ...],
        Flag(
            Group.BINDING,
            "casts of columns that would otherwise be refused",
            forms.Casts(),
            name="cast",
            run_id=RunId.ALWAYS,
        ),
    ] = ()

    on_bad_row: Annotated[
        OnBadRow,
        Flag(
            Group.BAD_ROWS,
            "what to do with a row that cannot be scored",
            forms.Choice.of(get_args(OnBadRow)),
            run_id=RunId.ALWAYS,
            more="`fail` stops at the first of them.",
        ),
    ] = "reject"
    on_null: Annotated[
        str,
        Flag(
            Group.BAD_ROWS,
            "what to do with a null feature",
            forms.Choice.of(("reject", "fail", "nan"), "fill=VALUE"),
            run_id=RunId.ALWAYS,
        ),
    ] = "reject"
    on_nonfinite: Annotated[
        OnNonfinite,
        Flag(
            Group.BAD_ROWS,
            "what to do with a feature that is NaN or infinite",
            forms.Choice.of(get_args(OnNonfinite)),
            run_id=RunId.ALWAYS,
            more="`keep` where `--on_null=nan`.",
        ),
    ] = "reject"
    on_nonfinite_prediction: Annotated[
        OnNonfinite,
        Flag(
            Group.BAD_ROWS,
            "the same, of a prediction",
            forms.Choice.of(get_args(OnNonfinite)),
            run_id=RunId.ALWAYS,
            more="`keep` counts them.",
        ),
    ] = "reject"
    on_bad_shard: Annotated[
        OnBadShard,
        Flag(
            Group.BAD_ROWS,
            "what to do with a shard that cannot be read or bound",
            forms.Choice.of(get_args(OnBadShard)),
            run_id=RunId.ALWAYS,
            more="`reject` sets its rows aside.",
        ),
    ] = "fail"
    max_rejected: Annotated[
        float, Flag(Group.BAD_ROWS, "nothing is published if more of the rows are rejected", forms.Share())
    ] = 0.01

    min_rows: Annotated[
        int | None, Flag(Group.GATES, "nothing is published if fewer rows are scored", forms.Count())
    ] = None
    max_rows_change: Annotated[
        float | None,
        Flag(
            Group.GATES,
            "nor if their number differs so much from the last good night's",
            forms.Number("SHARE"),
        ),
    ] = None
    max_psi: Annotated[
        tuple[tuple[str, float], ...],
        Flag(
            Group.GATES,
            "nor if the predictions' distribution does, by its PSI, as in 0.25",
            forms.Thresholds(),
        ),
    ] = ()

    golden: Annotated[
        str | None,
        Flag(
            Group.GOLDEN,
            "Parquet rows with known predictions, checked after each loading of the model, before it scores",
            forms.Path(),
            label="Golden rows",
        ),
    ] = None
    golden_rtol: Annotated[
        float, Flag(Group.GOLDEN, "a prediction may differ by this share of itself", forms.Number())
    ] = 1e-5
    golden_atol: Annotated[
        float,
        Flag(
            Group.GOLDEN,
            "and by this much, times their median magnitude if that is above 1",
            forms.Number(),
        ),
    ] = 1e-6

    # A second model, whose identity is in the run's id as well.
    challenger: Annotated[
        str | None,
        Flag(Group.CHALLENGER, "predicts each scored row as well, into challenger_… columns", forms.Model()),
    ] = None
    challenger_weights: Annotated[
        str | None,
        Flag(Group.CHALLENGER, "the same, for a challenger that a function builds", forms.Path()),
    ] = None
    challenger_sha256: Annotated[
        str | None,
        Flag(Group.CHALLENGER, "refuse the challenger unless its SHA-256 is this one", forms.Digest()),
    ] = None
    challenger_signature: Annotated[
        str,
        Flag(Group.CHALLENGER, "the challenger's, where it is a SavedModel with several", forms.Form("NAME")),
    ] = ""
    challenger_features: Annotated[
        tuple[str, ...],
        Flag(
            Group.CHALLENGER,
            "its feature columns, where they are not those of --features",
            forms.Names(),
            run_id=RunId.WITH_CHALLENGER,
        ),
    ] = ()

    keys: Annotated[
        tuple[str, ...],
        Flag(Group.OUTPUT, "columns carried to the output unchanged", forms.Names(), run_id=RunId.ALWAYS),
    ] = ()
    prediction_columns: Annotated[
        tuple[str, ...],
        Flag(
            Group.OUTPUT,
            "names of the predictions (default: the model's output names)",
            forms.Names(),
            run_id=RunId.ALWAYS,
        ),
    ] = ()
    if_exists: Annotated[
        IfExists,
        Flag(
            Group.OUTPUT,
            "what to do when another run's night is there",
            forms.Choice.of(get_args(IfExists)),
            more="`keep` leaves it and ends with 0 (`backfill`'s default); `replace` scores aside, then "
            "takes `_SUCCESS` away, exchanges the files and puts it back.",
        ),
    ] = "fail"
    compression: Annotated[
        str, Flag(Group.OUTPUT, "of the output files", forms.Choice.of(COMPRESSIONS), run_id=RunId.ALWAYS)
    ] = "zstd"
    row_group_rows: Annotated[
        int,
        Flag(Group.OUTPUT, "rows per row group of the output files", forms.Count(), run_id=RunId.ALWAYS),
    ] = 262_144

    batch_size: Annotated[
        int | None,
        Flag(
            Group.RUNNING,
            "rows per predict step (default: auto, which measures)",
            forms.Count.or_auto("rows"),
            run_id=RunId.ALWAYS,
            more="It measures on the first rows and remembers.",
        ),
    ] = None
    split_rows: Annotated[
        int,
        Flag(
            Group.RUNNING,
            "about how many rows are scored as one unit of work",
            forms.Count(),
            run_id=RunId.ALWAYS,
            more="Whole row groups.",
        ),
    ] = 2_000_000
    model_sharing: Annotated[
        ModelSharing,
        Flag(
            Group.RUNNING,
            "who shares one copy of the model",
            forms.Choice.of(get_args(ModelSharing)),
            more="`machine`: all worker processes of a machine score with "
            "[one copy](engines.md#one-model-per-process-or-per-machine).",
        ),
    ] = "process"
    device: Annotated[
        Device,
        Flag(
            Group.RUNNING,
            "where the model runs",
            forms.Choice.of(get_args(Device)),
            run_id=RunId.ALWAYS,
            more="`gpu` fails where there is none; [on a GPU](engines.md#gpu-workers-and-jax).",
        ),
    ] = "auto"
    requester_pays: Annotated[
        str,
        Flag(
            Group.RUNNING,
            "pay for requests to buckets that ask for it (S3: any word)",
            forms.Form("PROJECT"),
            more="Every command has it.",
        ),
    ] = ""
    kms_key: Annotated[
        str, Flag(Group.RUNNING, "encrypt what is written to a bucket with this key", forms.Form("KEY"))
    ] = ""
    # A launched template does not wait for its job.
    wait: Annotated[
        bool,
        Flag(
            Group.RUNNING,
            "wait for the night to be published (default); Ctrl-C then cancels the job",
            forms.Switch(off="no_wait", off_text="submit the job, which publishes by itself, and end"),
            in_template=False,
        ),
    ] = True
    debug: Annotated[
        bool,
        Flag(
            Group.RUNNING,
            "show tracebacks and everything that TensorFlow and the engine say",
            forms.Switch(),
            in_file=False,
        ),
    ] = False

    output_template: str = ""

    @property
    def stores(self) -> StoreOptions:
        """Return how object stores are to be asked."""
        return StoreOptions(self.requester_pays, self.kms_key)


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file.

    ``stamp`` changes when the file does (modification time in ns, or an object's
    generation). ``partition`` holds its Hive folders in path order, as written in the
    path after URL-decoding: ``(("ds", "2013-12-01"),)``.
    """

    path: str
    size_bytes: int
    stamp: str
    partition: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """A run of whole row groups of one shard. ``name`` is unique in its run.

    ``name`` is also the output file, relative to the output folder, without ``.parquet``. ``first_row`` is
    the number in the shard of the split's first row. ``refused`` is empty for a split that is to be scored.
    Otherwise it says why all its rows are to be rejected: the shard does not fit the model, or its footer
    cannot be read, and then there are no row groups and no rows either.
    """

    name: str
    shard: Shard
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    refused: str = ""


# The paths that a builder read, with digests. A path with "/" at its end is a folder that it listed.
Reads = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ModelReference:
    """Where a model comes from and how far it is trusted. ``digest`` is a SHA-256 in hex.

    ``backend`` is the backend of Keras in every process of a run. ``signature`` is the name of the
    SavedModel's signature that was asked for, empty if none was. ``reads`` is what a builder read when it
    made the model; it is known only after loading, and two references that differ only in it are equal.
    """

    path: str
    weights: str | None
    trusted: bool
    digest: str
    backend: str = "tensorflow"
    signature: str = ""
    reads: Reads = field(default=(), compare=False)

    @property
    def identity(self) -> str:
        """Return a text that differs for models that may give other bits."""
        parts = [self.digest, *([] if self.backend == "tensorflow" else [self.backend])]
        if self.signature:
            parts.append(f"signature={self.signature}")
        if self.reads:
            parts.append(f"reads={json.dumps(self.reads)}")
        return " ".join(parts)


@dataclass(frozen=True)
class ChallengerRun:
    """The second model of a run; ``signature`` and ``scoring`` are as those of ``Run``, for this model."""

    model: ModelReference
    signature: str
    scoring: str


@dataclass(frozen=True)
class Run:
    """One run, as every worker and the publishing step know it.

    ``started_unix_s`` is when the launching process began. ``versions`` are those of the packages on the
    launcher. ``signature`` is the model's inputs and outputs as text. ``scoring`` is JSON with what is needed
    to score a row again. ``lease`` is the launcher's token in the output's lease, empty where no other
    machine could hold it; ``handed`` says that the job keeps the lease when the launcher has ended.
    ``stores`` are the options for object stores. ``ds`` is the night, empty if there is none, and ``gates``
    are its conditions for publishing.
    """

    run_id: str
    output: str
    model: ModelReference
    signature: str
    shards: int
    splits: int
    rows: int
    max_rejected: float
    replace: bool
    started_unix_s: float
    versions: tuple[tuple[str, str], ...]
    scoring: str = "{}"
    lease: str = ""
    handed: bool = False
    stores: StoreOptions = StoreOptions()
    ds: str = ""
    gates: Gates = Gates()
    challenger: ChallengerRun | None = None

    def share_rejected(self, rows: int, unreadable: int) -> float:
        """Return the share of the run's rows that ``rows`` rejected ones are, from 0 to 1.

        ``unreadable`` is the number of shards without a readable footer; each counts as one of average size.
        """
        unknown = unreadable * self.rows / max(1, self.shards - unreadable)
        whole = self.rows + unknown
        return (rows + unknown) / whole if whole else float(unreadable > 0)


@dataclass(frozen=True, slots=True)
class ChallengerWork:
    """What the challenger did in a split.

    ``failed`` rows are published with null in its columns: ``reasons`` counts them, and ``error`` is that of
    the first one. ``work_s`` is seconds of binding and predicting. ``load``, ``load_s`` and
    ``weights_digest`` are as in ``Receipt``; they are empty and 0 if it could not be loaded.
    """

    failed: int
    reasons: tuple[tuple[str, int], ...]
    error: str
    work_s: float
    load: str
    load_s: float
    weights_digest: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one finished split did; the attempt it names is the one that counts.

    ``*_s`` are seconds of work, summed over the threads that did it. ``load`` identifies one loading of the
    model in one process, so the number of distinct ones is the number of loads. ``weights_digest`` is a
    SHA-256 of weights that a builder made. ``first_batch_unix_s`` is when the split's first batch had been
    predicted, 0 if there was none. ``boot_id`` is the writing machine's, see ``storage.boot_id``. ``reused``
    says that this run found the receipt and did not score the split.

    ``rejects`` is the attempt's file of rejected rows, empty if there are none. ``reject_reasons`` counts
    them by reason, and ``first_reject`` describes the first. ``rejects_left_out`` are the shard's columns
    that this file lacks, since they cannot be written. ``refused`` says why every row was rejected because of
    the shard; then ``attempt`` is empty.

    ``nonfinite_rows`` are rows that were kept although their prediction is not finite. ``memory_rows`` is the
    smallest batch so far that did not fit the memory, 0 if all did. ``histograms`` describes the distribution
    of each prediction column, see ``job.gates.histograms``. ``golden_rows`` is the number of golden rows that
    were predicted as expected before the model scored, see ``job.scoring.golden``. ``again_rows`` is how many
    rows had been predicted again, beside others and alone, by the end of the split, and ``again_apart`` how
    far apart at most, see ``job.model.independence``.
    """

    split: Split
    run_id: str
    attempt: str
    rows_read: int
    rows_scored: int
    rows_rejected: int
    file_bytes: int
    file_sha256: str
    batch_rows: int
    batches: int
    read_s: float
    bind_s: float
    predict_s: float
    write_s: float
    worker: str
    load: str
    load_s: float
    traces: int
    first_batch_unix_s: float
    weights_digest: str
    boot_id: str
    rejects: str = ""
    rejects_bytes: int = 0
    rejects_sha256: str = ""
    reject_reasons: tuple[tuple[str, int], ...] = ()
    rejects_left_out: tuple[str, ...] = ()
    refused: str = ""
    nonfinite_rows: int = 0
    memory_rows: int = 0
    histograms: tuple[tuple[str, str], ...] = ()
    golden_rows: int = 0
    again_rows: int = 0
    again_apart: float = 0.0
    first_reject: str = ""
    challenger: ChallengerWork | None = None
    reused: bool = False
