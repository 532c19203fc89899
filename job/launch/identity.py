"""What a run is: its shards, its models, and the options that shape its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from job.commit import protocol
from job.flags import declared
from job.model import artifact, challenger_spec, provenance, versions
from job.spec import ModelReference, ScoringSpec, Shard


@dataclass(frozen=True)
class Models:
    """The models of a run; ``challenger`` is ``None`` where there is none."""

    champion: ModelReference
    challenger: ModelReference | None

    @classmethod
    def of(cls, spec: ScoringSpec, resolve: Callable[[ScoringSpec], ModelReference]) -> Models:
        """Resolve what a spec names; raises ``ModelError`` or ``UsageError``."""
        champion = resolve(spec)
        if spec.challenger is None:
            return cls(champion, None)
        with challenger_spec.told(spec):
            return cls(champion, resolve(challenger_spec.as_the_model(spec)))

    @property
    def built(self) -> bool:
        """Say whether one of them is made by a builder, which may read anything."""
        every = [self.champion, *([] if self.challenger is None else [self.challenger])]
        return any(not artifact.kind_of(one.path).has_files for one in every)

    def changed(self, manifest: Mapping[str, Any]) -> list[str]:
        """Return what builders read for a night and is not what it was; after :meth:`reading_as_before`."""
        told = [manifest.get("model"), manifest.get("challenger")]
        of = [self.champion.reads, self.challenger.reads if self.challenger else ()]
        return [
            path
            for one, reads in zip(told, of, strict=True)
            if isinstance(one, dict)
            for path, digest in reads
            if one["reads"][path] != digest
        ]

    def reading_as_before(self, manifest: Mapping[str, Any] | None) -> Models:
        """Return them as they are if their builders read what they did for a night that there is."""
        if manifest is None:
            return self
        champion = _reading_as_before(self.champion, manifest.get("model"))
        rival = self.challenger
        return Models(champion, rival and _reading_as_before(rival, manifest.get("challenger")))


def _reading_as_before(reference: ModelReference, told: object) -> ModelReference:
    if not isinstance(told, dict) or told.get("path") != reference.path:
        return reference
    # Nights from before this was noted have nothing of it.
    reads = told.get("reads")
    return replace(reference, reads=provenance.now(reads)) if isinstance(reads, dict) else reference


def run_id(spec: ScoringSpec, shards: Sequence[Shard], models: Models) -> str:
    """Return the run's identity; without a challenger it is what it was before there were any."""
    rival = models.challenger
    options = {
        flag.field: getattr(spec, flag.field)
        for flag in declared(ScoringSpec)
        if flag.shapes(spec, with_challenger=rival is not None)
    }
    if rival is not None:
        options["challenger"] = rival.identity
    return protocol.run_id(shards, models.champion.identity, options)


def announce_chosen(asked: ScoringSpec, spec: ScoringSpec, announce: Callable[[str], None]) -> None:
    """Tell which models a glob or an alias stood for; ``spec`` is what came of ``asked``."""
    for name in ("model", "challenger"):
        named, path = getattr(asked, name), getattr(spec, name)
        if named and versions.stands_for_another(named):
            announce(f"--{name}={named}: {path}")
