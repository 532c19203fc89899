"""Forms: how a flag's value is written, for people and for programs.

A form reads a value from the text of a command line and from a TOML file, and describes what it takes: to
people by its ``metavar``, to launchers by a regular expression, to editors by a JSON Schema. A flag names its
form in its declaration (``job.flags``). A text that does not fit raises ``UsageError``, with the flag, the
value and what is allowed. What depends on other flags is checked elsewhere (``job.cli.options``).
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import zoneinfo
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from job.errors import UsageError

# Numbers as people write them. float() would also take "nan", "1_0" and other scripts' digits.
_NUMBER: Final = r"[0-9]*\.?[0-9]+(e-?[0-9]+)?"
_SIGNED: Final = r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?"
_COUNT: Final = r"\+?0*[1-9][0-9]*"
# A path that workers of any machine can reach, and a function that makes a model.
_BUCKET: Final = r"(gs|s3)://[^/]+"
BUILDER: Final = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
# Blanks around items. A quoted item is matched whole, so that those within it stay.
_BLANKS: Final = re.compile(r'(?<![^,\s])("(?:[^"]|"")*")|(?:^|(?<=,))\s+|\s+(?=,|$)')


class WrongTypeError(Exception):
    """A TOML value that no text of a command line stands for; ``value`` is the part that is wrong."""

    def __init__(self, value: Any, wanted: str = "") -> None:
        super().__init__(value)
        self.value = value
        self.wanted = wanted


def scalar(value: Any) -> str:
    """Return one TOML value as a command line has it; raises ``WrongTypeError``."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, datetime.date)):
        raise WrongTypeError(value)
    return str(value)


def once(name: str, texts: Sequence[str]) -> str:
    """Return the one value of a flag that is given, perhaps several times alike; raises ``UsageError``."""
    values = list(dict.fromkeys(texts))
    if len(values) > 1:
        raise UsageError(f"--{name} is given twice, as {values[0]!r} and {values[1]!r}; give it once")
    if values == [""]:
        raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    return values[0]


def refuse_repeats(name: str, items: Iterable[str]) -> None:
    """Refuse items that are listed twice; raises ``UsageError``."""
    repeated = [item for item, times in Counter(items).items() if times > 1]
    if repeated:
        raise UsageError(f"--{name}: {', '.join(repeated)} is listed more than once; list it once")


@dataclass(frozen=True)
class Form:
    """Any text but the empty one; the base of the other forms.

    Attributes:
        metavar: what help shows for the value.
        dated: whether a value is a path, which may have the date of a night in it.
    """

    metavar: str = "TEXT"
    dated: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """The type of a Flex Template's parameter."""
        return "TEXT"

    @property
    def pattern(self) -> str:
        """A regular expression for whole texts; what it lets through may still be refused by ``parse``."""
        return r".+"

    @property
    def remote_pattern(self) -> str:
        """The same where the job is launched elsewhere, and a path must be in a bucket."""
        return self.pattern

    def parse(self, name: str, text: str, /) -> Any:
        """Return the value of a text that is not empty; raises ``UsageError`` naming the flag ``name``."""
        del name
        return text

    def value(self, name: str, texts: Sequence[str]) -> Any:
        """Return the value of a flag that is given, perhaps several times; raises ``UsageError``."""
        return self.parse(name, once(name, texts))

    def write(self, value: Any, /) -> str:
        """Return a default as a person would write it, empty where there is nothing to write."""
        return "" if value in (None, ()) else str(value)

    def texts(self, value: Any, /) -> list[str]:
        """Return a TOML value as a command line gives it; raises ``WrongTypeError``."""
        return [scalar(value)]

    def typed(self, name: str, texts: Sequence[str]) -> Any:
        """Return the same as TOML has it, of texts that ``value`` takes."""
        del name
        return texts[-1]

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the values that a TOML file may have."""
        return {"type": "string", "pattern": f"^{self.pattern}$"}


@dataclass(frozen=True)
class Switch(Form):
    """A flag without a value; ``off`` is the flag that says the opposite, where there is one."""

    metavar: str = ""
    off: str = ""
    off_text: str = ""

    @property
    def kind(self) -> str:
        """Yes or no."""
        return "BOOLEAN"

    @property
    def pattern(self) -> str:
        """The words that launchers give."""
        return "(true|false)"

    def write(self, value: bool, /) -> str:
        """Return the word for it."""
        return str(value).lower()

    def texts(self, value: Any, /) -> list[str]:
        """Return one text where it is on."""
        if not isinstance(value, bool):
            raise WrongTypeError(value, "true or false")
        return ["true"] if value else []

    def typed(self, name: str, texts: Sequence[str]) -> bool:
        """Return whether it is on."""
        del name
        return bool(texts)

    def schema(self) -> dict[str, Any]:
        """Return the schema of true and false."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice(Form):
    """One of some words, or ``other``, which is a word and what a person fills in: ``fill=VALUE``."""

    metavar: str = ""
    words: tuple[str, ...] = ()
    other: str = ""

    @classmethod
    def of(cls, words: Iterable[str], other: str = "") -> Choice:
        """Return the form of these words."""
        words = tuple(words)
        return cls("|".join((*words, other) if other else words), words, other)

    @property
    def kind(self) -> str:
        """A closed list, or any text."""
        return "TEXT" if self.other else "ENUM"

    @property
    def pattern(self) -> str:
        """The words."""
        other = f"|{self.other.partition('=')[0]}=.+" if self.other else ""
        return f"({'|'.join(self.words)}{other})"

    def parse(self, name: str, text: str, /) -> str:
        """Return one of the words."""
        if text in self.words or (self.other and re.fullmatch(self.pattern, text)):
            return text
        allowed = (*self.words, self.other) if self.other else self.words
        raise UsageError(f"--{name}={text}: must be one of {', '.join(allowed)}")

    def schema(self) -> dict[str, Any]:
        """Return the schema of the words, which editors offer."""
        words = {"type": "string", "enum": list(self.words)}
        return {"anyOf": [words, super().schema()]} if self.other else words


