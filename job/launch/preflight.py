"""Checks before the first prediction: every shard's footer against the model, all faults in one error.

A challenger is loaded beside the model, passes the same checks, and gets the names of its columns.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from job.binding.binding import Binding, bind, closest, disagreement, mismatches
from job.binding.columns import is_null, layout, nested_type, plain_type
from job.binding.predictions import check_names, prediction_fields
from job.errors import DataError, GateError, SchemaError, ShardError, as_flag
from job.gates import columns
from job.model import challenger_spec
from job.model.signature import OutputSpec, Signature, input_text, listed
from job.shards import planner
from job.shards.planner import Footer
from job.spec import ChallengerRun, ModelReference, Run, ScoringSpec, Shard, Split

if TYPE_CHECKING:
    from job.engines.engine import Fit
    from job.model.loading import LoadedModel
    from job.scoring.challenger import Challenger
    from job.scoring.golden import Golden

_MOST_MISMATCHES = 20
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


@dataclass(frozen=True, eq=False)
class Ready:
    """What the checks found.

    ``binding`` is how columns feed the model, ``predictions`` are the output's prediction columns.
    ``refused`` says for each bad shard, by path, what is wrong with it, and ``told`` says the same in one
    line for a person; both are empty unless bad shards are to be rejected. ``loaded`` is the model.
    """

    binding: Binding
    predictions: tuple[pa.Field, ...]
    signature: str
    weights_digest: str
    refused: Mapping[str, str]
    told: str
    golden: Golden | None
    loaded: LoadedModel
    key_types: tuple[tuple[str, pa.DataType], ...] = ()


def check(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    reference: ModelReference,
    threads: int,
    machine: str = "",
    *,
    here: bool = True,
    champion: Ready | None = None,
) -> Ready:
    """Load the model and check every footer against it.

    ``here`` is true if the rows are scored on this machine. If they are not, this machine needs no GPU, and
    its model is not shared. ``champion`` is given for a challenger: it is what was found of the first model.

    Raises:
        ModelError: the model cannot be loaded or built.
        ShardError: no shard can be read; or some cannot, and ``--on_bad_shard`` is ``fail``.
        SchemaError: columns and inputs do not fit. One message tells of all shards.
    """
    from job.scoring import golden

    wrong, schemas = _readable(shards, footers)
    beside = champion.loaded if champion else None
    loaded = acquired(spec, reference, threads, machine, here=here, beside=beside)
    schemas = _as_read(spec, footers, schemas, loaded.signature)
    _check_ignored_are_columns(spec, schemas)
    bound, binding, unbound = _bound(spec, shards, footers, schemas, loaded.signature, wrong, bool(champion))
    _check_ignored(spec, binding, champion)
    where = "the first shard" if bound == 0 else shards[bound].path
    wrong |= {**unbound, **_mismatches(schemas, schemas[bound], where, binding, spec)}
    _check_order(spec, shards, footers, schemas, bound, binding, wrong)
    _check_rejectable(spec, shards, footers, bound, wrong)
    loaded.build([feed.input for feed in binding.feeds])
    fields = prediction_fields(loaded.signature.outputs, spec.prediction_columns)
    # A challenger's columns get other names yet.
    check_names(fields, () if champion else spec.keys)
    return Ready(
        binding=binding,
        predictions=fields,
        signature=describe(loaded.signature),
        weights_digest=loaded.weights_digest,
        refused={shards[i].path: "; ".join(lines) for i, lines in wrong.items()},
        told=_grouped(wrong, shards),
        golden=golden.checked(spec, binding, fields, loaded),
        loaded=loaded,
        key_types=_key_types_of(spec, schemas, wrong),
    )


def _check_rejectable(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    bound: int,
    wrong: Mapping[int, Sequence[str]],
) -> None:
    """Raise what is ``wrong`` with shards, unless they are to be rejected.

    It is raised in any case for the ``bound`` shard. That one fits the model, so a flag must be wrong.
    """
    if wrong and (spec.on_bad_shard == "fail" or bound in wrong):
        kind = ShardError if all(footers[i].error for i in wrong) else SchemaError
        raise kind(_grouped(wrong, shards))


def acquired(
    spec: ScoringSpec,
    reference: ModelReference,
    threads: int,
    machine: str,
    *,
    here: bool,
    beside: LoadedModel | None,
) -> LoadedModel:
    """Load the model of a spec. ``here`` is as in :func:`check`, the rest as in ``model.loading.acquire``."""
    from job.model import loading

    return loading.acquire(
        reference,
        device=spec.device if here else "auto",
        threads=threads,
        machine=machine if here else "",
        stores=spec.stores,
        beside=beside,
    )


def _readable(
    shards: Sequence[Shard], footers: Sequence[Footer]
) -> tuple[dict[int, tuple[str, ...]], dict[int, pa.Schema]]:
    """Return the errors of shards whose footer cannot be read, and the schemas of the others.

    Both are by the shard's position.
    """
    wrong: dict[int, tuple[str, ...]] = {i: (foot.error,) for i, foot in enumerate(footers) if foot.error}
    if len(wrong) == len(shards):
        raise ShardError(_grouped(wrong, shards))
    return wrong, {
        i: planner.with_partitions(footer.schema, shard.partition)
        for i, (shard, footer) in enumerate(zip(shards, footers, strict=True))
        if not footer.error
    }


def _as_read(
    spec: ScoringSpec,
    footers: Sequence[Footer],
    schemas: Mapping[int, pa.Schema],
    signature: Signature,
) -> dict[int, pa.Schema]:
    """Return the schemas that rows will have when they are read.

    Fields of structs that are asked for become columns, and keys of INT96 timestamps have their unit.
    """
    named = (*spec.features, *signature.columns)
    return {i: _with_nested(_as_published(one, footers[i], spec), named) for i, one in schemas.items()}


def _as_published(schema: pa.Schema, footer: Footer, spec: ScoringSpec) -> pa.Schema:
    """Return a schema in which INT96 keys have the unit in which ``SplitReader`` reads them.

    That is microseconds, unless such a column feeds the model, which takes a ``--cast``.
    """
    in_micros = {field.name: field.type for field in footer.int96}
    if any(name.partition(".")[0] in in_micros for name, _ in spec.casts):
        return schema
    for name in spec.keys:
        if name in in_micros:
            schema = schema.set(schema.get_field_index(name), pa.field(name, in_micros[name]))
    return schema


def _with_nested(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return a schema with these fields of structs as further columns, under their dotted names."""
    found = {name: kind for name in names if (kind := nested_type(schema, name)) is not None}
    for name, kind in found.items():
        schema = schema.append(pa.field(name, kind))
    return schema


