"""The values of flags: one function for each form that a value takes. Each raises ``UsageError``."""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final, get_args

from job.errors import UsageError
from job.model import artifact
from job.spec import OnNonfinite, ScoringSpec

DEFAULTS: Final[Mapping[str, Any]] = {
    field.name: field.default for field in fields(ScoringSpec) if field.default is not MISSING
}

NULL_POLICIES: Final = ("reject", "fail", "nan")

# Blanks around items. A quoted item is matched whole, so that those within it stay.
_BLANKS: Final = re.compile(r'(?<![^,\s])("(?:[^"]|"")*")|(?:^|(?<=,))\s+|\s+(?=,|$)')


def one(given: argparse.Namespace, name: str) -> Any:
    """Return a flag's one value, or its default."""
    values = list(dict.fromkeys(getattr(given, name)))
    if len(values) > 1:
        raise UsageError(f"--{name} is given twice, as {values[0]!r} and {values[1]!r}; give it once")
    if values == [""]:
        raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    return values[0] if values else DEFAULTS.get(name)


def inputs(values: Sequence[str]) -> tuple[str, ...]:
    """Return all ``--input`` values."""
    if not all(values):
        raise UsageError("--input= is empty; give a glob, a folder or @list.txt")
    refuse_repeats("input", values)
    return tuple(values)


def weights(weights: str | None, model: str) -> str | None:
    """Return ``--weights``, which goes only with a builder."""
    if weights is not None and not artifact.BUILDER.fullmatch(model):
        raise artifact.misplaced_weights(model, weights)
    return weights


def items(given: argparse.Namespace, name: str) -> list[str]:
    """Return a comma-separated flag's items."""
    text = one(given, name)
    if not text:
        return []
    try:
        items = next(csv.reader([_BLANKS.sub(lambda found: found[1] or "", text)], strict=True)) or [""]
    except csv.Error as error:
        raise UsageError(f"--{name}={text}: {error}; a name with a comma goes in double quotes") from error
    if not all(items):
        raise UsageError(f"--{name}={text}: item {items.index('') + 1} of {len(items)} is empty")
    return items


def columns(given: argparse.Namespace, name: str) -> tuple[str, ...]:
    """Return a flag's columns, each listed once."""
    found = items(given, name)
    refuse_repeats(name, found)
    return tuple(found)


def casts(given: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Return ``--cast`` as pairs of column and type."""
    casts = []
    for item in items(given, "cast"):
        column, _, dtype = item.partition("=")
        # Blanks in front belong to the name: they were in quotes.
        column, dtype = column.rstrip(), dtype.strip()
        if not column or not dtype:
            raise UsageError(f"--cast={item}: must be COLUMN=TYPE, as in price=float32")
        casts.append((column, dtype))
    refuse_repeats("cast", [column for column, _ in casts])
    return tuple(casts)


def refuse_repeats(name: str, items: Iterable[str]) -> None:
    """Refuse items that are listed twice."""
    repeated = [item for item, times in Counter(items).items() if times > 1]
    if repeated:
        raise UsageError(f"--{name}: {', '.join(repeated)} is listed more than once; list it once")


def batch_size(text: str | None) -> int | None:
    """Return ``--batch_size`` in rows, ``None`` for auto."""
    if text is None or text == "auto":
        return None
    return count("batch_size", text, "a whole number of rows from 1, or auto")


def count_of_rows(given: argparse.Namespace, name: str) -> int:
    """Return a flag's number of rows."""
    return count(name, str(one(given, name)), "a whole number of rows from 1")


def count(name: str, text: str, allowed: str) -> int:
    """Return a whole number from 1."""
    # int() would also take "1_000", " 7 " and other scripts' digits.
    if not re.fullmatch(r"\+?[0-9]+", text) or int(text) < 1:
        raise UsageError(f"--{name}={text}: must be {allowed}")
    return int(text)


def choice(given: argparse.Namespace, name: str, allowed: Sequence[str]) -> Any:
    """Return a flag's value, one of ``allowed``."""
    value = one(given, name)
    if value not in allowed:
        raise UsageError(f"--{name}={value}: must be one of {', '.join(allowed)}")
    return value


def on_null(given: argparse.Namespace) -> str:
    """Return ``--on_null``: reject, fail, nan or fill=VALUE."""
    value = str(one(given, "on_null"))
    if value in NULL_POLICIES or (value.startswith("fill=") and value != "fill="):
        return value
    raise UsageError(f"--on_null={value}: must be one of {', '.join(NULL_POLICIES)}, fill=VALUE")


def on_nonfinite(given: argparse.Namespace, null_policy: str) -> Any:
    """Return ``--on_nonfinite``: reject, keep or fail. Who turns nulls into NaN keeps them."""
    if null_policy != "nan":
        return choice(given, "on_nonfinite", get_args(OnNonfinite))
    if given.on_nonfinite and one(given, "on_nonfinite") != "keep":
        raise UsageError(
            f"--on_nonfinite={one(given, 'on_nonfinite')}: --on_null=nan makes values that are not finite; "
            f"leave one of the two out"
        )
    return "keep"


def whole(name: str, text: str) -> int:
    """Return a whole number from 0."""
    if not re.fullmatch(r"[0-9]+", text):
        raise UsageError(f"--{name}={text}: must be a whole number from 0")
    return int(text)


def number(name: str, text: str) -> float:
    """Return a number from 0."""
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text):
        raise UsageError(f"--{name}={text}: must be a number from 0, as in 1e-5")
    return float(text)


