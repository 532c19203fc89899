"""The values that rooms hand to each other. No I/O, no engine, no Keras, no Arrow tables.

* **shard**: one Parquet file of features.
* **split**: a run of whole row groups of one shard; it is read, scored and written in one place.
* **receipt**: what one finished split did; a split with a receipt is never scored again.
* **run**: one set of shards, one model, one set of options; its id is a digest of these.

Everything here is frozen and picklable, so it can cross any engine. What there is one of for every shard
has slots, because a run may have a million.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["auto", "cpu", "gpu"]
IfExists = Literal["fail", "keep", "replace"]
OnBadRow = Literal["reject", "fail"]
OnBadShard = Literal["fail", "reject"]
OnNonfinite = Literal["reject", "keep", "fail"]
ModelSharing = Literal["process", "machine"]


@dataclass(frozen=True)
class StoreOptions:
    """How object stores are asked, beyond what their own environment variables and files say.

    ``requester_pays`` is the project that pays for requests to Cloud Storage, anything in S3; empty where
    the bucket's owner pays. ``kms_key`` encrypts what is written; empty leaves that to the bucket.
    """

    requester_pays: str = ""
    kms_key: str = ""


NO_OPTIONS = StoreOptions()


@dataclass(frozen=True)
class Gates:
    """What a night must be like to be published; the same night by other gates is the same run.

    ``limits`` are those that somebody asked for, by the names in ``job.gates``. ``baselines`` are the folders
    where the last good night may be, the latest first; none where it is the one that the output holds.
    """

    limits: tuple[tuple[str, Any], ...] = ()
    baselines: tuple[str, ...] = ()

    def limit(self, name: str) -> Any:
        """Return a limit, ``None`` where nobody asked for it."""
        return dict(self.limits).get(name)


@dataclass(frozen=True)
class ScoringSpec:
    """What a person asked for, validated. ``batch_size`` is rows; ``None`` means ``auto``.

    ``ds`` is the night, as in ``2026-11-25``; empty where no path has a date in it and nobody gave one.
    ``output_template`` is the output with its placeholders, see ``job.shards.dates``. ``input_marker`` is
    the name
    of a file that says that an input folder is complete. ``challenger`` is a second model, which has columns
    of its own in the same files.
    """

    inputs: tuple[str, ...]
    model: str
    output: str
    weights: str | None = None
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    casts: tuple[tuple[str, str], ...] = ()
    prediction_columns: tuple[str, ...] = ()
    batch_size: int | None = None
    split_rows: int = 2_000_000
    on_bad_row: OnBadRow = "reject"
    on_null: str = "reject"
    on_nonfinite: OnNonfinite = "reject"
    on_nonfinite_prediction: OnNonfinite = "reject"
    on_bad_shard: OnBadShard = "fail"
    max_rejected: float = 0.01
    min_rows: int | None = None
    max_rows_change: float | None = None
    max_psi: tuple[tuple[str, float], ...] = ()
    golden: str | None = None
    golden_rtol: float = 1e-5
    golden_atol: float = 1e-6
    if_exists: IfExists = "fail"
    model_sha256: str | None = None
    signature: str = ""
    challenger: str | None = None
    challenger_weights: str | None = None
    challenger_sha256: str | None = None
    challenger_signature: str = ""
    challenger_features: tuple[str, ...] = ()
    trust_model: bool = False
    model_sharing: ModelSharing = "process"
    device: Device = "auto"
    compression: str = "zstd"
    row_group_rows: int = 262_144
    requester_pays: str = ""
    kms_key: str = ""
    ds: str = ""
    timezone: str = "UTC"
    wait_for_input_s: float = 0.0
    input_marker: str = ""
    output_template: str = ""
    wait: bool = True
    debug: bool = False

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

    ``name`` is also the output file, relative to the output folder, without
    ``.parquet``. ``first_row`` is the shard's row number of the split's first row. ``refused`` says why all
    its rows are to be rejected: the shard does not fit the model, or has no footer that can be read, and then
    no row groups and no rows either. It is empty for a split that is to be scored.
    """

    name: str
    shard: Shard
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    refused: str = ""