class _Numeric(Form):
    """A number, in TOML as itself or as a text."""

    @property
    def kind(self) -> str:
        """A number."""
        return "NUMBER"

    def typed(self, name: str, texts: Sequence[str]) -> Any:
        """Return a number where TOML would write it like that."""
        del name
        text = texts[-1]
        return json.loads(text) if re.fullmatch(r"[1-9][0-9]*(e-[0-9]+)?|0\.[0-9]+", text) else text

    def schema(self) -> dict[str, Any]:
        """Return the schema of the number, or of its text."""
        return {"anyOf": [self.number_schema(), super().schema()]}

    def number_schema(self) -> dict[str, Any]:
        """Return the schema of the number alone."""
        return {"type": "number", "minimum": 0}


@dataclass(frozen=True)
class Count(_Numeric):
    """A whole number from 1, up to ``most`` unless that is 0. ``auto``, where it is allowed, is ``None``."""

    metavar: str = "ROWS"
    of: str = "rows"
    auto: bool = False
    most: int = 0

    @classmethod
    def or_auto(cls, of: str) -> Count:
        """Return the form of a number that the job may find by itself."""
        return cls(f"{of.upper()}|auto", of, auto=True)

    @property
    def kind(self) -> str:
        """A number, or a text that may be a word."""
        return "TEXT" if self.auto else "NUMBER"

    @property
    def pattern(self) -> str:
        """Digits; int() would also take "1_000", " 7 " and other scripts' digits."""
        return f"(auto|{_COUNT})" if self.auto else _COUNT

    def parse(self, name: str, text: str, /) -> Any:
        """Return the number, ``None`` for auto."""
        if self.auto and text == "auto":
            return None
        if not re.fullmatch(_COUNT, text) or (self.most and int(text) > self.most):
            to = f" to {self.most}" if self.most else ""
            allowed = f"a whole number of {self.of} from 1{to}{', or auto' if self.auto else ''}"
            raise UsageError(f"--{name}={text}: must be {allowed}")
        return int(text)

    def write(self, value: Any, /) -> str:
        """Return the digits, or the word."""
        return "auto" if self.auto and value is None else super().write(value)

    def number_schema(self) -> dict[str, Any]:
        """Return the schema of the number alone."""
        return {"type": "integer", "minimum": 1, **({"maximum": self.most} if self.most else {})}


