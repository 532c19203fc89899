"""Is a published night what its manifest says, and what the model says?

The files are checked whole: they are there, no others are, and each has its size, its SHA-256 and its rows.
Of the predictions a random sample is scored again, from the original shards: some rows of one row group of
each file, since reading a row costs as much as reading its row group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from job import storage
from job.binding.predictions import Tolerance
from job.commit import manifest, staging
from job.compare import night_files, rescoring
from job.compare.rescoring import Difference
from job.errors import JobError, one_line

ALL: Final = -1
_THREADS: Final = 16
_MOST_DIFFERENCES: Final = 10
# As many rows of a file are compared at once.
_BLOCK_ROWS: Final = 500_000


@dataclass(frozen=True)
class Verification:
    """What was found. ``findings`` are faults, one line each; ``rows_again`` were scored again.

    ``notes`` are no faults: what a person should know of a night that is right.
    """

    output: str
    run_id: str
    files: int
    rows: int
    rows_again: int
    rows_different: int
    findings: tuple[str, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Say whether nothing is wrong."""
        return not self.findings and not self.rows_different

    def to_json(self) -> str:
        """Return all of it as one JSON object."""
        return json.dumps({**asdict(self), "is_right": self.is_right}, indent=2, ensure_ascii=False) + "\n"


