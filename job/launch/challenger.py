"""The challenger on the launcher: loaded beside the champion, bound to the shards, its columns named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from job.binding.predictions import prediction_fields
from job.compare.diff import CHALLENGER
from job.engines.engine import Fit
from job.errors import SchemaError
from job.launch import preflight
from job.model import challenger_spec
from job.model.signature import OutputSpec
from job.scoring.challenger import Challenger, policy_of
from job.shards.planner import Footer
from job.spec import ChallengerRun, ModelReference, ScoringSpec, Shard


def check(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    reference: ModelReference | None,
    fit: Fit,
    champion: preflight.Ready,
    announce: Callable[[str], None],
) -> Challenger | None:
    """Load and bind the challenger that a spec names; return ``None`` if it names none.

    With ``--on_bad_shard=reject``, ``announce`` is told which shards do not fit it.

    Raises:
        PreflightError: it cannot be loaded or bound, or its columns' names are taken.
    """
    if reference is None:
        return None
    alone = challenger_spec.as_the_model(spec)
    with challenger_spec.told(spec):
        ready = preflight.check(
            alone, shards, footers, reference, fit.threads, fit.machine, here=fit.here, champion=champion
        )
        fields = _fields(ready, champion)
        _check_names(fields, [*spec.keys, *(field.name for field in champion.predictions)])
    unfit = {path: text for path, text in ready.refused.items() if path not in champion.refused}
    if unfit:
        first, text = next(iter(unfit.items()))
        announce(f"--challenger={spec.challenger}: null for {len(unfit)} shard(s), first {first}: {text}")
    names = [field.name for field in fields]
    told = ChallengerRun(reference, ready.signature, preflight.scoring_text(alone, ready.binding, names))
    return Challenger(
        told, ready.binding, fields, policy_of(spec), ready.weights_digest, spec.batch_size or 0
    )


def _fields(ready: preflight.Ready, champion: preflight.Ready) -> tuple[pa.Field, ...]:
    """Return the challenger's columns. Each is named after the champion's column that it is compared with."""
    outputs = ready.loaded.signature.outputs
    names = _names(outputs, champion.loaded.signature.outputs, [field.name for field in champion.predictions])
    return tuple(field.with_name(f"{CHALLENGER}{field.name}") for field in prediction_fields(outputs, names))


def _names(
    outputs: Sequence[OutputSpec], champions: Sequence[OutputSpec], columns: Sequence[str]
) -> Sequence[str]:
    """Return the champion's column for each output of the challenger.

    If both models have one output, these two belong together whatever their names. Several outputs are
    matched by name. If one has no counterpart, nothing is returned, and all outputs keep their own names.
    """
    if len(outputs) == len(champions) == 1:
        return columns if len(columns) == 1 or outputs[0].shape == (len(columns),) else ()
    column_of = dict(zip((output.name for output in champions), columns, strict=False))
    names = [output.name for output in outputs]
    return [column_of[name] for name in names] if set(names) == column_of.keys() else ()


def _check_names(fields: Sequence[pa.Field], taken: Sequence[str]) -> None:
    both = [field.name for field in fields if field.name in taken]
    if both:
        raise SchemaError(
            f"its column {both[0]} is a key or a prediction as well; leave the key out, or name the "
            f"predictions by --prediction_columns"
        )
