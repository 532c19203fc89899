"""The task: what every worker of a run gets, beside the splits."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from job.binding.binding import Binding
from job.scoring.challenger import Challenger
from job.scoring.golden import Golden
from job.scoring.rejects import RowPolicy
from job.scoring.writer import FileOptions
from job.spec import Device, OnBadShard, Run


@dataclass(frozen=True, eq=False)
class ScoringTask:
    """What every worker of a run gets, beside the splits.

    Attributes:
        run: the run.
        binding: how columns feed the model.
        keys: columns that are carried to the output unchanged.
        predictions: the names and types of the prediction columns.
        policy: what becomes of bad rows.
        batch_rows: rows of a predict step; 0 means that they are measured.
        row_group_rows: rows of an output file's row group, at most.
        compression: of the output files.
        device: where the model runs.
        threads: TensorFlow's threads within one operation. If it is 0, a worker divides its cores by
            ``processes``, see ``engines.engine.Fit``.
        weights_digest: a SHA-256 of the weights that a builder made on the launcher; empty for other models.
        on_bad_shard: what becomes of a shard that cannot be read.
        processes: worker processes of one machine, see ``engines.engine.Fit``.
        machine: not empty if all workers of a machine share one model, see ``model.loading.acquire``.
        stop_mark: a file that tells workers to stop; empty if the engine stops them.
        golden: rows that each loaded model must predict rightly before it scores.
        challenger: the second model, if there is one.
        key_types: the published types of those keys that have several types in the shards.
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
        """The options of output files, with metadata that names the run and its models."""
        run = self.run
        metadata = {
            "scoring_job.run_id": run.run_id,
            "scoring_job.model_sha256": run.model.digest,
            "scoring_job.signature": run.signature,
        }
        if run.challenger is not None:
            metadata["scoring_job.challenger_sha256"] = run.challenger.model.digest
        return FileOptions(self.row_group_rows, self.compression, metadata)
