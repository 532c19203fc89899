"""How values are written: what a form describes to programs is what it takes from people."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job import forms
from job.cli import parser
from job.cli.commands.backfill import BackfillOptions
from job.errors import UsageError
from job.flags import Flag
from job.forms import Form

# Exact: a text that matches the pattern is taken, any other is refused.
EXACT: list[Form] = [
    forms.Count(),
    forms.Count.or_auto("rows"),
    forms.Whole(),
    forms.Number(),
    forms.Signed(),
    forms.Duration(),
    forms.Digest(),
    forms.Choice.of(("reject", "fail")),
    forms.Choice.of(("reject", "fail"), "fill=VALUE"),
]
ALMOST = st.text("0123456789+-.eE_ smhdautofilrjc=\n\u0661²", max_size=12)


@pytest.mark.parametrize("form", EXACT, ids=lambda form: f"{type(form).__name__}-{form.metavar}")
@given(st.data())
def test_the_pattern_is_what_is_taken(form: Form, data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.from_regex(re.compile(form.pattern, re.ASCII), fullmatch=True), ALMOST))
    if re.fullmatch(form.pattern, text):
        form.parse("flag", text)
    else:
        with pytest.raises(UsageError, match=r"^--flag="):
            form.parse("flag", text)


@given(st.integers(0, 10**18), st.sampled_from(["", "+", "0", "00"]))
def test_digits_are_pythons(number: int, prefix: str) -> None:
    assert forms.Whole().parse("n", str(number)) == number
    if number:
        assert forms.Count().parse("n", f"{prefix}{number}") == number
        assert forms.Count.or_auto("rows").parse("n", f"{prefix}{number}") == number


@given(st.floats(0, 1e15), st.floats(0, 1))
def test_numbers_are_pythons(number: float, share: float) -> None:
    assert forms.Number().parse("x", repr(abs(number))) == number
    assert forms.Signed().parse("x", repr(-abs(number))) == -number
    assert forms.Share().parse("x", repr(abs(share))) == share


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90m", 5400), ("12h", 43_200), ("7d", 604_800)])
def test_times_in_seconds(text: str, seconds: float) -> None:
    assert forms.Duration().parse("t", text) == seconds
    assert forms.Duration().parse("t", forms.Duration().write(seconds)) == seconds


def test_a_count_may_have_an_end() -> None:
    assert forms.Count(most=9).parse("n", "9") == 9
    with pytest.raises(UsageError, match="--n=10: must be a whole number of rows from 1 to 9"):
        forms.Count(most=9).parse("n", "10")


def given_by(flag: Flag, *texts: str) -> dict[str, Any]:
    return {flag.name: list(texts)}


@pytest.mark.parametrize("flag", parser.flags_of(BackfillOptions), ids=lambda flag: flag.name)
def test_a_default_is_what_its_text_stands_for(flag: Flag) -> None:
    """Which help, the template and the docs show."""
    if isinstance(flag.form, forms.Switch):
        assert flag.value(dict.fromkeys(flag.names, False)) is flag.default
    elif flag.default_text:
        assert flag.value(given_by(flag, flag.default_text)) == flag.default
    else:
        assert flag.default in (None, "", ())


@pytest.mark.parametrize("flag", parser.flags_of(BackfillOptions), ids=lambda flag: flag.name)
def test_a_flag_that_is_empty_or_given_twice_is_refused(flag: Flag) -> None:
    if isinstance(flag.form, forms.Switch):
        return
    with pytest.raises(UsageError, match=rf"^--{flag.name}= is empty; give a"):
        flag.value(given_by(flag, ""))
    if not isinstance(flag.form, forms.Inputs):
        with pytest.raises(UsageError, match=rf"^--{flag.name} is given twice, as '1' and '2'; give it once"):
            flag.value(given_by(flag, "1", "2"))


def test_a_switch_and_its_opposite() -> None:
    (wait,) = [flag for flag in parser.flags_of() if flag.name == "wait"]
    assert wait.names == ("wait", "no_wait")
    assert wait.value({"wait": False, "no_wait": True}) is False
    assert replace(wait, default=False).value({"wait": True, "no_wait": False}) is True
