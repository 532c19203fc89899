r"""Characters that would steer a terminal: they are shown as escapes such as ``\u001b``, and never sent.

Names of columns, shards and models come from other people's files, and so do values and many errors. An
escape sequence in one could recolour or overwrite the reader's terminal. A line break, or a character that
changes the writing direction, could show text that is not there. So every text is escaped where it leaves the
process: ``job.terminal.console``, ``job.terminal.progress``, log records and pages.

The escapes are those of JSON, TOML and Python, so texts in these forms keep their meaning. Files for
programs, such as the manifest and the rows, keep the true names.
"""

from __future__ import annotations

import re
from typing import Final

# C0, DEL and C1; marks, embeddings, overrides and isolates of writing directions; line and paragraph
# separators; lone surrogates, as in file names that are not UTF-8, which cannot be encoded.
_STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    """Return a text as one line with escapes; doing it twice changes nothing more."""
    return _STEERING.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """Return a text with escapes whose line breaks stay."""
    return "\n".join(map(visible, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}"
