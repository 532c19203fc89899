"""Score Parquet feature shards with a Keras model, nightly, complete, right and once.

For other programs, see docs/library.md::

    from job import JobError, make_spec, score

    outcome = score(make_spec(input="features", model="m.keras", output="predictions", keys=["id"]))

Public: the names in ``__all__``. What ``score`` and its spec need is imported when it is asked for, so
that ``import job`` takes no time; ``ScoreParquet`` and ``KerasModelHandler`` import Beam.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from job.api import find_error as find_error
    from job.api import make_spec as make_spec
    from job.api import score as score
    from job.errors import DataError as DataError
    from job.errors import DeniedError as DeniedError
    from job.errors import EngineError as EngineError
    from job.errors import GateError as GateError
    from job.errors import GoldenError as GoldenError
    from job.errors import JobError as JobError
    from job.errors import ModelError as ModelError
    from job.errors import NoInputError as NoInputError
    from job.errors import OutputConflictError as OutputConflictError
    from job.errors import PreflightError as PreflightError
    from job.errors import SchemaError as SchemaError
    from job.errors import ShardChangedError as ShardChangedError
    from job.errors import ShardError as ShardError
    from job.errors import StateUnknownError as StateUnknownError
    from job.errors import StorageError as StorageError
    from job.errors import UnwritableError as UnwritableError
    from job.errors import UsageError as UsageError
    from job.handler import KerasModelHandler as KerasModelHandler
    from job.launch.preparation import Outcome as Outcome
    from job.report.run_report import RunReport as RunReport
    from job.spec import ScoringSpec as ScoringSpec
    from job.transform import ScoreParquet as ScoreParquet

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DeniedError",
    "EngineError",
    "GateError",
    "GoldenError",
    "JobError",
    "KerasModelHandler",
    "ModelError",
    "NoInputError",
    "Outcome",
    "OutputConflictError",
    "PreflightError",
    "RunReport",
    "SchemaError",
    "ScoreParquet",
    "ScoringSpec",
    "ShardChangedError",
    "ShardError",
    "StateUnknownError",
    "StorageError",
    "UnwritableError",
    "UsageError",
    "__version__",
    "find_error",
    "make_spec",
    "score",
]

# Where the names are that are not errors.
_MODULES: Final = {
    "KerasModelHandler": "job.handler",
    "Outcome": "job.launch.preparation",
    "RunReport": "job.report.run_report",
    "ScoreParquet": "job.transform",
    "ScoringSpec": "job.spec",
    "find_error": "job.api",
    "make_spec": "job.api",
    "score": "job.api",
}


if not TYPE_CHECKING:  # or a name that is not there would have the type Any

    def __getattr__(name: str) -> Any:
        """Return a public name, and import the module that has it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES.get(name, "job.errors")), name)
        # From now on it is found without this function.
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return the public names beside what is there already."""
    return sorted({*globals(), *__all__})
