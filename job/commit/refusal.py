"""The note that a refused night has in its staging: the run itself, and what the gates had against it.

With it, another process can publish the night without its model, its shards or its command.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, Final

from job import storage
from job.commit import staging
from job.errors import StateUnknownError
from job.gates.comparison import Compared, as_tuples
from job.spec import ChallengerRun, Gates, ModelReference, Run, StoreOptions

NOTE: Final = "refused.json"


def write(run: Run, compared: Compared) -> None:
    """Note that the gates have refused a run."""
    limits = {**dict(run.gates.limits), "baselines": run.gates.baselines}
    content = {"run": {**asdict(run), "gates": limits}, "compared": compared.to_fields()}
    storage.write_atomic(_path(run.output, run.run_id), json.dumps(content).encode())


def read(output: str, run: str) -> tuple[Run, Compared] | None:
    """Return a refused run and why it was; ``None`` where no gate has refused it.

    Raises:
        StateUnknownError: the note cannot be made out.
    """
    content = storage.read_bytes(_path(output, run))
    if content is None:
        return None
    try:
        told = json.loads(content)
        return _run(told["run"]), Compared.of_fields(told["compared"])
    except (ValueError, TypeError, KeyError) as e:
        raise StateUnknownError(
            f"{_path(output, run)}: cannot be made out; the command of its run writes it again"
        ) from e


def _path(output: str, run: str) -> str:
    return storage.join(staging.folder_of(output, run), NOTE)


def _run(told: dict[str, Any]) -> Run:
    # What a later version added is of no use here.
    known = {field.name: told[field.name] for field in fields(Run) if field.name in told}
    limits = {name: as_tuples(value) for name, value in known.pop("gates").items()}
    baselines = limits.pop("baselines")
    if (challenger := known.pop("challenger", None)) is not None:
        challenger = ChallengerRun(**{**challenger, "model": ModelReference(**challenger["model"])})
    return Run(
        **{
            **known,
            "challenger": challenger,
            "model": ModelReference(**known["model"]),
            "versions": tuple((name, version) for name, version in known["versions"]),
            "stores": StoreOptions(**known["stores"]),
            "gates": Gates(tuple(limits.items()), baselines),
        }
    )
