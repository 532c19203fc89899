"""What a worker must know beyond the split."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from job.binding.binding import Binding
from job.scoring.challenger import Challenger
from job.scoring.golden import Golden
from job.scoring.reject_files import FileOptions
from job.scoring.rejects import RowPolicy
from job.spec import Device, OnBadShard, Run


@dataclass(frozen=True, eq=False)
class ScoringTask:
    """What a worker must know beyond the split: one per run, the same for all workers.

    ``batch_rows`` 0 means auto. ``threads`` is TensorFlow's threads within one operation; where that is 0, a
    worker divides its cores by ``processes``, see ``engines.Fit``.
    ``weights_digest`` is of the weights that a builder made on the launcher, empty for an artifact's.
    ``machine`` is not empty where all workers of a machine share one model, see ``model.acquire``.
    ``stop_mark`` is the file that tells workers to stop, empty where the engine stops them by itself.
    ``golden`` are rows that each loaded model must predict rightly before it scores. ``challenger`` is the
    second model, where there is one. ``key_types`` are of those keys that have
    several in the shards.
    """

    run: Run
    binding: Binding
    keys: tuple[str, ...]
    predictions: tuple[pa.Field, ...]
    policy: RowPolicy
    batch_rows: int
    row_group_rows: int
    compression: str
    device: Device
    threads: int
    weights_digest: str
    on_bad_shard: OnBadShard = "fail"
    processes: int = -1
    machine: str = ""
    stop_mark: str = ""
    golden: Golden | None = None
    challenger: Challenger | None = None
    key_types: tuple[tuple[str, pa.DataType], ...] = ()

    @property
    def files(self) -> FileOptions:
        """Return how output files are written."""
        run = self.run
        metadata = {
            "scoring_job.run_id": run.run_id,
            "scoring_job.model_sha256": run.model.digest,
            "scoring_job.signature": run.signature,
        }
        if run.challenger is not None:
            metadata["scoring_job.challenger_sha256"] = run.challenger.model.digest
        return FileOptions(self.row_group_rows, self.compression, metadata)