def check_refused(run: Run, splits: Sequence[Split], told: str, announce: Callable[[str], None]) -> None:
    """Announce bad shards, ``told`` in one line, that are to be rejected.

    Raises:
        DataError: they alone hold more rows than the run may reject.
    """
    refused = [split for split in splits if split.refused]
    rows = sum(split.rows for split in refused)
    share = run.share_rejected(rows, sum(not split.row_groups for split in refused))
    if share > run.max_rejected:
        raise DataError(
            f"bad shards hold {share:.2%} of the rows, more than --max_rejected={run.max_rejected}; nothing "
            f"was scored: {told}"
        )
    if told:
        announce(f"shards to be rejected: {told}")


@contextmanager
def shared(spec: ScoringSpec) -> Iterator[str]:
    """Yield the name under which workers of a machine share this launch's models, and free these at the end.

    It is empty if each process has its own.
    """
    key = uuid.uuid4().hex if spec.model_sharing == "machine" else ""
    try:
        yield key
    finally:
        # Where nothing had to be loaded, Beam has not been imported either.
        if key and "job.model.loading" in sys.modules:
            from job.model import loading

            loading.release(key)


def scoring_text(spec: ScoringSpec, binding: Binding, predictions: Sequence[str]) -> str:
    """Return, as JSON, what is needed to score a row again: the binding, and the flags on bad rows."""
    from job.scoring.rejects import RowPolicy

    feeds = [
        {
            "input": feed.input.name,
            "dtype": feed.input.dtype,
            "shape": list(feed.input.shape),
            "columns": list(feed.columns),
        }
        for feed in binding.feeds
    ]
    content = {
        "feeds": feeds,
        "fed_by": binding.by,
        "casts": dict(binding.casts),
        "keys": list(spec.keys),
        "predictions": list(predictions),
        **RowPolicy.of(spec, 0).choices,
        "on_bad_shard": spec.on_bad_shard,
        "device": spec.device,
    }
    return json.dumps(content, sort_keys=True)


