"""The challenger's flags: a spec as it would be if the challenger were the model, and errors told likewise.

So whatever chooses, digests, loads and binds a model serves for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from job.errors import JobError, UsageError
from job.model import artifact, builder
from job.spec import ScoringSpec

# What a flag of the model is called for the challenger.
_NAMES: Final = {
    "model": "challenger",
    "weights": "challenger_weights",
    "model_sha256": "challenger_sha256",
    "signature": "challenger_signature",
    "features": "challenger_features",
}
_OTHERS: Final = tuple(name for name in _NAMES.values() if name != "challenger")
_FLAGS: Final = re.compile(rf"--({'|'.join(_NAMES)})\b")


def check(spec: ScoringSpec) -> None:
    """Refuse flags of a challenger that is not there, and weights that it cannot have.

    Raises:
        UsageError: such a flag.
    """
    if spec.challenger is None:
        for name in _OTHERS:
            if getattr(spec, name):
                raise UsageError(f"--{name}: there is no --challenger; give one, or leave it out")
    elif spec.challenger_weights is not None and not builder.BUILDER.fullmatch(spec.challenger):
        with told(spec):
            raise artifact.misplaced_weights(spec.challenger, spec.challenger_weights)


def as_the_model(spec: ScoringSpec) -> ScoringSpec:
    """Return a spec of which the challenger is the only model."""
    if spec.challenger is None:
        raise ValueError("there is no challenger")
    return replace(
        spec,
        model=spec.challenger,
        weights=spec.challenger_weights,
        model_sha256=spec.challenger_sha256,
        signature=spec.challenger_signature,
        features=spec.challenger_features or spec.features,
        prediction_columns=(),
        golden=None,
        challenger=None,
    )


@contextmanager
def told(spec: ScoringSpec) -> Iterator[None]:
    """Raise what goes wrong in the body, which deals with the challenger as the model, with its own flags."""
    try:
        yield
    except JobError as e:
        text = _FLAGS.sub(lambda found: f"--{_NAMES[found[1]]}", str(e))
        if "--challenger=" not in text:
            text = f"--challenger={spec.challenger}: {text}"
        raise type(e)(text) from e
