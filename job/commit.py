"""Attempt → receipt → publish: how a night becomes complete, right and once.

::

    OUTPUT/_staging/<run_id>/plan.jsonl                     the splits of the run
                            /attempts/<split>.<token>.parquet
                            /receipts/<split>.json          the attempt that counts
                            /publishing.json                from here on, only forward

1. An **attempt** writes one split's predictions to a file of its own name. Any number of attempts
   of one split may run, die or finish at the same time; none can touch another's file.
2. The **receipt** is written under the split's name when the attempt's file is complete. It
   names the attempt that counts. A split with a receipt is never scored again. When two attempts
   finish together the later receipt wins; either is right.
3. **Publish** starts when every split has its receipt, the rows add up, no more of them are rejected than
   the run allows, and every file that a receipt names is there. It marks the run as publishing, takes an
   old ``_SUCCESS`` away, renames every attempt that counts to its final name, removes files of the replaced
   night, writes the manifest, and then ``_SUCCESS``. Each step can be repeated: an attempt that is gone and
   whose final file has the receipt's digest was renamed before.
4. ``_staging`` goes last. If the process dies between ``_SUCCESS`` and that, the next run removes it.

What is flushed to the disk, and when: every published file, every folder and the manifest before
``_SUCCESS``. Attempts and receipts are not flushed one by one, which would cost 4 ms each. A power cut can
take what was not yet on the disk; so a receipt tells in which boot of which machine its file was written, and
after a restart it counts only if the file still has the receipt's digest. A torn receipt counts as none.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from job import output, staging, storage
from job.errors import DataError, StateUnknownError
from job.report import RunReport, reasons_of
from job.spec import Receipt, Run, Shard

_FORMAT = 1


def run_id(shards: Iterable[Shard], model_digest: str, options: Mapping[str, object]) -> str:
    """Return a run's identity: SHA-256 over its inputs, its model and the options that shape its output."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(json.dumps([shard.path, shard.size_bytes, shard.stamp]).encode())
    digest.update(json.dumps([model_digest, options], sort_keys=True).encode())
    return digest.hexdigest()


def publish(run: Run, receipts: Iterable[Receipt], *, clock: Callable[[], float] = time.time) -> RunReport:
    """Publish a run whose splits all have receipts; safe to repeat from any point.

    ``clock`` tells the time in seconds since 1970.

    Raises:
        DataError: rows do not add up, splits are missing, or workers built different models.
        StateUnknownError: a file that a receipt names is nowhere.
    """
    done = output.published(run.output)
    if done is not None and done["run_id"] == run.run_id:
        # Engines may repeat a step when they have lost its outcome.
        output.remove_staging(run.output, run.run_id)
        return output.read_report(run.output)
    counted = sorted(receipts, key=lambda receipt: (receipt.split.shard.path, receipt.split.first_row))
    reconcile(run, counted)
    parts = [part for receipt in counted for part in staging.parts(receipt)]
    _check_parts(run.output, parts)
    # Hours may have passed since the launcher looked.
    output.check_output(run.output, run.run_id, replace=run.replace)
    stale = _begin_publishing(run, parts)
    storage.remove(storage.join(run.output, output.SUCCESS))
    folders = {run.output, *(_move(run.output, part) for part in parts)}
    storage.sync_files(storage.join(run.output, part.final) for part in parts)
    for path in stale:
        storage.remove(storage.join(run.output, path))
        storage.remove_empty_parents(storage.join(run.output, path), run.output)
    for folder in sorted(folders):
        storage.sync_folder(folder)
    report = RunReport.of(run, counted, ended_unix_s=clock())
    storage.write_atomic(storage.join(run.output, output.REPORT_JSON), report.to_json().encode())
    storage.write_atomic(storage.join(run.output, output.REPORT_HTML), report.to_html().encode())
    manifest = json.dumps(_manifest_of(run, counted), indent=1)
    storage.write_atomic(storage.join(run.output, output.MANIFEST), manifest.encode())
    storage.write_atomic(storage.join(run.output, output.SUCCESS), b"")
    for other in output.leftovers(run.output, run.run_id) if run.replace else ():
        output.remove_staging(run.output, other)
    output.remove_staging(run.output, run.run_id)
    return report


