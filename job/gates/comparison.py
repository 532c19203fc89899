"""A night beside the last good one, and what the gates before publishing say of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

# A report tells of so many columns; the manifest and its JSON of all.
_MOST_TOLD = 3


@dataclass(frozen=True)
class Compared:
    """A night's rows and predictions beside those of the last good night, the ``baseline``.

    ``baseline`` is that night's folder, empty where there is none. ``rows_change`` is the change of the
    published rows as a share of the baseline's, ``psi`` the population stability index of each prediction
    column that both nights have, ``note`` what could not be compared. ``refused`` is what the gates said, one
    line each; ``released_unix_s`` is when somebody published the night nevertheless, 0 where nobody had to.
    ``columns`` says how the columns that fed the model by position differ from that night's, empty where they
    do not.
    """

    baseline: str = ""
    baseline_run: str = ""
    baseline_rows: int = 0
    rows_change: float | None = None
    psi: tuple[tuple[str, float], ...] = ()
    note: str = ""
    refused: tuple[str, ...] = ()
    released_unix_s: float = 0.0
    columns: str = ""

    def to_fields(self) -> dict[str, Any]:
        """Return it as JSON's object."""
        return asdict(self)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Compared:
        """Return what :meth:`to_fields` gave, from JSON; what a later version added is ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        psi = tuple((str(name), float(value)) for name, value in known.pop("psi", ()))
        return cls(**{**known, "psi": psi, "refused": tuple(known.pop("refused", ()))})

    @property
    def release(self) -> dict[str, Any] | None:
        """Return when the night was released and what the gates had said, ``None`` where nobody had to."""
        if not self.released_unix_s:
            return None
        return {"released_unix_s": self.released_unix_s, "refused": list(self.refused)}

    def lines(self) -> dict[str, str]:
        """Return what a report tells of it, by label; empty values are to be left out."""
        told = [self.note] if self.note else []
        if self.psi:
            by_size = sorted(self.psi, key=lambda pair: -pair[1])
            more = f" and {len(by_size) - _MOST_TOLD} more" if len(by_size) > _MOST_TOLD else ""
            told.insert(0, f"PSI {', '.join(f'{n} {v:.3f}' for n, v in by_size[:_MOST_TOLD])}{more}")
        if self.rows_change is not None:
            told.insert(0, f"{self.rows_change:+.1%} rows")
        released = ""
        if self.released_unix_s:
            at = datetime.fromtimestamp(self.released_unix_s, UTC).isoformat(timespec="seconds")
            released = f"by hand at {at}; the gates had said: {'; '.join(self.refused)}"
        beside = f" ({self.baseline})" if self.baseline else ""
        return {"last good night": f"{', '.join(told)}{beside}" if told else "", "released": released}