def duration_s(name: str, text: str) -> float:
    """Return a time such as ``90m``, ``12h`` or ``7d`` in seconds."""
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found is None:
        raise UsageError(f"--{name}={text}: must be a whole number with s, m, h or d behind it, as in 12h")
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]


def file_name(given: argparse.Namespace, name: str) -> str:
    """Return a flag's name of a file, which is in no folder; empty where it is left out."""
    text = str(one(given, name) or "")
    if "/" in text or text in (".", ".."):
        raise UsageError(f"--{name}={text}: must be a file's name without a folder, as in _SUCCESS")
    return text


def signed(name: str, text: str) -> float:
    """Return a number, which may be below 0."""
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", text):
        raise UsageError(f"--{name}={text}: must be a number, as in 0.5")
    return float(text)


def share(given: argparse.Namespace, name: str) -> float:
    """Return a share from 0 to 1."""
    text = str(one(given, name))
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text) or not 0 <= float(text) <= 1:
        raise UsageError(f"--{name}={text}: must be a share of the rows from 0 to 1, as in 0.01")
    return float(text)


def least_rows(given: argparse.Namespace) -> int | None:
    """Return ``--min_rows``, ``None`` where it is left out."""
    text = one(given, "min_rows")
    return None if text is None else count("min_rows", str(text), "a whole number of rows from 1")


def rows_change(given: argparse.Namespace) -> float | None:
    """Return ``--max_rows_change``, ``None`` where it is left out."""
    text = one(given, "max_rows_change")
    return None if text is None else number("max_rows_change", str(text))


def max_psi(given: argparse.Namespace) -> tuple[tuple[str, float], ...]:
    """Return ``--max_psi`` as pairs of column and threshold, with ``""`` for all other columns."""
    pairs = [item.rpartition("=") for item in items(given, "max_psi")]
    # Blanks in front belong to the name: they were in quotes.
    pairs = [(column.rstrip(), equals, text.strip()) for column, equals, text in pairs]
    refuse_repeats("max_psi", [column or "the threshold of all columns" for column, _, _ in pairs])
    for column, equals, text in pairs:
        if equals and not column:
            raise UsageError(f"--max_psi={equals}{text}: must be X or COLUMN=X, as in 0.25 or delay=0.1")
    return tuple((column, number("max_psi", text)) for column, _, text in pairs)


def sha256(given: argparse.Namespace, name: str) -> str | None:
    """Return a flag's digest in lower case."""
    text: str | None = one(given, name)
    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise UsageError(f"--{name}={text}: must be 64 hexadecimal digits, as sha256sum prints them")
    return text.lower() if text else None
