"""Every error the job raises on purpose, and the exit code each one ends with.

::

    JobError                      1   anything below, caught as one
    ├── UsageError                2   your fault: a flag, or flags that contradict each other
    ├── NoInputError              3   your fault: nothing matches --input
    ├── PreflightError            4   found before the first prediction
    │   ├── ModelError            4     the model cannot be had, read or trusted
    │   ├── SchemaError           4     columns and model inputs do not fit
    │   └── ShardError            4     the data's fault: a shard that cannot be read
    │       ├── ShardChangedError 4       it is not the file that was planned; run again
    │       └── UnwritableError   4       Arrow can read a column of it, and not write it
    ├── DataError                 5   the data's fault: rows that cannot be scored
    │   ├── GateError           5     the night is scored, but not like the last good one
    │   └── GoldenError         5     a model does not predict what it is known to predict
    ├── OutputConflictError       6   the output holds another run, or a night that somebody has changed
    ├── EngineError               7   the engine cannot be reached
    ├── StorageError              1   reading or writing failed; the same command may succeed
    │   └── DeniedError           1     a store does not allow it
    └── StateUnknownError         1   an operation may or may not have happened; look first

A message is one line: what, both values, where, and the fix.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from job import escapes


class JobError(Exception):
    """Base of every error raised on purpose; ``str(error)`` is one line for a person."""

    exit_code: ClassVar[int] = 1


class UsageError(JobError):
    """A flag is wrong, or flags contradict each other."""

    exit_code = 2


class NoInputError(JobError):
    """No shard matches the input."""

    exit_code = 3


class PreflightError(JobError):
    """The run cannot succeed, and that was seen before the first prediction."""

    exit_code = 4


class ModelError(PreflightError):
    """The model cannot be found, read, trusted or built."""


class SchemaError(PreflightError):
    """Columns and model inputs do not fit each other."""


class ShardError(PreflightError):
    """A shard cannot be read as Parquet."""


class ShardChangedError(ShardError):
    """A shard is not the file that was planned: it was written again since, or still is."""


class UnwritableError(ShardError):
    """A shard has a column that Arrow can read and cannot write."""


class DataError(JobError):
    """Rows that cannot be scored; nothing is published."""

    exit_code = 5


class GateError(DataError):
    """A gate refuses to publish a scored night. It stays in staging, and a person may release it."""


class GoldenError(DataError):
    """A loaded model does not predict what it should for the golden rows."""


class OutputConflictError(JobError):
    """The output folder holds something that this run must not touch."""

    exit_code = 6


class EngineError(JobError):
    """The engine cannot be reached or refused the pipeline."""

    exit_code = 7


class StorageError(JobError):
    """A read or a write failed; the same command may succeed when repeated."""


class DeniedError(StorageError):
    """A store does not allow a request."""


class StateUnknownError(JobError):
    """An operation may or may not have taken effect."""


def by_name(name: str) -> type[JobError]:
    """Return the error class called ``name``, or ``JobError`` when there is none.

    Engines flatten exceptions into text, so a worker leaves the class name beside
    the message and the launcher raises the same class again.
    """
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, JobError):
        return found
    return JobError


def in_text(text: str) -> JobError | None:
    """Return the first of these errors in a flattened traceback, or ``None``.

    It is needed where a worker could not leave its error beside its work, on a full disk for example.
    """
    found = re.search(r"\bjob\.errors\.(\w+): ([^\n]+)", text)
    return by_name(found[1])(found[2].partition(" [while running ")[0]) if found else None


def check_not_passing(error: Exception, where: str) -> None:
    """Raise ``StorageError`` if reading failed because of the system, and not because of the content.

    Arrow raises an ``OSError`` without a number for content that it cannot read. One with a number comes from
    the operating system (no permission, too many open files, a device or a server that fails): the same
    command may find the file whole, so its rows must not count as bad ones.

    Raises:
        StorageError: the error has a number; the message names ``where``.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise StorageError(f"{where}: cannot be read: {os.strerror(error.errno)}; run again") from error