@dataclass(frozen=True)
class Whole(_Numeric):
    """A whole number from 0."""

    metavar: str = "N"

    @property
    def pattern(self) -> str:
        """Digits."""
        return "[0-9]+"

    def parse(self, name: str, text: str, /) -> int:
        """Return the number."""
        if not re.fullmatch(self.pattern, text):
            raise UsageError(f"--{name}={text}: must be a whole number from 0")
        return int(text)

    def number_schema(self) -> dict[str, Any]:
        """Return the schema of the number alone."""
        return {"type": "integer", "minimum": 0}


@dataclass(frozen=True)
class Number(_Numeric):
    """A number from 0."""

    metavar: str = "X"

    @property
    def pattern(self) -> str:
        """Digits, a point, an exponent."""
        return _NUMBER

    def parse(self, name: str, text: str, /) -> float:
        """Return the number."""
        if not re.fullmatch(_NUMBER, text):
            raise UsageError(f"--{name}={text}: must be a number from 0, as in 1e-5")
        return float(text)


@dataclass(frozen=True)
class Signed(_Numeric):
    """A number, which may be below 0."""

    metavar: str = "X"

    @property
    def pattern(self) -> str:
        """A sign, digits, a point, an exponent."""
        return _SIGNED

    def parse(self, name: str, text: str, /) -> float:
        """Return the number."""
        if not re.fullmatch(_SIGNED, text):
            raise UsageError(f"--{name}={text}: must be a number, as in 0.5")
        return float(text)

    def number_schema(self) -> dict[str, Any]:
        """Return the schema of the number alone."""
        return {"type": "number"}


@dataclass(frozen=True)
class Share(_Numeric):
    """A share of the rows, from 0 to 1."""

    metavar: str = "SHARE"

    @property
    def pattern(self) -> str:
        """Numbers that cannot be above 1, but for those with an exponent."""
        return r"(0+|0*\.[0-9]+|0*1|0*1\.0+|[0-9]*\.?[0-9]+e-[0-9]+)"

    def parse(self, name: str, text: str, /) -> float:
        """Return the share."""
        if not re.fullmatch(_NUMBER, text) or not 0 <= float(text) <= 1:
            raise UsageError(f"--{name}={text}: must be a share of the rows from 0 to 1, as in 0.01")
        return float(text)

    def number_schema(self) -> dict[str, Any]:
        """Return the schema of the number alone."""
        return {"type": "number", "minimum": 0, "maximum": 1}


