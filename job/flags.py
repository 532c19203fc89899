"""What a flag is, and where everybody reads it.

A flag is declared once, as the annotation of a field in a dataclass::

    split_rows: Annotated[int, Flag(Group.RUNNING, "about how many rows …", Count())] = 2_000_000

The field gives the name, the type and the default, the :class:`Flag` the rest. Everything that knows flags
reads them from there, by :func:`declared`: the command line and its help, the TOML file, its JSON Schema, the
Flex Template, the table in the docs, and the options in a run's id. ``job.spec.ScoringSpec`` declares what
shapes a night, ``job.cli`` what else a command may be told.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from typing import Any, get_type_hints

from job.forms import Form, Switch


class Group(Enum):
    """Where help shows a flag, in this order: a title, and a text in which ``{program}`` is filled in."""

    INPUT = ("input", "")
    MODEL = ("model", "")
    NIGHT = (
        "night",
        "The paths above and --output may hold {ds}, {ds_nodash}, {ds-1} or {ds:%Y/%m/%d}.",
    )
    BINDING = ("binding", "A name that holds a comma goes in double quotes.")
    BAD_ROWS = ("bad rows", "")
    GATES = (
        "gates before publishing",
        "What is refused stays in staging; `{program} publish` releases it. See docs/gates.md.",
    )
    GOLDEN = ("golden rows", "`{program} golden` makes such a file of a night that is right.")
    CHALLENGER = (
        "challenger",
        "A second model, scored in the same pass into columns of its own. See docs/challenger.md.",
    )
    OUTPUT = ("output", "")
    RUNNING = ("running", "")
    NOTIFICATIONS = ("notifications", "")

    def __init__(self, title: str, text: str) -> None:
        self.title = title
        self.text = text


class RunId(Enum):
    """Whether a flag's value is part of the run's id, because it changes the bytes of the output."""

    NEVER = "never"
    # Only for flags from before the first release: one that is added later would change every id.
    ALWAYS = "always"
    # Where it is not the default, so that runs from before the flag keep their ids.
    IF_SET = "if set"
    WITH_CHALLENGER = "with a challenger"


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        group: where help shows it.
        text: its help: what it does, without a full stop.
        form: how its value is written.
        name: the flag without dashes; left out, it is the field's name.
        run_id: whether its value is part of the run's id.
        in_file: whether a configuration's file may have it.
        in_template: whether it is a parameter of the Flex Template.
        label: what the template calls it; left out, it is made of the name.
        template_text: the template's help, where it differs.
        more: what the table in the docs adds, in Markdown.
        field: the name of the field, filled in by :func:`declared`.
        default: the field's default, ``None`` where it is required; filled in likewise.
        required: whether the field has no default; filled in likewise.
    """

    group: Group
    text: str
    form: Form
    name: str = ""
    run_id: RunId = RunId.NEVER
    in_file: bool = True
    in_template: bool = True
    label: str = ""
    template_text: str = ""
    more: str = ""
    field: str = ""
    default: Any = None
    required: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The flag, and the one that says the opposite."""
        off = self.form.off if isinstance(self.form, Switch) else ""
        return (self.name, off) if off else (self.name,)

    @property
    def default_text(self) -> str:
        """The default as a person would write it, empty where there is none."""
        return self.form.write(self.default)

    @property
    def help(self) -> str:
        """The text with the default, where that says something."""
        shown = "" if isinstance(self.form, Switch) or "(default" in self.text else self.default_text
        return f"{self.text} (default: {shown})" if shown else self.text

    def shapes(self, spec: object, *, with_challenger: bool) -> bool:
        """Say whether the flag's value in a spec is part of the run's id."""
        match self.run_id:
            case RunId.ALWAYS:
                return True
            case RunId.IF_SET:
                return bool(getattr(spec, self.field) != self.default)
            case RunId.WITH_CHALLENGER:
                return with_challenger
        return False

    def value(self, given: Mapping[str, Any]) -> Any:
        """Return the value that a command line gives, or the default.

        ``given`` has the texts of each flag by its name, and of a switch whether it is there.

        Raises:
            UsageError: the flag is given twice, or a text is not of its form.
        """
        if isinstance(self.form, Switch):
            on, off = given[self.name], bool(self.form.off) and given[self.form.off]
            return not off if on or off else self.default
        return self.form.value(self.name, texts) if (texts := given[self.name]) else self.default


@functools.cache
def declared(*owners: type) -> tuple[Flag, ...]:
    """Return the flags that the fields of dataclasses declare, in the order of help."""
    found = []
    for owner in owners:
        hints = get_type_hints(owner, include_extras=True)
        for field in fields(owner):
            for flag in getattr(hints[field.name], "__metadata__", ()):
                if isinstance(flag, Flag):
                    required = field.default is MISSING
                    default = None if required else field.default
                    name = flag.name or field.name
                    found.append(
                        replace(flag, name=name, field=field.name, default=default, required=required)
                    )
    order = list(Group)
    return tuple(sorted(found, key=lambda flag: order.index(flag.group)))


def values(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the fields of a dataclass that declare flags, for its constructor.

    ``given`` is as in :meth:`Flag.value`.

    Raises:
        UsageError: a flag is given twice, or a text is not of its form.
    """
    return {flag.field: flag.value(given) for flag in declared(owner)}
