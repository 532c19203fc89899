"""A night beside the last good one, and what the gates before publishing say of it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Compared:
    """A night beside the last good one, the ``baseline``.

    ``baseline`` is that night's folder, empty where there is none. ``measured`` is what each gate measured,
    by the gate's name for it. ``note`` is what could not be compared. ``refused`` is what the gates said, one
    line each; ``released_unix_s`` is when somebody published the night nevertheless, 0 where nobody had to.
    """

    baseline: str = ""
    baseline_run: str = ""
    baseline_rows: int = 0
    measured: tuple[tuple[str, Any], ...] = ()
    note: str = ""
    refused: tuple[str, ...] = ()
    released_unix_s: float = 0.0

    def value(self, measure: str) -> Any:
        """Return what was measured, ``None`` where nothing was."""
        return dict(self.measured).get(measure)

    @property
    def last_good(self) -> str:
        """How messages name the last good night."""
        return f"the last good night ({self.baseline})"

    def to_fields(self) -> dict[str, Any]:
        """Return it as JSON's object, in which each measure has its own key."""
        fields = asdict(self)
        measured = fields.pop("measured")
        return {**fields, **dict(measured)}

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Compared:
        """Return what :meth:`to_fields` gave, from JSON; what is no field of ours was measured."""
        values = {name: as_tuples(value) for name, value in fields.items()}
        known = {name: values.pop(name) for name in cls.__dataclass_fields__ if name in values}
        return cls(**known, measured=tuple(values.items()))

    @property
    def release(self) -> dict[str, Any] | None:
        """Return when the night was released and what the gates had said, ``None`` where nobody had to."""
        if not self.released_unix_s:
            return None
        return {"released_unix_s": self.released_unix_s, "refused": list(self.refused)}


def as_tuples(value: Any) -> Any:
    """Return a value that was read from JSON with tuples for its lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
