"""Library errors in one line: what is kept of a long one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import one_line

DUMP = "{'class_name': 'Own', 'config': {'name': 'own', 'dtype': {'module': 'keras', 'units': [1, 2, 3]}}}"
ABOUT = "<class 'keras.Sequential'> could not be deserialized properly. Please ensure that all components."
MISSING = "Exception encountered: Could not locate class 'Own'."
ADVICE = "Make sure custom classes are decorated, and that whatever decorates them is imported before that."


def test_a_short_error_is_told_as_it_is() -> None:
    assert one_line(ValueError("no\n  {'a': 1}\x1b[31m here")) == "ValueError: no {'a': 1} here"


def test_the_class_that_is_missing_is_kept() -> None:
    text = f"{ABOUT} config={DUMP}. {ABOUT} config={DUMP}. {MISSING} {ADVICE} {ADVICE} Full object: {DUMP}"
    told = one_line(TypeError(text))
    assert MISSING in told
    assert "config=" in told or DUMP not in told
    assert len(told) <= 320
    assert told.startswith("TypeError: <class 'keras.Sequential'> could not")


@pytest.mark.parametrize("words", ["abc " * 400, "abc" * 400])
def test_what_has_no_sentences_keeps_its_ends(words: str) -> None:
    told = one_line(ValueError(f"begin {words} end"))
    assert told.startswith("ValueError: begin abc")
    assert told.endswith("end")
    assert len(told) < 330


@given(st.text(alphabet="ab .'{}[]\n1", max_size=900))
def test_every_text_becomes_one_line_of_bounded_length(text: str) -> None:
    told = one_line(ValueError(text))
    assert "\n" not in told
    assert len(told) <= 320