# Errors of a path that will be the same at the next try. A disk that has turned read-only may not be.
_NO_PLACE: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)


@contextmanager
def of_place(start: str = "", fix: str = "") -> Iterator[None]:
    """Raise a ``StorageError`` of the body as a ``UsageError`` where running again cannot help.

    A folder without permission, or a file where a folder must be, is the same at the next try; schedulers
    decide by exit codes whether to try again. A full disk stays a ``StorageError``.

    Args:
        start: what the new message begins with, such as the flag that names the place.
        fix: what it ends with.
    """
    try:
        yield
    except StorageError as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno in _NO_PLACE:
            raise UsageError(f"{start}{e}{fix and '; '}{fix}") from e
        raise


# From this length on, text in braces or brackets is the dump of an object, which says little.
_DUMP_CHARACTERS: Final = 40
_CLOSES: Final = {"}": "{", "]": "["}
_SENTENCE_ENDS: Final = re.compile(r"(?<=[.!?]) (?=[A-Z<`'\"])")
# A sentence is worth keeping if it has a name in quotes, or a number.
_TELLING: Final = re.compile(r"""(?<!\w)'[^']+'(?!\w)|(?<!\w)"[^"]+"(?!\w)|\d""")


def as_flag(name: str, *items: str) -> str:
    """Return a flag with a list of items, quoted for a shell.

    >>> as_flag("ignore", "label", "two words")
    "--ignore='label,two words'"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(items)
    return f"--{name}={shlex.quote(text.getvalue())}"


def one_line(error: BaseException, most: int = 300) -> str:
    """Return a library's error as one line of about ``most`` characters, with its type and without colours.

    A long text loses dumps of objects first, then repeated sentences, then sentences without a name or a
    number. If it is still too long, it is cut in the middle: TensorFlow says at the start where it happened,
    and at the end what.
    """
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if len(text) > most:
        text = _telling(_without_dumps(text), most)
    if len(text) > most:
        text = f"{text[: most // 3]} … {text[-most * 2 // 3 :]}"
    return f"{type(error).__name__}: {text}"


def _without_dumps(text: str) -> str:
    """Return a text with ``…`` in place of what long pairs of braces or brackets hold.

    >>> _without_dumps("no class 'A' in {'a': [1, 2], 'b': '" + 40 * "x" + "'}")
    "no class 'A' in {…}"
    """
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    for i, character in enumerate(text):
        if character in "{[":
            opened.append(i)
        elif character in "}]" and opened and text[opened[-1]] == _CLOSES[character]:
            start = opened.pop()
            if i - start > _DUMP_CHARACTERS:
                # Those within it have gone before it.
                spans = [span for span in spans if span[0] < start]
                spans.append((start, i))
    for start, end in reversed(spans):
        text = f"{text[: start + 1]}…{text[end:]}"
    return text


def _telling(text: str, most: int) -> str:
    """Return the most informative sentences of a text, in their order; all of it if none fits."""
    sentences = list(dict.fromkeys(_SENTENCE_ENDS.split(text)))
    last = len(sentences) - 1
    # What has caused all the others comes last.
    worth = [(not _TELLING.search(sentence), i not in (0, last), -i) for i, sentence in enumerate(sentences)]
    kept: set[int] = set()
    for i in sorted(range(last + 1), key=worth.__getitem__):
        if sum(len(sentences[j]) + 3 for j in (*kept, i)) <= most:
            kept.add(i)
        elif not kept:
            return text
    parts = [sentence if i in kept else "…" for i, sentence in enumerate(sentences)]
    return re.sub(r"…( …)+", "…", " ".join(parts))


def told(error: BaseException) -> str:
    """Return any error as one line for a person; our own errors are such lines already."""
    text = " ".join(str(error).split()) if isinstance(error, JobError) else one_line(error)
    return escapes.visible(text)
