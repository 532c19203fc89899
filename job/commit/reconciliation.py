"""Checks the receipts of a run before it is published.

Each split has a receipt, each file that a receipt names is there and holds as many rows as it says, each
planned row was read and then scored or rejected, not too many were rejected, and all splits were scored by
one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from job import storage
from job.commit import staging
from job.errors import DataError, StateUnknownError, check_not_passing, one_line
from job.report.run_report import reasons_of
from job.spec import Receipt, Run


def check_parts(run: Run, receipts: Sequence[Receipt]) -> None:
    """Check that every file which a receipt names is in staging, or published already.

    Raises:
        StateUnknownError: one is not.
    """
    pairs = [(receipt, part) for receipt in receipts for part in staging.parts(receipt)]

    def is_there(pair: tuple[Receipt, staging.PartFile]) -> bool:
        return pair[1].is_staged(trusted=True) or pair[1].is_published(run.output)

    there = storage.parallel(is_there, pairs, name="look")
    missing = [pair for pair, found in zip(pairs, there, strict=True) if not found]
    if missing:
        if storage.is_remote(run.output):
            # There they are trusted without a look at each attempt.
            for receipt, _ in missing:
                staging.forget_receipt(run.output, receipt)
        part = missing[0][1]
        raise StateUnknownError(
            f"{part.staged}: a receipt names it with {part.size_bytes} bytes, and like {len(missing) - 1} "
            f"more of {len(pairs)} it is neither there nor published; nothing was changed, run again to "
            f"score its split anew"
        )


def recount(folder: str, parts: Sequence[staging.PartFile]) -> None:
    """Count the rows of the files themselves, in their footers.

    Raises:
        DataError: they are not what the receipts say.
        StorageError: a file cannot be read.
    """
    # Only here: what needs no publishing should not wait for Arrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    def counted(part: staging.PartFile) -> int:
        final = storage.join(folder, part.final)
        for path in (part.staged, final) if storage.is_readable(part.staged) else (final,):
            with suppress(FileNotFoundError):
                return int(pq.read_metadata(storage.footer_source(path, part.size_bytes)).num_rows)
        return -1

    try:
        for part, rows in zip(parts, storage.parallel(counted, parts, name="recount"), strict=True):
            if rows != part.rows:
                raise DataError(
                    f"{part.staged}: it holds {rows} rows, its receipt says {part.rows}; "
                    f"the night was not published"
                )
    except (pa.ArrowException, OSError) as e:
        check_not_passing(e, folder)
        raise DataError(f"{folder}: a file that was written cannot be read back: {one_line(e)}") from e


def reconcile(run: Run, receipts: Sequence[Receipt]) -> None:
    """Check that every row which was planned was read, and then scored or rejected.

    Raises:
        StateUnknownError: splits have no receipt, though the engine ended.
        DataError: it was not; nothing may be published.
    """
    names = {receipt.split.name for receipt in receipts}
    if len(names) != run.splits or len(receipts) != run.splits:
        raise StateUnknownError(
            f"{run.output}: {len(names)} of {run.splits} splits have a receipt; run again to resume"
        )
    for receipt in receipts:
        split = receipt.split
        if not split.rows == receipt.rows_read == receipt.rows_scored + receipt.rows_rejected:
            raise DataError(
                f"{split.shard.path}: split {split.name} holds {split.rows} rows, "
                f"{receipt.rows_read} were read, {receipt.rows_scored} scored and "
                f"{receipt.rows_rejected} rejected; nothing was published"
            )
    rows = sum(receipt.rows_read for receipt in receipts)
    if rows != run.rows:
        raise DataError(f"{run.output}: {run.rows} rows were planned and {rows} read; nothing was published")
    rejected = sum(receipt.rows_rejected for receipt in receipts)
    unreadable = sum(bool(receipt.refused and not receipt.split.row_groups) for receipt in receipts)
    if run.share_rejected(rejected, unreadable) > run.max_rejected:
        _refuse_rejects(run, receipts, rejected)
    models = sorted({receipt.weights_digest for receipt in receipts})
    if len(models) > 1:
        raise DataError(
            f"{run.model.path}: the builder made weights {models[0][:12]} in one worker and "
            f"{models[1][:12]} in another; give --weights, or seed its initializers"
        )


def _refuse_rejects(run: Run, receipts: Sequence[Receipt], rejected: int) -> NoReturn:
    told = ", ".join(f"{rows} {reason}" for reason, rows in reasons_of(receipts)) or "shards without a footer"
    of = next(r for r in receipts if r.rejects or r.refused)
    first = of.refused or of.first_reject
    raise DataError(
        f"{run.output}: {rejected} of {run.rows} rows were rejected ({told}), more than --max_rejected="
        f"{run.max_rejected}; nothing was published; first {of.split.shard.path}: {first or told}; look at "
        f"{of.rejects or of.split.shard.path}, mend the input or raise --max_rejected"
    )
