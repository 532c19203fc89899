"""The manifest of a night: which files it has, from which rows they come, and how these were scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from job import staging
from job.errors import OutputConflictError
from job.spec import Receipt, Run

_FORMAT = 1


def compose(run: Run, receipts: Sequence[Receipt]) -> str:
    """Return the manifest of a run whose splits all have receipts, as JSON."""
    scored = [(receipt, part) for receipt in receipts if (part := staging.scored_part(receipt)) is not None]
    rejected = [
        (receipt, part) for receipt in receipts if (part := staging.rejected_part(receipt)) is not None
    ]
    model = run.model
    content = {
        "format": _FORMAT,
        "run_id": run.run_id,
        "model": {
            "path": model.path,
            "weights": model.weights,
            "sha256": model.digest,
            "trusted": model.trusted,
            "signature": run.signature,
        },
        "scoring": json.loads(run.scoring),
        "versions": dict(run.versions),
        "shards": run.shards,
        "rows_read": run.rows,
        "rows_scored": sum(receipt.rows_scored for receipt in receipts),
        "rows_rejected": sum(receipt.rows_rejected for receipt in receipts),
        "files": [_entry(receipt, part) for receipt, part in scored],
        "rejected_files": [_entry(receipt, part) for receipt, part in rejected],
        "rejected_shards": [
            {
                "shard": receipt.split.shard.path,
                "rows": receipt.rows_rejected if receipt.split.row_groups else None,
                "error": receipt.refused,
            }
            for receipt in receipts
            if receipt.refused
        ],
    }
    return json.dumps(content, indent=1)


def _entry(receipt: Receipt, part: staging.PartFile) -> dict[str, object]:
    split = receipt.split
    groups = split.row_groups
    return {
        "path": part.final,
        "rows": part.rows,
        "bytes": part.size_bytes,
        "sha256": part.sha256,
        "shard": split.shard.path,
        "shard_bytes": split.shard.size_bytes,
        "shard_stamp": split.shard.stamp,
        "partition": dict(split.shard.partition),
        "row_groups": [groups[0], groups[-1]] if groups else [],
        "first_row": split.first_row,
        "split_rows": split.rows,
    }


def entries(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of all files, scored and rejected."""
    return [*manifest["files"], *manifest["rejected_files"]]


def parse(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest from its JSON.

    Files of a replaced night are removed by the paths in it, so none may lead out of the output.

    Raises:
        OutputConflictError: it is none, or names a file outside of the output; the message names ``where``.
    """
    try:
        manifest = dict(json.loads(content))
        run_id, paths = manifest["run_id"], [entry["path"] for entry in entries(manifest)]
    except (ValueError, TypeError, KeyError):
        run_id, paths = None, []
    if not isinstance(run_id, str) or not all(isinstance(path, str) for path in paths):
        raise OutputConflictError(
            f"{where}: it is no manifest of this job; move it away or choose another --output"
        )
    check_inside(paths, where)
    return manifest


def check_inside(paths: Sequence[str], where: str) -> None:
    """Refuse paths that are not those of a night's files.

    Raises:
        OutputConflictError: one leads out of the output, or into what is not a night's; ``where`` names them.
    """
    for path in paths:
        if not is_inside(path):
            raise OutputConflictError(
                f"{where}: it names the file {path!r}, which no run writes; somebody changed it: move it "
                f"away or choose another --output"
            )


def is_inside(path: str) -> bool:
    """Say whether a path, relative to an output, is that of a file which a run may write there.

    >>> is_inside("ds=1/a.parquet"), is_inside("../a.parquet"), is_inside("_staging/lease")
    (True, False, False)
    """
    parts = path.removeprefix(f"{staging.REJECTED}/").split("/")
    return path.endswith(".parquet") and not any(
        part == "" or part.startswith(("_", ".")) or "\0" in part for part in parts
    )
