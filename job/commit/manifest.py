"""The manifest of a night: which files it has, from which rows they come, and how these were scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from job.commit import staging
from job.errors import OutputConflictError
from job.gates import histograms
from job.gates.gate import Compared
from job.report import run_report
from job.spec import Receipt, Run

_FORMAT = 1

# What of a manifest is needed to verify its night: a type, or types, for each field.
_ENTRY: Final = {
    "path": str,
    "rows": int,
    "bytes": int,
    "sha256": str,
    "shard": str,
    "shard_bytes": int,
    "shard_stamp": str,
    "partition": dict,
    "row_groups": [int],
    "first_row": int,
    "split_rows": int,
}
_SCORING: Final = {
    "feeds": [{"input": str, "dtype": str, "shape": [(int, type(None))], "columns": [str]}],
    "casts": dict,
    "keys": [str],
    "predictions": [str],
    "on_null": str,
    "on_nonfinite": str,
    "device": str,
}
_MODEL: Final = {"path": str, "weights": (str, type(None)), "trusted": bool, "sha256": str}
_NIGHT: Final = {
    "run_id": str,
    "rows_read": int,
    "rows_scored": int,
    "rows_rejected": int,
    "files": [_ENTRY],
    "rejected_files": [_ENTRY],
    "rejected_shards": [{"shard": str, "error": str}],
    "model": _MODEL,
    "scoring": _SCORING,
}
_KINDS: Final = {str: "text", int: "a count", bool: "true or false", dict: "an object"}


def compose(run: Run, receipts: Sequence[Receipt], compared: Compared | None = None) -> str:
    """Return the manifest of a run whose splits all have receipts, as JSON.

    ``compared`` tells whether somebody had to release it.
    """
    scored = [(receipt, part) for receipt in receipts if (part := staging.scored_part(receipt)) is not None]
    rejected = [
        (receipt, part) for receipt in receipts if (part := staging.rejected_part(receipt)) is not None
    ]
    model = run.model
    content = {
        "format": _FORMAT,
        "run_id": run.run_id,
        "ds": run.ds,
        "model": {
            "path": model.path,
            "weights": model.weights,
            "sha256": model.digest,
            "trusted": model.trusted,
            "signature_name": model.signature,
            "reads": dict(model.reads),
            "signature": run.signature,
        },
        "scoring": json.loads(run.scoring),
        "challenger": run_report.entry(run, receipts),
        "versions": dict(run.versions),
        "shards": run.shards,
        "rows_read": run.rows,
        "rows_scored": sum(receipt.rows_scored for receipt in receipts),
        "rows_rejected": sum(receipt.rows_rejected for receipt in receipts),
        "histograms": {name: histogram.text() for name, histogram in histograms.of(receipts).items()},
        "released": compared.release if compared else None,
        "files": [_entry(receipt, part) for receipt, part in scored],
        "rejected_files": [_entry(receipt, part) for receipt, part in rejected],
        "rejected_shards": [
            {
                "shard": receipt.split.shard.path,
                "rows": receipt.rows_rejected if receipt.split.row_groups else None,
                "file": bool(receipt.rejects),
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


def rows_without_file(manifest: Mapping[str, Any]) -> Counter[str]:
    """Return by shard how many rows were rejected and stand in no file, since none of them could be read."""
    found: Counter[str] = Counter()
    for entry in manifest["rejected_shards"]:
        # Of nights before, all stand in files.
        if not entry.get("file", True):
            found[entry["shard"]] += entry["rows"] or 0
    return found


def parse(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest from its JSON.

    Files of a replaced night are removed by the paths in it, so none may lead out of the output.

    Raises:
        OutputConflictError: it is none, or names a file outside of the output; the message names ``where``.
    """
    try:
        manifest = dict(json.loads(content))
        told = [(entry["path"], entry["bytes"], entry["sha256"]) for entry in entries(manifest)]
        is_one = isinstance(manifest["run_id"], str) and all(
            isinstance(path, str) and isinstance(size, int) and isinstance(digest, str)
            for path, size, digest in told
        )
    except (ValueError, TypeError, KeyError):
        is_one, told = False, []
    if not is_one:
        raise OutputConflictError(
            f"{where}: it is no manifest of this job; move it away or choose another --output"
        )
    check_inside([path for path, _, _ in told], where)
    return manifest


def check_shape(manifest: Mapping[str, Any], where: str) -> None:
    """Check that a manifest has every field that is needed to verify its night.

    Raises:
        OutputConflictError: a field is absent or of another type; the message names it, and ``where``.
    """
    fault = _fault(manifest, _NIGHT, "it")
    if (challenger := manifest.get("challenger")) is not None:
        fault = fault or _fault(challenger, {**_MODEL, "scoring": _SCORING}, "challenger")
    fault = fault or next(
        (
            f"files[{i}].row_groups is {entry['row_groups']!r}, not the first and the last"
            for i, entry in enumerate(manifest["files"])
            if len(entry["row_groups"]) != 2 and entry["rows"]
        ),
        "",
    )
    if fault:
        raise OutputConflictError(
            f"{where}: {fault}; somebody changed it: put it back as it was, or score the night anew with "
            f"--if_exists=replace"
        )


def _fault(value: object, shape: Any, name: str) -> str:
    """Return what is wrong with a value; empty where it has a shape as in ``_NIGHT``."""
    if isinstance(shape, dict) and isinstance(value, dict):
        of = "" if name == "it" else f"{name}."
        inner = (_fault(value.get(key), kind, f"{of}{key}") for key, kind in shape.items())
    elif isinstance(shape, list) and isinstance(value, list):
        inner = (_fault(item, shape[0], f"{name}[{i}]") for i, item in enumerate(value))
    elif isinstance(shape, dict | list):
        return f"{name} is {_shown(value)}, not {'an object' if isinstance(shape, dict) else 'a list'}"
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if isinstance(value, kinds) and not (isinstance(value, int) and value < 0):
            return ""
        return f"{name} is {_shown(value)}, not {_KINDS[kinds[0]]}"
    return next(filter(None, inner), "")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return "absent" if value is None else text if len(text) <= 40 else f"{text[:40]}…"


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
    inner = path.removeprefix(f"{staging.REJECTED}/")
    # Rejected rows were in files of that name, too, until readers were seen to take them for predictions.
    endings = (".parquet",) if inner == path else (".parquet", staging.REJECTED_SUFFIX)
    return path.endswith(endings) and not any(
        part == "" or part.startswith(("_", ".")) or "\0" in part for part in inner.split("/")
    )