def _bound(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    schemas: Mapping[int, pa.Schema],
    signature: Signature,
    unreadable: Mapping[int, Sequence[str]],
    spare_casts: bool,
) -> tuple[int, Binding, dict[int, tuple[str, ...]]]:
    """Bind as :func:`_bind` does. If the model takes serialized messages, an error says so."""
    try:
        found = _bind(spec, shards, footers, schemas, signature, unreadable, spare_casts)
        _check_serialized(signature, found[1], schemas[found[0]])
    except SchemaError as e:
        if not signature.serialized:
            raise
        raise SchemaError(
            f"{e} | the model's input {signature.serialized} takes serialized tf.Example messages: give a "
            f"binary column of them by --features, or export a signature that takes the features themselves"
        ) from e
    return found


def _bind(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    schemas: Mapping[int, pa.Schema],
    signature: Signature,
    unreadable: Mapping[int, Sequence[str]],
    spare_casts: bool,
) -> tuple[int, Binding, dict[int, tuple[str, ...]]]:
    """Bind one shard, with which all others are compared then.

    It is the first shard; or, if that does not fit, the first one of the commonest schema that fits. If bad
    shards are to be rejected, the commonest schema comes first.

    Returns:
        The position of the bound shard; the binding; and the first shard's error by its position, if it could
        not be bound and bad shards fail the run.
    """
    candidates = _commonest(schemas)
    if spec.on_bad_shard == "fail":
        candidates = list(dict.fromkeys([min(schemas), *candidates]))
    failed: dict[int, tuple[str, ...]] = {}
    for i in candidates:
        try:
            binding = bind(
                schemas[i],
                signature,
                keys=spec.keys,
                unasked=_unasked(spec, shards[i], footers[i]),
                features=spec.features,
                casts=spec.casts,
                spare_casts=spare_casts,
            )
        except SchemaError as e:
            failed = failed or {i: (str(e),)}
        else:
            of_nulls = [j for j in failed if _fits_by_nulls(schemas[j], binding, spec.keys)]
            failed = {j: lines for j, lines in failed.items() if j not in of_nulls}
            return i, binding, failed if spec.on_bad_shard == "fail" else {}
    ((i, (line,)),) = failed.items()
    others = f"; {_grouped(unreadable, shards)}" if unreadable else ""
    raise SchemaError(f"{line} | of the first of {len(shards)} shards, {shards[i].path}{others}")


def _fits_by_nulls(schema: pa.Schema, binding: Binding, keys: Sequence[str]) -> bool:
    """Return whether a shard fits, though it could not be bound by itself: columns hold nothing but nulls."""
    types = {field.name: field.type for field in schema}
    has_nulls = any(name in types and is_null(layout(types[name]).leaf) for name in binding.columns)
    return has_nulls and not mismatches(schema, binding, keys)


def _check_serialized(signature: Signature, binding: Binding, schema: pa.Schema) -> None:
    """Raise ``SchemaError`` for text columns if the model takes serialized messages: every row would fail."""
    for feed in binding.feeds if signature.serialized else ():
        for name in feed.columns:
            if not _is_bytes(schema.field(name).type):
                raise SchemaError(f"column {name!r}: {schema.field(name).type}, which holds no messages")


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests) or pa.types.is_fixed_size_binary(kind)