# Paths that a builder read, with digests; those of folders, which it listed, end with "/".
Reads = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ModelReference:
    """Where a model comes from and how far it is trusted. ``digest`` is a SHA-256 in hex.

    ``backend`` is what Keras is to compute with, in every process of a run. ``signature`` is the one of a
    SavedModel's that is asked for by name, empty where nobody asked. ``reads`` is what its builder read when
    it was loaded, which is known after that: it makes no other model of it.
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
        """Return what tells apart models that may give other bits."""
        parts = [self.digest, *([] if self.backend == "tensorflow" else [self.backend])]
        if self.signature:
            parts.append(f"signature={self.signature}")
        if self.reads:
            parts.append(f"reads={json.dumps(self.reads)}")
        return " ".join(parts)


@dataclass(frozen=True)
class ChallengerRun:
    """The second model of a run; ``signature`` and ``scoring`` are of it as those of ``Run`` of the first."""

    model: ModelReference
    signature: str
    scoring: str


@dataclass(frozen=True)
class Run:
    """One run, as every worker and the publishing step know it.

    ``started_unix_s`` is when the launching process began. ``versions`` are those of the packages on the
    launcher. ``signature`` is the model's inputs and outputs as text. ``scoring`` is, as JSON, what is
    needed to score a row again. ``lease`` is what the launcher wrote into the output's lease, empty where no
    other machine could hold it; ``handed`` says that the job has it when the launcher has ended. ``stores``
    says how object stores are asked. ``ds`` is the night, empty where none was asked for, ``gates`` what it
    must be like to be published.
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
        """Return the share of the run's rows that so many rejected ones are, from 0 to 1.

        ``unreadable`` shards have no footer that would tell their rows; each counts as one of average size.
        """
        unknown = unreadable * self.rows / max(1, self.shards - unreadable)
        whole = self.rows + unknown
        return (rows + unknown) / whole if whole else float(unreadable > 0)


@dataclass(frozen=True, slots=True)
class ChallengerWork:
    """What the challenger did in a split.

    ``failed`` rows are published with null in its columns: ``reasons`` counts them, ``error`` is the first's.
    ``work_s`` is seconds of binding and predicting; ``load`` and ``load_s`` are as in ``Receipt``, empty and
    0 where it could not be loaded; so is ``weights_digest``.
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

    ``*_s`` are seconds of work, summed over the threads that did it. ``load`` identifies
    one loading of the model in one process; the number of distinct ones is the number
    of loads. ``weights_digest`` is a SHA-256 of the weights where a builder made them.
    ``first_batch_unix_s`` is when the split's first batch had been predicted, 0 where there was none.
    ``boot_id`` is the writing machine's, see ``storage.boot_id``. ``reused`` says that the run at hand found
    the receipt and did not score the split. ``rejects`` is the attempt's file of rejected rows, empty where
    there are none, ``reject_reasons`` counts them by reason, and ``first_reject`` tells of the first of them.
    ``rejects_left_out`` are the shard's columns that this file lacks, since they cannot be written.
    ``refused`` says why every row was rejected, because of the shard; then ``attempt`` is empty.
    ``nonfinite_rows`` are rows that were kept with a prediction that is not finite. ``memory_rows`` is the
    smallest batch that did not fit the memory so far, 0 where all did. ``histograms`` tells, by prediction
    column, how the predictions that were written are distributed, see ``job.gates.histograms``.
    ``golden_rows``
    were predicted rightly before the loaded model scored, see ``job.scoring.golden``. By the end of the split
    ``again_rows`` had been predicted again, beside others and alone, and at most ``again_apart`` away, see
    ``job.model.independence``.
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
