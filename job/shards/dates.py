"""Dates in paths, and the night that a run is for: the one that ``--ds`` names, or else yesterday.

A **placeholder** stands for a date in a path: ``{ds}`` is ``2026-11-25``, ``{ds_nodash}`` ``20261125``; a
number of days may follow, as in ``{ds-1}`` or ``{ds_nodash+7}``, and a format of ``strftime``, as in
``{ds-1:%Y/%m/%d}``. The names are Airflow's.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from job import forms
from job.errors import UsageError
from job.spec import ScoringSpec

NODASH: Final = "%Y%m%d"
FORMS: Final = "{ds}, {ds_nodash}, {ds-1}, {ds:%Y/%m/%d}"

# Those paths of a spec that are optional.
_OPTIONAL: Final = ("weights", "golden", "challenger", "challenger_weights")
# Text that looks like a placeholder: braces around a name and what follows it. In a template that Airflow
# has not rendered, the braces are doubled and have blanks in them.
_BRACES: Final = re.compile(r"\{+\s*[A-Za-z_][^{}]*\}+")
_PLACEHOLDER: Final = re.compile(r"\{ds(_nodash)?([+-][0-9]{1,5})?(?::([^{}]+))?\}")
_DIRECTIVES: Final = re.compile(r"%(.?)", re.DOTALL)
# The directives of a date. An hour would be 00 for every night.
_OF_A_DATE: Final = frozenset("YymdjBbAaGVuwUW%")


def yesterday(timezone: str, now: datetime.datetime | None = None) -> datetime.date:
    """Return the day before today in a time zone. ``now`` has a time zone of its own; the default is now."""
    now = now or datetime.datetime.now(datetime.UTC)
    return now.astimezone(forms.zone("timezone", timezone)).date() - datetime.timedelta(days=1)


def days(first: datetime.date, last: datetime.date) -> Iterator[datetime.date]:
    """Yield each day from the first to the last, both included."""
    for number in range((last - first).days + 1):
        yield first + datetime.timedelta(days=number)


def before(day: datetime.date, nights: int) -> Iterator[datetime.date]:
    """Yield the ``nights`` days before a day, the last one first; fewer where the calendar begins."""
    for number in range(1, min(nights, day.toordinal() - 1) + 1):
        yield day - datetime.timedelta(days=number)


def has_date(template: str) -> bool:
    """Say whether a path has a placeholder."""
    return bool(_PLACEHOLDER.search(template))


def _flag(name: str) -> str:
    return "" if name.isupper() else f"--{name}="


def check(name: str, template: str) -> None:
    """Refuse text that looks like a placeholder and is none.

    It is the value of a flag, or of an argument whose name is in capitals.

    Raises:
        UsageError: its name is another, or its format has no date in it.
    """
    for found in _BRACES.finditer(template):
        placeholder = _PLACEHOLDER.fullmatch(found[0])
        if placeholder is None:
            raise UsageError(f"{_flag(name)}{template}: {found[0]} is no placeholder; use one of {FORMS}")
        nodash, form = placeholder[1], placeholder[3]
        directives = set(_DIRECTIVES.findall(form or "%Y"))
        if nodash and form:
            raise UsageError(f"{_flag(name)}{template}: {found[0]} has two formats; write {{ds:{form}}}")
        if not directives <= _OF_A_DATE or not directives - {"%"}:
            raise UsageError(
                f"{_flag(name)}{template}: {found[0]} has no date's format; use one as in {{ds:%Y/%m/%d}}"
            )


def expand(template: str, ds: datetime.date) -> str:
    """Return a path with the dates of a night in it.

    Raises:
        UsageError: a date lies outside the years 1 to 9999.
    """

    def dated(found: re.Match[str]) -> str:
        nodash, shift, form = found.groups()
        try:
            shifted = ds + datetime.timedelta(days=int(shift or 0))
        except OverflowError as e:
            raise UsageError(f"{template}: {found[0]} of {ds} is in no year from 1 to 9999") from e
        return shifted.strftime(form or NODASH) if form or nodash else shifted.isoformat()

    return _PLACEHOLDER.sub(dated, template)


def of_night(template: ScoringSpec, ds: datetime.date | None = None) -> ScoringSpec:
    """Return a spec with a night's date in its paths: ``ds``, or else the spec's own, or else yesterday."""
    optional = {name: str(path) for name in _OPTIONAL if (path := getattr(template, name))}
    paths = (*template.inputs, template.model, template.output, *optional.values())
    dated = any(map(has_date, paths))
    if ds is None and template.ds:
        ds = forms.day("ds", template.ds)
    if ds is None and not dated:
        return template
    night = ds or yesterday(template.timezone)
    expanded: dict[str, Any] = {name: expand(path, night) for name, path in optional.items()}
    return replace(
        template,
        inputs=tuple(expand(one, night) for one in template.inputs),
        model=expand(template.model, night),
        output=expand(template.output, night),
        **expanded,
        ds=night.isoformat(),
    )
