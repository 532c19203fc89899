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
3. **Publish** starts when every split has its receipt, the rows add up, and no more of them are rejected
   than the run allows. It marks the run as
   publishing, takes an old ``_SUCCESS`` away, renames every attempt that counts to its final name, writes the
   manifest, removes files of the replaced night, and writes ``_SUCCESS``. Each step can be repeated: an
   attempt that is gone and whose final file has the receipt's digest was renamed before.
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
from typing import Any, NoReturn

from job import staging, storage
from job.errors import DataError, OutputConflictError, StateUnknownError
from job.report import RunReport, reasons_of
from job.spec import Receipt, Run, Shard
from job.staging import STAGING

MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"
REPORT_JSON, REPORT_HTML = "_report.json", "_report.html"
_FORMAT = 1


def run_id(shards: Iterable[Shard], model_digest: str, options: Mapping[str, object]) -> str:
    """Return a run's identity: SHA-256 over its inputs, its model and the options that shape its output."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(json.dumps([shard.path, shard.size_bytes, shard.stamp]).encode())
    digest.update(json.dumps([model_digest, options], sort_keys=True).encode())
    return digest.hexdigest()


def published(output: str) -> dict[str, Any] | None:
    """Return the manifest of the night that the output holds, or ``None`` if it holds no finished one."""
    if not storage.exists(storage.join(output, SUCCESS)):
        return None
    return _manifest(output)


def _manifest(output: str) -> dict[str, Any] | None:
    content = storage.read_bytes(storage.join(output, MANIFEST))
    if content is None:
        return None
    try:
        return dict(json.loads(content))
    except ValueError as e:
        raise StateUnknownError(f"{output}/{MANIFEST}: it is no manifest ({e}); move the folder away") from e


def check_output(output: str, run: str, *, replace: bool) -> None:
    """Refuse an output that this run must not touch.

    Raises:
        OutputConflictError: another night is there and ``replace`` is off, or files that no run wrote.
    """
    if storage.exists(storage.join(staging.folder_of(output, run), "publishing.json")):
        return
    manifest = _manifest(output)
    visible = [info.path for info in storage.tree(output) if not _is_hidden(info.path, output)]
    known = {storage.join(output, entry["path"]) for entry in manifest["files"]} if manifest else set()
    foreign = [path for path in visible if path not in known]
    if manifest is not None and not replace:
        raise OutputConflictError(
            f"{output}: it holds run {manifest['run_id'][:12]}, this is run {run[:12]} "
            f"(input, model or options differ); choose another --output, or --if_exists=replace"
        )
    if foreign:
        raise OutputConflictError(
            f"{output}: it holds {len(foreign)} file(s) that no run of this job wrote, first {foreign[0]}; "
            f"move them away or choose another --output"
        )


def leftovers(output: str, run: str) -> list[str]:
    """Return the ids of other runs that left something in staging."""
    return [name for name in storage.names(storage.join(output, STAGING)) if name != run]


def remove_staging(output: str, run: str) -> None:
    """Remove one run's staging, and the staging folder if it is then empty."""
    storage.remove_tree(staging.folder_of(output, run))
    storage.remove_empty_folder(storage.join(output, STAGING))


def publish(run: Run, receipts: Iterable[Receipt], *, clock: Callable[[], float] = time.time) -> RunReport:
    """Publish a run whose splits all have receipts; safe to repeat from any point.

    ``clock`` tells the time in seconds since 1970.

    Raises:
        DataError: rows do not add up, splits are missing, or workers built different models.
        StateUnknownError: a file that a receipt names is nowhere.
    """
    done = published(run.output)
    if done is not None and done["run_id"] == run.run_id:
        # Engines may repeat a step when they have lost its outcome.
        remove_staging(run.output, run.run_id)
        content = storage.read_bytes(storage.join(run.output, REPORT_JSON)) or b""
        return RunReport.from_json(content.decode())
    counted = sorted(receipts, key=lambda receipt: (receipt.split.shard.path, receipt.split.first_row))
    reconcile(run, counted)
    stale = _begin_publishing(run, counted)
    storage.remove(storage.join(run.output, SUCCESS))
    folders = {run.output}
    parts = [part for receipt in counted for part in staging.parts(receipt)]
    for part in parts:
        folders.add(_move(run.output, part))
    storage.sync_files(storage.join(run.output, part.final) for part in parts)
    for path in stale:
        storage.remove(storage.join(run.output, path))
    if stale:
        storage.remove_empty_folders(run.output)
    for folder in sorted(folders):
        storage.sync_folder(folder)
    report = RunReport.of(run, counted, ended_unix_s=clock())
    storage.write_atomic(storage.join(run.output, REPORT_JSON), report.to_json().encode())
    storage.write_atomic(storage.join(run.output, REPORT_HTML), report.to_html().encode())
    manifest = json.dumps(_manifest_of(run, counted), indent=1)
    storage.write_atomic(storage.join(run.output, MANIFEST), manifest.encode())
    storage.write_atomic(storage.join(run.output, SUCCESS), b"")
    remove_staging(run.output, run.run_id)
    return report


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


def _begin_publishing(run: Run, receipts: Sequence[Receipt]) -> list[str]:
    """Mark the point of no return and return the files of the replaced night that the new one lacks."""
    marker = storage.join(staging.folder_of(run.output, run.run_id), "publishing.json")
    content = storage.read_bytes(marker)
    if content is None:
        manifest = _manifest(run.output)
        new = {part.final for receipt in receipts for part in staging.parts(receipt)}
        old = [e["path"] for e in (*manifest["files"], *manifest["rejected_files"])] if manifest else []
        content = json.dumps([path for path in old if path not in new]).encode()
        storage.write_atomic(marker, content)
    return list(json.loads(content))


def _move(output: str, part: staging.PartFile) -> str:
    final = storage.join(output, part.final)
    folder = final.rpartition("/")[0]
    storage.make_folder(folder)
    try:
        storage.rename(part.staged, final)
    except FileNotFoundError as e:
        if not part.is_published(output):
            raise StateUnknownError(
                f"{part.staged}: a receipt names it, and it is neither there nor published as {final}; "
                f"remove {output}/{STAGING} and run again"
            ) from e
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


def _is_hidden(path: str, output: str) -> bool:
    return path.removeprefix(output).lstrip("/").startswith(("_", "."))
