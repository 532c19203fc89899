r"""Characters that steer a terminal, shown instead of sent.

Names of columns, shards and models come from other people's files, and so do values and many errors. One that
holds an escape sequence would recolour, overwrite or retitle the terminal of whoever reads about it; one with
a line break, or with a character that turns the direction of writing, would tell of what is not there. So
every text is looked through at the door that it leaves by: ``job.terminal.console``,
``job.terminal.progress``, what is logged,
and the pages.

They are shown as JSON, TOML and Python write them, ``\u001b``, so that text of these means what it meant.
What is written for programs, the manifest and the rows, keeps the true names.
"""

from __future__ import annotations

import re
from typing import Final

# C0, DEL and C1; marks, embeddings, overrides and isolates of writing directions; line and paragraph
# separators; halves of characters, as in names of files that are no UTF-8, which no terminal can be sent.
_STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    """Return a text as one line that steers nothing; twice is the same as once."""
    return _STEERING.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """Return the same of a text whose line breaks are meant."""
    return "\n".join(map(visible, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}"