def _check_parts(folder: str, parts: Sequence[staging.PartFile]) -> None:
    for part in parts:
        if not (part.is_staged(trusted=True) or part.is_published(folder)):
            raise StateUnknownError(
                f"{part.staged}: a receipt names it with {part.size_bytes} bytes, and it is neither there "
                f"nor published; nothing was changed, run again to score its split anew"
            )


def reconcile(run: Run, receipts: Sequence[Receipt]) -> None:
    """Check that every row which was planned was read, and then scored or rejected.

    Raises:
        DataError: it was not; nothing may be published.
    """
    names = {receipt.split.name for receipt in receipts}
    if len(names) != run.splits or len(receipts) != run.splits:
        raise DataError(
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
    if rejected > run.max_rejected * rows:
        _refuse_rejects(run, receipts, rejected)
    models = sorted({receipt.weights_digest for receipt in receipts})
    if len(models) > 1:
        raise DataError(
            f"{run.model.path}: the builder made weights {models[0][:12]} in one worker and "
            f"{models[1][:12]} in another; give --weights, or seed the builder"
        )


def _refuse_rejects(run: Run, receipts: Sequence[Receipt], rejected: int) -> NoReturn:
    told = ", ".join(f"{rows} {reason}" for reason, rows in reasons_of(receipts))
    first = next(receipt.rejects for receipt in receipts if receipt.rejects)
    raise DataError(
        f"{run.output}: {rejected} of {run.rows} rows were rejected ({told}), more than --max_rejected="
        f"{run.max_rejected}; nothing was published; look at {first}, mend the input or raise --max_rejected"
    )


def _begin_publishing(run: Run, parts: Sequence[staging.PartFile]) -> list[str]:
    """Mark the point of no return and return the files of the replaced night that the new one lacks."""
    marker = output.read_marker(run.output, run.run_id)
    if marker is None:
        new = {part.final for part in parts}
        stale = sorted(output.known_files(run.output, run.run_id, output.read_manifest(run.output)) - new)
        marker = {"stale": stale, "files": sorted(new)}
        storage.write_atomic(output.marker_path(run.output, run.run_id), json.dumps(marker).encode())
    return marker["stale"]


def _move(top: str, part: staging.PartFile) -> str:
    """Give a file its final name and return the folder that it is in then."""
    final = storage.join(top, part.final)
    folder = final.rpartition("/")[0]
    storage.make_folder(folder)
    # Where it is gone from staging, a try before this one moved it: _check_parts has seen it there.
    with suppress(FileNotFoundError):
        storage.rename(part.staged, final)
    return folder


def _manifest_of(run: Run, receipts: Sequence[Receipt]) -> dict[str, object]:
    return {
        "format": _FORMAT,
        "run_id": run.run_id,
        "model": {"path": run.model.path, "sha256": run.model.digest, "signature": run.signature},
        "versions": dict(run.versions),
        "shards": run.shards,
        "rows_read": run.rows,
        "rows_scored": sum(receipt.rows_scored for receipt in receipts),
        "rows_rejected": sum(receipt.rows_rejected for receipt in receipts),
        "files": [
            {
                "path": staging.parts(receipt)[0].final,
                "rows": receipt.rows_scored,
                "bytes": receipt.file_bytes,
                "sha256": receipt.file_sha256,
                "shard": receipt.split.shard.path,
                "row_groups": [receipt.split.row_groups[0], receipt.split.row_groups[-1]]
                if receipt.split.row_groups
                else [],
                "first_row": receipt.split.first_row,
            }
            for receipt in receipts
        ],
        "rejected_files": [
            {
                "path": part.final,
                "rows": receipt.rows_rejected,
                "bytes": part.size_bytes,
                "sha256": part.sha256,
            }
            for receipt in receipts
            for part in staging.parts(receipt)[1:]
        ],
    }
