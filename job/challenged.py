"""What a night's challenger did, as its report and its manifest tell. Values only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.spec import Receipt, Run


@dataclass(frozen=True)
class Challenged:
    """The second model of a night, and what became of it.

    ``columns`` are its own in the output. Of the published rows ``failed`` have null there; ``reasons``
    counts them, most first, ``error`` is what was wrong with the first. ``work_s`` is seconds of binding and
    predicting, summed over threads; ``loads`` and ``load_s`` are of it alone.
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
        """Add up the receipts of a run; ``None`` where it has no challenger."""
        if run.challenger is None:
            return None
        work = [receipt.challenger for receipt in receipts if receipt.challenger is not None]
        reasons: Counter[str] = Counter()
        # A load grows while the first splits still build and trace the model.
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
        """Return what JSON has of it; what a later version added is ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__}
        reasons = tuple((str(reason), int(rows)) for reason, rows in known["reasons"])
        return cls(**{**known, "columns": tuple(known["columns"]), "reasons": reasons})

    def lines(self) -> dict[str, str]:
        """Return what a report tells of it, by label; empty values are to be left out."""
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
    """Return the challenger's part of a manifest; ``None`` where there is none."""
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
