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
    """The models of a run. ``challenger`` is ``None`` if the run has none."""

    champion: ModelReference
    challenger: ModelReference | None

    @classmethod
    def of(cls, spec: ScoringSpec, resolve: Callable[[ScoringSpec], ModelReference]) -> Models:
        """Return the models that a spec names.

        Raises:
            ModelError: one is absent, or no model, or not trusted enough.
            UsageError: a flag does not go with it.
        """
        champion = resolve(spec)
        if spec.challenger is None:
            return cls(champion, None)
        with challenger_spec.told(spec):
            return cls(champion, resolve(challenger_spec.as_the_model(spec)))

    @property
    def built(self) -> bool:
        """Return whether a builder makes one of them; a builder may read other files."""
        every = [self.champion, *([] if self.challenger is None else [self.challenger])]
        return any(not artifact.kind_of(one.path).has_files for one in every)

    def changed(self, manifest: Mapping[str, Any]) -> list[str]:
        """Return the files that builders read for a published night and that have changed since.

        To be called on what :meth:`reading_as_before` returned.
        """
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
        """Return the models with the files that their builders read for a published night.

        The files' digests are taken anew, so the models get the same run id only if no file has changed.
        """
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
    """Return the run's id, a SHA-256 in hex.

    Options that came later are part of it only if they are used, so that older runs keep their ids.
    """
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
    """Announce which models were chosen for globs and aliases: ``asked`` has those, ``spec`` the models."""
    for name in ("model", "challenger"):
        named, path = getattr(asked, name), getattr(spec, name)
        if named and versions.stands_for_another(named):
            announce(f"--{name}={named}: {path}")
