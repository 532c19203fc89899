"""Passwords, keys and tokens, which are replaced by ``***`` in every text that leaves the process.

They come in through flags (Beam has ``--s3_secret_access_key``), through the environment and in URLs, and the
error messages of libraries repeat them. So each text is searched for them once, where it leaves the process.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Final

from job import escapes

_HIDDEN: Final = "***"
_NAME: Final = re.compile(
    r"secret|passw|token|credential|access_?key|api_?key|private_?key|connection_?string|notify_url|"
    r"(?<![a-z])sas(?![a-z])",
    re.IGNORECASE,
)
# A shorter value could be part of an ordinary word.
_FEWEST_CHARACTERS: Final = 6
# A URL with a user's name, and perhaps a password, before its host.
_USER: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
# Signed URLs of all clouds, and settings in texts: name=value.
_PARAMETER: Final = re.compile(r"(?P<name>[\w.-]+)=(?P<value>[^\s&;,'\"]+)")
_SIGNED: Final = frozenset({"sig", "awsaccesskeyid", "x-amz-signature", "x-goog-signature"})
# The path of a secret is no secret, and messages must show it.
_PLACE: Final = re.compile(r"(file|path|dir|credentials)$", re.IGNORECASE)

_learned: set[str] = set()


def learn(args: Sequence[str]) -> None:
    """Remember the values of flags that sound secret, as ``--name=value`` or ``--name value``."""
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.startswith("-") and _NAME.search(name) and not _PLACE.search(name):
            value = value if equals else next(iter(args[i + 1 : i + 2]), "")
            if len(value) >= _FEWEST_CHARACTERS and not value.startswith("--"):
                _learned.add(value)


def flags(args: Sequence[str]) -> list[str]:
    """Return flags in a form that may be shown; even a short secret is hidden."""
    shown: list[str] = []
    hide = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        secret = name.startswith("-") and bool(_NAME.search(name)) and not _PLACE.search(name)
        if hide and not arg.startswith("--"):
            shown.append(_HIDDEN)
        else:
            shown.append(f"{name}={_HIDDEN}" if secret and equals else scrub(arg))
        hide = secret and not equals
    return shown


def scrub(text: str) -> str:
    """Return a text with every secret in it replaced by ``***``."""
    named = (value for name, value in os.environ.items() if _NAME.search(name) and not _PLACE.search(name))
    for value in sorted({*_learned, *named}, key=len, reverse=True):
        if len(value) >= _FEWEST_CHARACTERS:
            text = text.replace(value, _HIDDEN)
    text = _USER.sub(rf"\g<scheme>{_HIDDEN}@", text)
    return _PARAMETER.sub(_hide_parameter, text)


def _hide_parameter(found: re.Match[str]) -> str:
    name = found["name"]
    if name.lower() in _SIGNED or (_NAME.search(name) and not _PLACE.search(name)):
        return f"{name}={_HIDDEN}"
    return found[0]


class Scrubbing(logging.Formatter):
    """Removes secrets and escapes from what libraries log, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole text of a record; its line breaks stay."""
        return escapes.visible_lines(scrub(super().format(record)))
