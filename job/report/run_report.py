"""The report of a run, and of its challenger: counts and times, as JSON, a table and a page.

All counts and times come from receipts, because not every engine keeps Beam's metrics. Names carry their
units. :meth:`RunReport.to_json` is the file ``_report.json``. Its keys are the names of the fields below, and
do not change within :data:`VERSION`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from job.errors import UsageError
from job.gates import gates
from job.gates.gate import Compared
from job.model.signature import Feed, InputSpec, feeds_text
from job.report import page
from job.spec import Receipt, Run
from job.terminal import console

if TYPE_CHECKING:
    from rich.table import Table

VERSION: Final = 1
# A shard smaller than a batch is a batch of its own size, and nobody reads hundreds of sizes.
_MOST_LISTED: Final = 3
_MOST_NAMED: Final = 8
STAGES: Final = ("read", "bind", "predict", "write")
# Fields that reports and receipts have by the same names, and that are summed over receipts.
_SUMS: Final = (
    *("rows_read", "rows_scored", "rows_rejected", "nonfinite_rows", "batches"),
    *(f"{stage}_s" for stage in STAGES),
)


@dataclass(frozen=True)
class ModelLoad:
    """One load of the model in one process, its worker, and the seconds it took."""

    load: str
    worker: str
    load_s: float


@dataclass(frozen=True)
class Fed:
    """A model input and the columns that fed it, in the model's order; ``None`` in ``shape`` is open."""

    input: str
    dtype: str
    shape: tuple[int | None, ...]
    columns: tuple[str, ...]

    @classmethod
    def all_of(cls, told: Sequence[Mapping[str, Any]]) -> tuple[Fed, ...]:
        """Return them as read from JSON."""
        return tuple(
            cls(one["input"], one["dtype"], tuple(one["shape"]), tuple(one["columns"])) for one in told
        )

    @property
    def feed(self) -> Feed:
        """Return it in the form that ``binding`` uses."""
        return Feed(InputSpec(self.input, self.shape, self.dtype), self.columns)