@dataclass(frozen=True)
class Duration(Form):
    """A time such as ``90m``, ``12h`` or ``7d``, in seconds."""

    metavar: str = "TIME"

    @property
    def pattern(self) -> str:
        """Digits and a unit."""
        return "[0-9]+[smhd]"

    def parse(self, name: str, text: str, /) -> float:
        """Return the seconds."""
        if not re.fullmatch(self.pattern, text):
            raise UsageError(
                f"--{name}={text}: must be a whole number with s, m, h or d behind it, as in 12h"
            )
        return int(text[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[text[-1]]

    def write(self, value: Any, /) -> str:
        """Return the seconds with their unit."""
        return "" if value is None else f"{value:.0f}s"


@dataclass(frozen=True)
class Day(Form):
    """A date as in ``2026-11-25``, which stays a text."""

    metavar: str = "DATE"

    @property
    def pattern(self) -> str:
        """Year, month and day; that February has no 30th is seen later."""
        return "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"

    def parse(self, name: str, text: str, /) -> str:
        """Return the text of a date that there is."""
        day(name, text)
        return text


def day(name: str, text: str) -> datetime.date:
    """Return the date that a flag gives; raises ``UsageError`` where it is no ``YYYY-MM-DD``."""
    try:
        # fromisoformat() would also take 20261125 and weeks.
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return datetime.date.fromisoformat(text)
        reason = "must be a date as in 2026-11-25"
    except ValueError as e:
        reason = f"no such day: {e}"
    raise UsageError(f"--{name}={text}: {reason}")


@dataclass(frozen=True)
class Zone(Form):
    """The name of a time zone, which stays a text."""

    metavar: str = "ZONE"

    @property
    def pattern(self) -> str:
        """Names as in the database of zones."""
        return "[A-Za-z]+[A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*"

    def parse(self, name: str, text: str, /) -> str:
        """Return the name of a zone that there is."""
        zone(name, text)
        return text


def zone(name: str, text: str) -> datetime.tzinfo:
    """Return a time zone by its name; raises ``UsageError`` where there is none of that name."""
    if text == "UTC":
        # Also where there is no database of zones.
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise UsageError(f"--{name}={text}: no such time zone; give one as in UTC or Europe/Berlin") from e


@dataclass(frozen=True)
class FileName(Form):
    """The name of a file, which is in no folder."""

    metavar: str = "NAME"

    @property
    def pattern(self) -> str:
        """No slash, and not dots alone."""
        return "[^/]*[^./][^/]*"

    def parse(self, name: str, text: str, /) -> str:
        """Return the name."""
        if "/" in text or text in (".", ".."):
            raise UsageError(f"--{name}={text}: must be a file's name without a folder, as in _SUCCESS")
        return text


@dataclass(frozen=True)
class Digest(Form):
    """A SHA-256 in hex; the value is in lower case."""

    metavar: str = "HEX"

    @property
    def pattern(self) -> str:
        """As ``sha256sum`` prints it."""
        return "[0-9a-fA-F]{64}"

    def parse(self, name: str, text: str, /) -> str:
        """Return the digest in lower case."""
        if not re.fullmatch(self.pattern, text):
            raise UsageError(f"--{name}={text}: must be 64 hexadecimal digits, as sha256sum prints them")
        return text.lower()


@dataclass(frozen=True)
class Path(Form):
    """A file, here or in a bucket."""

    metavar: str = "FILE"
    dated: ClassVar[bool] = True

    @property
    def remote_pattern(self) -> str:
        """A file in a bucket."""
        return f"{_BUCKET}/.+"

    def schema(self) -> dict[str, Any]:
        """Return the schema of a path, wherever it is."""
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Folder(Path):
    """A folder, here or in a bucket, or the bucket itself."""

    metavar: str = "FOLDER"

    @property
    def remote_pattern(self) -> str:
        """A bucket, or a folder in it."""
        return f"{_BUCKET}(/.*)?"


@dataclass(frozen=True)
class Model(Path):
    """A model's file or folder, or the function that builds it."""

    metavar: str = "MODEL"

    @property
    def remote_pattern(self) -> str:
        """A path in a bucket, or a function of a package that is installed."""
        return f"({_BUCKET}/.+|{BUILDER})"


@dataclass(frozen=True)
class Inputs(Path):
    """Globs, folders and lists of files; the flag may be given several times."""

    metavar: str = "GLOB"

    @property
    def remote_pattern(self) -> str:
        """One of them; a launcher gives a parameter once."""
        return f"@?{_BUCKET}(/.*)?"

    def value(self, name: str, texts: Sequence[str]) -> tuple[str, ...]:
        """Return all of them, in their order."""
        if not all(texts):
            raise UsageError(f"--{name}= is empty; give a glob, a folder or @list.txt")
        refuse_repeats(name, texts)
        return tuple(texts)

    def texts(self, value: Any, /) -> list[str]:
        """Return each of a list, or the one."""
        return [scalar(one) for one in value] if isinstance(value, list) else super().texts(value)

    def typed(self, name: str, texts: Sequence[str]) -> Any:
        """Return the one, or a list of them."""
        return list(texts) if len(texts) > 1 else super().typed(name, texts)

    def schema(self) -> dict[str, Any]:
        """Return the schema of one, or of a list."""
        one = super().schema()
        return {"anyOf": [one, {"type": "array", "items": one, "uniqueItems": True}]}


@dataclass(frozen=True)
class Names(Form):
    """Names of columns with commas between them; one that holds a comma goes in double quotes."""

    metavar: str = "COL,…"
    item: ClassVar[str] = r'("([^"]|"")+"|[^",\s][^,]*)'

    @property
    def pattern(self) -> str:
        """Items with commas between them."""
        return rf"\s*{self.item}\s*(,\s*{self.item}\s*)*"

    def items(self, name: str, text: str) -> list[str]:
        """Return the items of a text; raises ``UsageError``."""
        try:
            found = next(csv.reader([_BLANKS.sub(lambda found: found[1] or "", text)], strict=True)) or [""]
        except csv.Error as error:
            told = f"--{name}={text}: {error}; a name with a comma goes in double quotes"
            raise UsageError(told) from error
        if not all(found):
            raise UsageError(f"--{name}={text}: item {found.index('') + 1} of {len(found)} is empty")
        return found

    def parse(self, name: str, text: str, /) -> tuple[Any, ...]:
        """Return the names, each listed once."""
        found = self.items(name, text)
        refuse_repeats(name, found)
        return tuple(found)

    def write(self, value: Any, /) -> str:
        """Return the names with commas between them."""
        return ",".join(value)

    def texts(self, value: Any, /) -> list[str]:
        """Return a list as one text; an empty one is a flag that is left out."""
        if not isinstance(value, list):
            return super().texts(value)
        return [_joined([scalar(one) for one in value])] if value else []

    def typed(self, name: str, texts: Sequence[str]) -> list[str]:
        """Return the items as a list."""
        return self.items(name, texts[-1])

    def schema(self) -> dict[str, Any]:
        """Return the schema of a list, or of a text with commas."""
        item = {"type": "string", "minLength": 1}
        return {"anyOf": [{"type": "array", "items": item, "uniqueItems": True}, super().schema()]}


def _joined(items: Sequence[str]) -> str:
    """Return items with commas between them, in quotes, for one may hold a comma or a blank."""
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(items)
    return text.getvalue()


@dataclass(frozen=True)
class Casts(Names):
    """Columns and types: ``price=float32,hour=int64``; in TOML a table too. The value is a tuple of pairs."""

    metavar: str = "COL=TYPE,…"
    item: ClassVar[str] = r'("([^"]|"")*[^"\s=]\s*=([^"]|"")*[^"\s]([^"]|"")*"|[^",\s=][^,=]*=\s*[^,\s][^,]*)'

    def parse(self, name: str, text: str, /) -> tuple[tuple[str, str], ...]:
        """Return pairs of column and type."""
        casts = []
        for item in self.items(name, text):
            column, _, dtype = item.partition("=")
            # Blanks in front belong to the name: they were in quotes.
            column, dtype = column.rstrip(), dtype.strip()
            if not column or not dtype:
                raise UsageError(f"--{name}={item}: must be COLUMN=TYPE, as in price=float32")
            casts.append((column, dtype))
        refuse_repeats(name, [column for column, _ in casts])
        return tuple(casts)

    def texts(self, value: Any, /) -> list[str]:
        """Return a table as the list of its pairs."""
        if isinstance(value, dict):
            value = [f"{column}={scalar(dtype)}" for column, dtype in value.items()]
        return super().texts(value)

    def schema(self) -> dict[str, Any]:
        """Return the schema of a table, a list, or a text with commas."""
        table = {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}}
        pair = {"type": "string", "pattern": "^[^=]*[^=\\s][^=]*=.*\\S"}
        pairs = {"type": "array", "items": pair, "uniqueItems": True}
        return {"anyOf": [table, pairs, {"type": "string", "pattern": f"^{self.pattern}$"}]}


@dataclass(frozen=True)
class Thresholds(Names):
    """A number, or numbers of columns: ``0.25,delay=0.1``. Pairs, with ``""`` for all other columns."""

    metavar: str = "X|COL=X,…"
    item: ClassVar[str] = rf'(([^",\s=][^",]*=\s*)?{_NUMBER}|"(([^"\s=]|"")([^"]|"")*=\s*)?{_NUMBER}")'

    def parse(self, name: str, text: str, /) -> tuple[tuple[str, float], ...]:
        """Return pairs of column and number."""
        pairs = [item.rpartition("=") for item in self.items(name, text)]
        # Blanks in front belong to the name: they were in quotes.
        pairs = [(column.rstrip(), equals, number.strip()) for column, equals, number in pairs]
        refuse_repeats(name, [column or "the threshold of all columns" for column, _, _ in pairs])
        for column, equals, number in pairs:
            if equals and not column:
                raise UsageError(f"--{name}={equals}{number}: must be X or COLUMN=X, as in 0.25 or delay=0.1")
        return tuple((column, Number().parse(name, number)) for column, _, number in pairs)

    def texts(self, value: Any, /) -> list[str]:
        """Return the one number or text."""
        return [scalar(value)]

    def typed(self, name: str, texts: Sequence[str]) -> Any:
        """Return the text."""
        del name
        return texts[-1]

    def schema(self) -> dict[str, Any]:
        """Return the schema of a number, or of a text with commas."""
        return {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{self.pattern}$"}]
        }