def verify(folder: str, *, sample_rows: int, seed: int | None, tolerance: Tolerance) -> Verification:
    """Check a published night.

    Args:
        folder: the output.
        sample_rows: about how many rows to score again; ``ALL`` of them, or 0 to look at the files alone.
        seed: of the sample; ``None`` takes another one each time.
        tolerance: how far predictions may be apart.

    Raises:
        UsageError: nothing is published there, or by a version that noted too little.
        OutputConflictError: the manifest is none of this job's.
    """
    night = night_files.night_of(folder)
    findings = [*_counts(night), *_strangers(folder, night)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        entries = manifest.entries(night)
        digests = {entry["sha256"]: entry["path"] for entry in entries}
        told = list(pool.map(lambda entry: _file(folder, night["run_id"], entry, digests), entries))
        findings += [line for lines, _ in told for line in lines]
        if sample_rows:
            findings += [line for lines in pool.map(_shard, *_by_shard(night)) for line in lines]
    # Which rows of a changed file differ is worth knowing, as long as they can be told one by one.
    whole = [entry for entry, (_, has_its_rows) in zip(night["files"], told, strict=False) if has_its_rows]
    changed = {entry["path"] for entry, (lines, _) in zip(entries, told, strict=True) if lines}
    again, different, differences = 0, 0, list[Difference]()
    rescorers = rescoring.rescorers(folder, night, findings) if sample_rows else []
    for entry, rows, rescorer in rescoring.each(sample(whole, sample_rows, seed), rescorers):
        try:
            wrong, shown = rescorer.differences(entry, rows, tolerance)
        except (JobError, pa.ArrowException, OSError, LookupError, ValueError, TypeError) as e:
            if entry["path"] in changed:
                continue
            findings.append(f"{entry['path']}: it cannot be scored again: {one_line(e)}")
            continue
        again += len(rows) if rescorer is rescorers[0] else 0
        different += wrong
        differences += shown[: _MOST_DIFFERENCES - len(differences)]
    counts = (len(entries), night["rows_scored"], again, different)
    # A file that is damaged is told once, though several checks may see it.
    told_once = tuple(dict.fromkeys(findings))
    return Verification(folder, night["run_id"], *counts, told_once, tuple(differences), tuple(_notes(night)))


def _counts(night: Mapping[str, Any]) -> Iterator[str]:
    scored = sum(entry["rows"] for entry in night["files"])
    rejected = sum(entry["rows"] for entry in night["rejected_files"])
    rejected += manifest.rows_without_file(night).total()
    for what, told, found in (
        ("scored", night["rows_scored"], scored),
        ("rejected", night["rows_rejected"], rejected),
        ("read", night["rows_read"], scored + rejected),
    ):
        if told != found:
            yield f"the manifest tells of {told} rows {what}, its files of {found}"


def _notes(night: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person should know of the shards that a night has no predictions of."""
    # One entry for each split that was refused.
    if refused := night["rejected_shards"]:
        shards = len({entry["shard"] for entry in refused})
        first, error = refused[0]["shard"], refused[0]["error"]
        were = "1 shard was" if shards == 1 else f"{shards:,} shards were"
        yield f"{were} rejected in part or whole, first {first}: {error.removeprefix(f'{first}: ')}"


def _strangers(folder: str, night: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that readers see, or that are among the rejected ones, and that the manifest lacks."""
    known = {entry["path"] for entry in manifest.entries(night)}
    for info in storage.tree(folder):
        path = info.path.removeprefix(folder).lstrip("/")
        inner = path.removeprefix(f"{staging.REJECTED}/")
        if path not in known and not any(part.startswith(("_", ".")) for part in inner.split("/")):
            yield f"{path}: the manifest does not name it"


def _file(
    folder: str, run_id: str, entry: Mapping[str, Any], digests: Mapping[str, str]
) -> tuple[list[str], bool]:
    """Return what is wrong with one file, by itself, and whether it holds as many rows as it should."""
    name, path = entry["path"], storage.join(folder, entry["path"])
    size = storage.size_bytes(path)
    if size is None:
        return [f"{name}: it is gone"], False
    wrong = []
    try:
        found = storage.sha256(path)
        if found != entry["sha256"]:
            if (other := digests.get(found)) is not None:
                return [f"{name}: it holds what {other} should hold"], False
            told = f"{size} bytes of SHA-256 {found[:12]}, not {entry['bytes']} of {entry['sha256'][:12]}"
            wrong.append(f"{name}: it was changed: {told}")
        metadata = pq.read_metadata(storage.footer_source(path))
    except (JobError, OSError, pa.ArrowException) as e:
        return wrong or [f"{name}: it cannot be read: {one_line(e)}"], False
    has_its_rows = metadata.num_rows == entry["rows"]
    # Of a file that was changed anything else may be wrong as well.
    if wrong:
        return wrong, has_its_rows
    if metadata.num_rows != entry["rows"]:
        wrong.append(f"{name}: it holds {metadata.num_rows} rows, not {entry['rows']}")
    of_run = (metadata.metadata or {}).get(b"scoring_job.run_id", b"").decode(errors="replace")
    if of_run != run_id:
        wrong.append(f"{name}: it is of run {of_run[:12] or 'none'}, not {run_id[:12]}")
    return wrong, has_its_rows


def _by_shard(night: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[int]]:
    """Return one entry for each shard, and the rows of the shard that the manifest accounts for."""
    rows = manifest.rows_without_file(night)
    of: dict[str, Mapping[str, Any]] = {}
    for entry in manifest.entries(night):
        of.setdefault(entry["shard"], entry)
        rows[entry["shard"]] += entry["rows"]
    return list(of.values()), [rows[shard] for shard in of]


def _shard(entry: Mapping[str, Any], rows: int) -> list[str]:
    """Return what is wrong with a shard: it was changed, or not all of its rows are accounted for."""
    path = entry["shard"]
    now = storage.describe(path)
    if now is None or (now.size_bytes, now.stamp) != (entry["shard_bytes"], entry["shard_stamp"]):
        state = "is gone" if now is None else "was changed"
        return [f"{path}: the shard {state} since it was scored; --sample_rows=0 looks at the output alone"]
    try:
        held = pq.read_metadata(storage.footer_source(path)).num_rows
    except (OSError, pa.ArrowException) as e:
        return [f"{path}: the shard cannot be read: {one_line(e)}"]
    return [] if held == rows else [f"{path}: the shard holds {held} rows, the night accounts for {rows}"]


def sample(
    files: Sequence[Mapping[str, Any]], sample_rows: int, seed: int | None
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.int64]]]:
    """Yield files and numbers of rows in them, ascending, about as many as were asked for."""
    filled = [entry for entry in files if entry["rows"]]
    if sample_rows == ALL or sample_rows >= sum(entry["rows"] for entry in filled):
        for entry in filled:
            for start in range(0, entry["rows"], _BLOCK_ROWS):
                yield entry, np.arange(start, min(start + _BLOCK_ROWS, entry["rows"]))
        return
    random = np.random.default_rng(seed)
    if len(filled) > sample_rows:
        filled = [filled[i] for i in np.sort(random.choice(len(filled), sample_rows, replace=False))]
    total = sum(entry["rows"] for entry in filled)
    for entry in filled:
        share = max(1, -(-sample_rows * entry["rows"] // total))
        start, rows = _stretch(entry, random)
        yield entry, np.sort(start + random.choice(rows, min(share, rows), replace=False))


def _stretch(entry: Mapping[str, Any], random: np.random.Generator) -> tuple[int, int]:
    """Return a run of rows of a file, its first and their number, about as many as a row group has."""
    first, last = entry["row_groups"]
    groups = last - first + 1
    rows = -(-entry["rows"] // groups)
    start = int(random.integers(groups)) * rows
    if start >= entry["rows"]:
        start = 0
    return start, min(rows, entry["rows"] - start)


def lines(found: Verification) -> Iterable[str]:
    """Yield what a person should read, line by line; the verdict comes last."""
    yield from found.notes
    yield from found.findings
    for one in found.differences:
        where = f"{one.file}: row {one.row} (row {one.shard_row} of {one.shard})"
        yield f"{where}: {one.column} is {one.published}, scoring it again gives {one.again}"
    told = f"{found.files:,} files, {found.rows:,} rows, {found.rows_again:,} of them scored again"
    verdict = "all is right"
    if not found.is_right:
        verdict = f"{len(found.findings):,} findings, {found.rows_different:,} rows differ"
    yield f"run {found.run_id[:12]}: {told}: {verdict}"