@dataclass(frozen=True)
class RunReport:
    """The figures of one run.

    Counts, loads and seconds of stages are over all splits, also those of earlier commands that were reused.

    Attributes:
        wall_s: seconds of the last command, start-up included.
        first_batch_s: seconds from its start to its first predicted batch; ``None`` if it predicted nothing.
        rows_per_s: rows that the last command scored, divided by ``wall_s``.
        batch_rows: the different batch sizes that were used, ascending.
        read_s: seconds of reading, summed over threads, so more than ``wall_s`` is possible; the same holds
            for ``bind_s``, ``predict_s`` and ``write_s``.
        nonfinite_rows: rows that were kept with a prediction that is not finite.
        memory_rows: the smallest batch that did not fit the memory; 0 if all did.
        compared: the comparison with the last good night; ``None`` in reports of older versions.
        again_rows: rows that were predicted again, beside other rows and alone.
        again_apart: the largest difference between such predictions of a row.
        feeds: the model's inputs with their columns.
        fed_by: how columns were found for inputs: by ``name``, ``features`` or ``position``.
        rejects_left_out: columns that files of rejected rows lack, because they cannot be written.
    """

    run_id: str
    output: str
    model: str
    model_sha256: str
    weights_sha256: tuple[str, ...]
    started_utc: str
    wall_s: float
    first_batch_s: float | None
    rows_per_s: float
    shards: int
    splits: int
    splits_reused: int
    rows_read: int
    rows_scored: int
    rows_rejected: int
    reject_reasons: tuple[tuple[str, int], ...]
    files: int
    files_bytes: int
    loads: tuple[ModelLoad, ...]
    workers: tuple[str, ...]
    batch_rows: tuple[int, ...]
    batches: int
    traces: int
    read_s: float
    bind_s: float
    predict_s: float
    write_s: float
    nonfinite_rows: int = 0
    shards_rejected: int = 0
    memory_rows: int = 0
    compared: Compared | None = None
    golden_checks: int = 0
    challenger: Challenged | None = None
    again_rows: int = 0
    again_apart: float = 0.0
    feeds: tuple[Fed, ...] = ()
    fed_by: str = ""
    rejects_left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        run: Run,
        receipts: Sequence[Receipt],
        *,
        ended_unix_s: float,
        compared: Compared | None = None,
    ) -> RunReport:
        """Add up the receipts of a run, one per split.

        Raises:
            ValueError: two receipts are for the same split, so rows would count twice.
        """
        if len(names := {receipt.split.name for receipt in receipts}) != len(receipts):
            raise ValueError(f"{len(receipts)} receipts for {len(names)} splits in run {run.run_id}")
        fresh = [receipt for receipt in receipts if not receipt.reused]
        # If the clock was set back meanwhile, no time may be negative.
        wall_s = max(0.0, ended_unix_s - run.started_unix_s)
        first_unix_s = min((r.first_batch_unix_s for r in fresh if r.batches), default=None)
        scored_now = sum(receipt.rows_scored for receipt in fresh)
        return cls(
            run_id=run.run_id,
            output=run.output,
            model=run.model.path,
            model_sha256=run.model.digest,
            weights_sha256=_distinct(receipt.weights_digest for receipt in receipts),
            started_utc=datetime.fromtimestamp(run.started_unix_s, UTC).isoformat(timespec="seconds"),
            wall_s=wall_s,
            first_batch_s=None if first_unix_s is None else max(0.0, first_unix_s - run.started_unix_s),
            rows_per_s=scored_now / wall_s if wall_s > 0 else 0.0,
            shards=run.shards,
            splits=len(receipts),
            splits_reused=sum(receipt.reused for receipt in receipts),
            reject_reasons=reasons_of(receipts),
            files=sum(receipt.file_bytes > 0 for receipt in receipts),
            files_bytes=sum(receipt.file_bytes for receipt in receipts),
            loads=_loads(receipts),
            workers=_distinct(receipt.worker for receipt in receipts),
            batch_rows=tuple(sorted({receipt.batch_rows for receipt in receipts if receipt.batches})),
            traces=_traces(receipts),
            shards_rejected=len({receipt.split.shard.path for receipt in receipts if receipt.refused}),
            memory_rows=min((r.memory_rows for r in receipts if r.memory_rows), default=0),
            compared=compared,
            golden_checks=len({receipt.load for receipt in receipts if receipt.golden_rows}),
            challenger=Challenged.of(run, receipts),
            rejects_left_out=_distinct(name for receipt in receipts for name in receipt.rejects_left_out),
            **_again(receipts),
            **_fed(json.loads(run.scoring)),
            **{name: sum(getattr(receipt, name) for receipt in receipts) for name in _SUMS},
        )

    @property
    def load_s(self) -> float:
        """Seconds spent loading the model, summed over loads."""
        return sum(load.load_s for load in self.loads)

    def to_json(self) -> str:
        """Return the text of ``_report.json``; equal reports have equal texts."""
        compared = self.compared and self.compared.to_fields()
        fields = {"report_version": VERSION, **asdict(self), "compared": compared}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "_report.json") -> RunReport:
        """Return the report in a text that :meth:`to_json` made; unknown keys are ignored.

        Raises:
            UsageError: ``text`` is not such a report; the message names ``where``.
        """
        try:
            data = json.loads(text)
            if data["report_version"] != VERSION:
                raise UsageError(
                    f"{where} is report version {data['report_version']}; this job reads {VERSION}"
                )
            # Fields with a default are missing in reports of older versions.
            values: dict[str, Any] = {
                field.name: data[field.name]
                if field.default is MISSING
                else data.get(field.name, field.default)
                for field in fields(cls)
            }
            values["loads"] = tuple(
                ModelLoad(load["load"], load["worker"], load["load_s"]) for load in values["loads"]
            )
            values["reject_reasons"] = tuple((reason, rows) for reason, rows in values["reject_reasons"])
            values["compared"] = values["compared"] and Compared.of_fields(values["compared"])
            values["feeds"] = Fed.all_of(values["feeds"])
            values["challenger"] = values["challenger"] and Challenged.of_fields(values["challenger"])
            for name in ("weights_sha256", "workers", "batch_rows", "rejects_left_out"):
                values[name] = tuple(values[name])
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{where} is not a run report ({type(error).__name__}: {error})") from error
        return cls(**values)

    def summary_table(self) -> Table:
        """Return the report as a table of labels and values for a terminal."""
        return console.grid(self.lines())

    def lines(self) -> Mapping[str, str]:
        """Return the lines of the table and of the page in order, value by label."""
        lines = {
            "rows": _join(
                f"{self.rows_scored:,} scored of {self.rows_read:,} read", f"{self.rows_rejected:,} rejected"
            ),
            **self._odd_rows(),
            "from": f"{_count(self.shards, 'shard')} in {_count(self.splits, 'split')}",
            "output": self.output,
            "files": f"{_count(self.files, 'file')}, {_size(self.files_bytes)}",
            "model": self.model,
            "model SHA-256": self.model_sha256,
            "model inputs": feeds_text([one.feed for one in self.feeds], self.fed_by),
            "weights SHA-256": ", ".join(self.weights_sha256),
            "speed": f"{self.rows_per_s:,.0f} rows/s over {self.wall_s:,.1f} s, start-up included",
            "first batch": "" if self.first_batch_s is None else f"after {self.first_batch_s:.1f} s",
            "resumed": f"{_count(self.splits_reused, 'split')} done before, not scored again"
            if self.splits_reused
            else "",
            "model loads": _join(
                f"{len(self.loads)} in {_count(len(self.workers), 'worker')}",
                f"{self.load_s:.1f} s",
                f"{_count(self.traces, 'trace')} of the predict step",
            ),
            "golden rows": f"as expected after {self.golden_checks} of {_count(len(self.loads), 'load')}"
            if self.golden_checks
            else "",
            "neighbours": f"{self.again_rows:,} rows predicted again, beside others and alone: at most "
            f"{self.again_apart:.1g} apart"
            if self.again_rows
            else "",
            "batch size": _join(
                f"{_span(self.batch_rows)} rows" if self.batch_rows else "",
                _count(self.batches, "batch", "batches"),
                f"{self.memory_rows:,} did not fit the memory" if self.memory_rows else "",
            ),
            "thread seconds": _join(*(f"{stage} {getattr(self, f'{stage}_s'):.1f}" for stage in STAGES)),
            **(self.challenger.lines() if self.challenger else {}),
            **(gates.lines(self.compared) if self.compared else {}),
            "started": self.started_utc,
            "run": self.run_id,
        }
        return {label: value for label, value in lines.items() if value}

    def _odd_rows(self) -> dict[str, str]:
        """Return the lines about rejected and unusual rows; empty ones are left out later."""
        return {
            "rejected": _join(*(f"{rows:,} {reason}" for reason, rows in self.reject_reasons)),
            "left out": f"of rejected rows, since it cannot be written: {_some(self.rejects_left_out)}"
            if self.rejects_left_out
            else "",
            "not finite": f"{_count(self.nonfinite_rows, 'row')} kept with such a prediction"
            if self.nonfinite_rows
            else "",
            "bad shards": f"{self.shards_rejected:,} rejected in part or whole"
            if self.shards_rejected
            else "",
        }

    def to_html(self) -> str:
        """Return the text of ``_report.html``."""
        seconds = {stage: getattr(self, f"{stage}_s") for stage in STAGES}
        loads = [(load.load, load.worker, load.load_s) for load in self.loads]
        return page.render(self.run_id, self.lines(), seconds, loads)