def _commonest(schemas: Mapping[int, pa.Schema]) -> list[int]:
    """Return the position of the first shard of each schema, the commonest schema first."""
    distinct: list[tuple[pa.Schema, list[int]]] = []
    for i, schema in schemas.items():
        places = next((places for seen, places in distinct if seen.equals(schema)), None)
        if places is None:
            distinct.append((schema, places := []))
        places.append(i)
    return [places[0] for _, places in sorted(distinct, key=lambda one: -len(one[1]))]


def describe(signature: Signature) -> str:
    """Return a signature as one line: ``x float32[10] → y float32[1]``."""
    sides = (signature.inputs, signature.outputs)
    return " → ".join(", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in side) for side in sides)


def _mismatches(
    schemas: Mapping[int, pa.Schema], bound: pa.Schema, where: str, binding: Binding, spec: ScoringSpec
) -> dict[int, tuple[str, ...]]:
    """Return the errors of each shard that does not fit, by its position.

    ``bound`` is the schema of the bound shard, ``where`` how a message calls that shard.
    """
    from job.scoring.rejects import RowPolicy

    policy = RowPolicy.of(spec, 0)
    known: list[tuple[pa.Schema, tuple[str, ...]]] = []
    wrong: dict[int, tuple[str, ...]] = {}
    for i, schema in schemas.items():
        # Most shards have one of a few schemas; each is checked once.
        lines = next((lines for seen, lines in known if seen.equals(schema)), None)
        if lines is None:
            lines = (
                *mismatches(schema, binding, spec.keys),
                *_key_types(schema, bound, where, spec.keys),
                *_unwritable_keys(schema, spec.keys),
                *_cast_types(schema, bound, where, binding),
                *policy.misfits(schema, binding),
            )
            known.append((schema, lines))
        if lines:
            wrong[i] = lines
    return wrong


def _grouped(wrong: Mapping[int, Sequence[str]], shards: Sequence[Shard]) -> str:
    """Return one line with every fault once: how many shards have it, and the first of them."""
    places: dict[str, list[int]] = {}
    for i in sorted(wrong):
        for line in wrong[i]:
            places.setdefault(line, []).append(i)
    total = len(shards)
    found = [
        f"{line} in {len(of)} of {total} shards, first {shards[of[0]].path}" for line, of in places.items()
    ]
    more = f"; and {len(found) - _MOST_MISMATCHES} more" if len(found) > _MOST_MISMATCHES else ""
    return "; ".join(found[:_MOST_MISMATCHES]) + more


def _key_types(schema: pa.Schema, bound: pa.Schema, where: str, keys: Sequence[str]) -> tuple[str, ...]:
    names, others = frozenset(schema.names), frozenset(bound.names)
    return tuple(
        f"key {key}: {schema.field(key).type}, but {bound.field(key).type} in {where}"
        for key in keys
        if key in names
        and key in others
        and _one_type([schema.field(key).type, bound.field(key).type]) is None
    )


def _one_type(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """Return the one type in which values of all these types can be published, or ``None``.

    All kinds of text become text, all kinds of bytes become bytes, and a column of nulls fits any type.
    """
    distinct = list(dict.fromkeys(kinds))
    if len(distinct) == 1:
        return distinct[0]
    plain = {plain_type(kind) for kind in distinct if not pa.types.is_null(kind)}
    for family, one in ((_TEXTS, pa.string()), (_BYTES, pa.binary())):
        if all(any(test(kind) for test in family) for kind in plain):
            return one
    return plain.pop() if len(plain) == 1 else None


def _key_types_of(
    spec: ScoringSpec, schemas: Mapping[int, pa.Schema], wrong: Collection[int]
) -> tuple[tuple[str, pa.DataType], ...]:
    """Return the published types of those keys that have several types in the shards.

    A night is read as one data set, so each key needs one type. Shards that are ``wrong`` do not count.
    """
    found = []
    for key in spec.keys:
        fitting = (schema for i, schema in schemas.items() if i not in wrong)
        kinds = [schema.field(key).type for schema in fitting if key in schema.names]
        if len(set(kinds)) > 1 and (one := _one_type(kinds)) is not None:
            found.append((key, one))
    return tuple(found)


def _unwritable_keys(schema: pa.Schema, keys: Sequence[str]) -> tuple[str, ...]:
    from job.scoring.writer import unwritable

    of_keys = pa.schema([field for field in schema if field.name in keys])
    bad = [of_keys.field(i) for i in unwritable(of_keys)]
    return tuple(
        f"key {field.name}: {field.type}, which Arrow can read and not write; take it out of --keys"
        for field in bad
    )


def _cast_types(schema: pa.Schema, bound: pa.Schema, where: str, binding: Binding) -> tuple[str, ...]:
    """Return one line for each cast column whose type is not that of the bound shard.

    The result of a cast depends on the type: the same time in seconds and in microseconds gives two numbers.
    Dictionary encoding and the kind of list do not matter.
    """
    names = frozenset(schema.names)
    return tuple(
        f"column {name!r}, which --cast names: {schema.field(name).type}, but {bound.field(name).type} in "
        f"{where}, of which the cast would make other values; write all shards with one type"
        for name, _ in binding.casts
        if name in names and _leaves_differ(schema.field(name).type, bound.field(name).type)
    )


def _leaves_differ(one: pa.DataType, other: pa.DataType) -> bool:
    leaves = layout(one).leaf, layout(other).leaf
    return leaves[0] != leaves[1] and not any(map(is_null, leaves))


def _unasked(spec: ScoringSpec, shard: Shard, footer: Footer) -> tuple[str, ...]:
    """Return the columns that feed the model only if a flag or the model names them.

    These are Hive folders, the index of a data frame, and the columns of ``--ignore``.
    """
    named = (*spec.features, *spec.keys)
    folders = (name for name, _ in shard.partition if name not in footer.schema.names)
    return tuple(name for name in (*folders, *footer.index_columns, *spec.ignore) if name not in named)


def _check_ignored_are_columns(spec: ScoringSpec, schemas: Mapping[int, pa.Schema]) -> None:
    for name in spec.ignore:
        if not any(name in schema.names for schema in schemas.values()):
            first = next(iter(schemas.values()))
            raise SchemaError(
                f"--ignore names {name!r}, which is no column{closest(name, first.names)}; leave it out"
            )


def _check_ignored(spec: ScoringSpec, binding: Binding, champion: Ready | None) -> None:
    """Raise ``UsageError`` if ``--ignore`` names a column that every model of the run takes by name.

    A model that takes a column by name gets it: of a champion and a challenger, the flag may be meant for the
    other. ``binding`` is that of the model that was bound last.
    """
    if spec.challenger is not None:
        # Whether it ignores the column is not known yet.
        return
    bindings = [binding, *([champion.binding] if champion else [])]
    who = "the champion and the challenger take" if champion else "the model takes"
    for name in spec.ignore:
        if all(name in one.columns for one in bindings):
            raise SchemaError(f"--ignore names {name!r}, which {who} by this name; leave it out")


def _check_order(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    schemas: Mapping[int, pa.Schema],
    bound: int,
    binding: Binding,
    wrong: Mapping[int, Sequence[str]],
) -> None:
    """Check that all shards have the columns that feed the model by position in one order.

    Nothing tells which shard has the right order. So this fails the run even if bad shards are rejected.
    ``wrong`` are shards that do not fit for other reasons; the message has them too.

    Raises:
        SchemaError: a shard has another order.
    """
    known: list[tuple[pa.Schema, tuple[str, ...], str]] = []
    found: dict[int, tuple[str, ...]] = {}
    fitting = {i: schema for i, schema in schemas.items() if i not in wrong}
    for i, schema in fitting.items() if binding.by == "position" else ():
        unasked = _unasked(spec, shards[i], footers[i])
        line = next((line for one, aside, line in known if aside == unasked and one.equals(schema)), None)
        if line is None:
            line = disagreement(schema, binding, spec.keys, unasked)
            known.append((schema, unasked, line))
        if line:
            found[i] = (line,)
    if found:
        more = f"; besides, {_grouped(wrong, shards)}" if wrong else ""
        raise SchemaError(
            f"columns feed the model by position, {_fed(binding)} in {shards[bound].path}, and not all "
            f"shards agree: {_grouped(found, shards)}; say which columns it takes, in its order: "
            f"{as_flag('features', *binding.columns)}{more}"
        )


def _fed(binding: Binding) -> str:
    return "; ".join(f"{listed(feed.columns)} → {input_text(feed.input)}" for feed in binding.feeds)


def check_same(spec: ScoringSpec, binding: Binding, before: Mapping[str, Any] | None, where: str) -> None:
    """Compare a binding by position with that of the last published night.

    Args:
        spec: what is to be scored.
        binding: how its columns feed the model.
        before: that night's manifest, or the part on its challenger; ``None`` if there is none.
        where: the folder of that night.

    Raises:
        GateError: other columns fed its model, or in another order.
    """
    if told := columns.changed(binding.by, [feed.columns for feed in binding.feeds], where, before):
        raise GateError(
            f"{spec.output}: {told}; nothing was scored; if today's are right, say so with "
            f"{as_flag('features', *binding.columns)}, else give the others"
        )


def check_challenger(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    reference: ModelReference | None,
    fit: Fit,
    champion: Ready,
    announce: Callable[[str], None],
) -> Challenger | None:
    """Load and bind the challenger that a spec names; return ``None`` if it names none.

    With ``--on_bad_shard=reject``, ``announce`` is told which shards do not fit it.

    Raises:
        PreflightError: it cannot be loaded or bound, or its columns' names are taken.
    """
    if reference is None:
        return None
    from job.scoring.challenger import Challenger, policy_of

    alone = challenger_spec.as_the_model(spec)
    with challenger_spec.told(spec):
        ready = check(
            alone, shards, footers, reference, fit.threads, fit.machine, here=fit.here, champion=champion
        )
        fields = _challenger_fields(ready, champion)
        _check_not_taken(fields, [*spec.keys, *(field.name for field in champion.predictions)])
    unfit = {path: text for path, text in ready.refused.items() if path not in champion.refused}
    if unfit:
        first, text = next(iter(unfit.items()))
        announce(f"--challenger={spec.challenger}: null for {len(unfit)} shard(s), first {first}: {text}")
    names = [field.name for field in fields]
    told = ChallengerRun(reference, ready.signature, scoring_text(alone, ready.binding, names))
    return Challenger(
        told, ready.binding, fields, policy_of(spec), ready.weights_digest, spec.batch_size or 0
    )


def _challenger_fields(ready: Ready, champion: Ready) -> tuple[pa.Field, ...]:
    """Return the challenger's columns. Each is named after the champion's column that it is compared with."""
    from job.compare.diff import CHALLENGER

    outputs = ready.loaded.signature.outputs
    names = _columns_beside(
        outputs, champion.loaded.signature.outputs, [field.name for field in champion.predictions]
    )
    return tuple(field.with_name(f"{CHALLENGER}{field.name}") for field in prediction_fields(outputs, names))


def _columns_beside(
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


def _check_not_taken(fields: Sequence[pa.Field], taken: Sequence[str]) -> None:
    both = [field.name for field in fields if field.name in taken]
    if both:
        raise SchemaError(
            f"its column {both[0]} is a key or a prediction as well; leave the key out, or name the "
            f"predictions by --prediction_columns"
        )