def _fed(scoring: Mapping[str, Any]) -> dict[str, Any]:
    return {"feeds": Fed.all_of(scoring.get("feeds", ())), "fed_by": scoring.get("fed_by", "")}


def _loads(receipts: Sequence[Receipt]) -> tuple[ModelLoad, ...]:
    found: dict[str, ModelLoad] = {}
    for receipt in sorted(receipts, key=lambda receipt: receipt.load_s):
        # The largest wins: the first splits still build and trace the model, which counts as loading.
        found[receipt.load] = ModelLoad(receipt.load, receipt.worker, receipt.load_s)
    return tuple(found[load] for load in sorted(found) if load)


def _traces(receipts: Sequence[Receipt]) -> int:
    # A receipt has the number of traces of its load so far, so the largest counts them all.
    so_far: dict[str, int] = {}
    for receipt in receipts:
        so_far[receipt.load] = max(receipt.traces, so_far.get(receipt.load, 0))
    return sum(so_far.values())


def _again(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return the number of rows that were predicted again, and their largest difference."""
    # A receipt has the number of its load so far, so the largest counts them all.
    rows: dict[str, int] = {}
    for receipt in receipts:
        rows[receipt.load] = max(receipt.again_rows, rows.get(receipt.load, 0))
    apart = max((receipt.again_apart for receipt in receipts), default=0.0)
    return {"again_rows": sum(rows.values()), "again_apart": apart}


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value}))


def reasons_of(receipts: Sequence[Receipt]) -> tuple[tuple[str, int], ...]:
    """Return the number of rejected rows by reason, the largest first."""
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        reasons.update(dict(receipt.reject_reasons))
    return tuple(reasons.most_common())


def _span(values: Sequence[int]) -> str:
    """Return ascending values as text: all of a few, the first and the last of many."""
    if len(values) > _MOST_LISTED:
        return f"{values[0]:,} to {values[-1]:,}"
    return " and ".join(f"{value:,}" for value in values)


def _some(names: Sequence[str]) -> str:
    """Return the first names as text, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# The challenger's part of the report and of the manifest.


@dataclass(frozen=True)
class Challenged:
    """The figures of a night's challenger.

    Attributes:
        columns: its columns in the output.
        rows: published rows.
        failed: published rows that have null in its columns.
        reasons: the number of these by reason, the largest first.
        error: the error of the first of these.
        work_s: seconds of binding and predicting, summed over threads.
        loads: how often it was loaded.
        load_s: seconds of these loads.
    """

    model: str
    sha256: str
    columns: tuple[str, ...]
    rows: int
    failed: int
    reasons: tuple[tuple[str, int], ...]
    error: str
    work_s: float
    loads: int
    load_s: float

    @classmethod
    def of(cls, run: Run, receipts: Sequence[Receipt]) -> Challenged | None:
        """Add up the receipts of a run; ``None`` if it has no challenger."""
        if run.challenger is None:
            return None
        work = [receipt.challenger for receipt in receipts if receipt.challenger is not None]
        reasons: Counter[str] = Counter()
        # The largest wins, as in _loads.
        loads: dict[str, float] = {}
        for one in work:
            reasons.update(dict(one.reasons))
            if one.load:
                loads[one.load] = max(one.load_s, loads.get(one.load, 0.0))
        model = run.challenger.model
        return cls(
            model=model.path,
            sha256=model.digest,
            columns=tuple(json.loads(run.challenger.scoring)["predictions"]),
            rows=sum(receipt.rows_scored for receipt in receipts),
            failed=sum(one.failed for one in work),
            reasons=tuple(reasons.most_common()),
            error=next((one.error for one in work if one.failed), ""),
            work_s=sum(one.work_s for one in work),
            loads=len(loads),
            load_s=sum(loads.values()),
        )

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Challenged:
        """Return it as read from JSON; unknown keys are ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__}
        reasons = tuple((str(reason), int(rows)) for reason, rows in known["reasons"])
        return cls(**{**known, "columns": tuple(known["columns"]), "reasons": reasons})

    def lines(self) -> dict[str, str]:
        """Return its lines in the report, value by label; empty values are left out later."""
        loads = f"{self.loads} load{'' if self.loads == 1 else 's'}, {self.load_s:.1f} s"
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in self.reasons)
        return {
            "challenger": f"{self.model} → {', '.join(self.columns)}",
            "challenger SHA-256": self.sha256,
            "challenger rows": f"{self.rows - self.failed:,} of {self.rows:,} predicted in "
            f"{self.work_s:.1f} thread seconds, {loads}",
            "challenger failed": f"{self.failed:,} (null): {reasons}; the first: {self.error}"
            if self.failed
            else "",
        }


def entry(run: Run, receipts: Sequence[Receipt]) -> dict[str, Any] | None:
    """Return the challenger's part of a manifest; ``None`` if the run has no challenger."""
    told = Challenged.of(run, receipts)
    if told is None or run.challenger is None:
        return None
    model = run.challenger.model
    return {
        "path": model.path,
        "weights": model.weights,
        "sha256": model.digest,
        "trusted": model.trusted,
        "signature_name": model.signature,
        "reads": dict(model.reads),
        "signature": run.challenger.signature,
        "columns": list(told.columns),
        "failed": told.failed,
        "reasons": dict(told.reasons),
        "scoring": json.loads(run.challenger.scoring),
    }
