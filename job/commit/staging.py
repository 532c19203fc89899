"""What a run has in staging until it is published: plan, attempts, receipts, failures, a refusal by gates.

The protocol they serve is told in ``job.commit.protocol``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from job import secrets, storage
from job.errors import JobError, StateUnknownError, by_name
from job.gates.gate import Compared, as_tuples
from job.spec import (
    ChallengerRun,
    ChallengerWork,
    Gates,
    ModelReference,
    Receipt,
    Run,
    Shard,
    Split,
    StoreOptions,
)

STAGING, REJECTED, PLAN, REFUSAL = "_staging", "_rejected", "plan.jsonl", "refused.json"
# Parquet by content. Readers that take every ``**/*.parquet`` for a prediction must not find them.
REJECTED_SUFFIX, ATTEMPT_SUFFIX = ".rejected", ".attempt"


def folder_of(output: str, run: str) -> str:
    """Return the folder that holds everything of a run until it is published."""
    return storage.join(output, STAGING, run)


def write_plan(output: str, run: str, splits: Iterable[Split]) -> str:
    """Write the splits of a run and return the file's path. The same run writes the same plan."""
    folder = folder_of(output, run)
    for part in ("attempts", "receipts", "failures"):
        storage.make_folder(storage.join(folder, part))
    path = storage.join(folder, PLAN)
    lines = [json.dumps(dataclasses.asdict(split)) for split in splits]
    # A power cut ends the launcher too, and the next one writes it again.
    storage.write_atomic(path, "\n".join([*lines, ""]).encode(), durable=False)
    return path


def read_plan(path: str, first: int = 0, step: int = 1) -> Iterator[Split]:
    """Yield the splits of a plan file, or every ``step``-th of them from number ``first`` on.

    Raises:
        StateUnknownError: it is gone.
    """
    content = storage.read_bytes(path)
    if content is None:
        raise _gone(path)
    # Made out only where they are wanted: thousands of slices of a million lines each add up.
    for line in itertools.islice(content.splitlines(), first, None, step):
        yield _split(json.loads(line))


def _check_under_way(output: str, run: str) -> None:
    """Refuse to bring back the staging of a run that another attempt has published meanwhile."""
    path = storage.join(folder_of(output, run), PLAN)
    if storage.size_bytes(path) is None:
        raise _gone(path)


def _gone(path: str) -> StateUnknownError:
    return StateUnknownError(
        f"{path}: the run's plan is gone: it was published or removed meanwhile; run again to see which"
    )


def new_attempt(output: str, run: str, split: Split) -> str:
    """Return the path of a new attempt's file, which no other attempt has; its folder exists.

    Raises:
        StateUnknownError: the run's staging is gone.
    """
    if not storage.is_remote(output):
        # There it is a request for each split, and what is written in vain is taken back by write_receipt.
        _check_under_way(output, run)
    stem = storage.join(folder_of(output, run), "attempts", split.name)
    path = f"{stem}.{os.urandom(8).hex()}{ATTEMPT_SUFFIX}"
    storage.make_folder(storage.parent(path))
    return path


def write_receipt(output: str, receipt: Receipt) -> Receipt:
    """Make an attempt the one that counts, and return the receipt that does.

    In a bucket that is another one where an attempt of another process came first and is as good.

    Raises:
        StateUnknownError: the run's staging is gone.
    """
    try:
        _check_under_way(output, receipt.run_id)
    except StateUnknownError:
        for part in parts(receipt):
            storage.remove(part.staged)
        raise
    path = _receipt_path(output, receipt.run_id, receipt.split)
    storage.make_folder(storage.parent(path))
    content = json.dumps(dataclasses.asdict(receipt)).encode()
    if not storage.write_first(path, content):
        first = read_receipt(output, receipt.run_id, receipt.split)
        if first is not None and _weights(first) == _weights(receipt):
            return first
        storage.write_atomic(path, content)
    return receipt


def _weights(receipt: Receipt) -> tuple[str, str]:
    return receipt.weights_digest, receipt.challenger.weights_digest if receipt.challenger else ""


def forget_receipt(output: str, receipt: Receipt) -> None:
    """Take a receipt back whose attempt is gone, so that its split is scored again."""
    storage.remove(_receipt_path(output, receipt.run_id, receipt.split))


def read_receipt(output: str, run: str, split: Split) -> Receipt | None:
    """Return a split's receipt, or ``None`` where it has none that can be relied on.

    A torn receipt, or one whose attempt is neither in staging nor published, counts as none.
    """
    content = storage.read_bytes(_receipt_path(output, run, split))
    if not content:
        return None
    try:
        fields = dict(json.loads(content))
        lists = ("reject_reasons", "histograms")
        pairs = {name: tuple((key, value) for key, value in fields.get(name, ())) for name in lists}
        work = _work(fields.get("challenger"))
        pairs["rejects_left_out"] = tuple(fields.get("rejects_left_out", ()))
        receipt = Receipt(**{**fields, **pairs, "split": _split(fields["split"]), "challenger": work})
    except (ValueError, TypeError, KeyError):
        return None
    if receipt.run_id != run or receipt.split != split:
        return None
    attempts = storage.join(folder_of(output, run), "attempts")
    if any(
        not storage.fits(part.staged, attempts, storage.join(output, part.final)) for part in parts(receipt)
    ):
        return None
    if storage.is_remote(output):
        # Nothing that a store took is lost by a restart; publishing looks at all attempts at once.
        return receipt
    # Attempts are not flushed one by one. Only a restart can have cost what was not on the disk yet.
    same_boot = bool(receipt.boot_id) and receipt.boot_id == storage.boot_id()
    is_whole = all(part.is_staged(same_boot) or part.is_published(output) for part in parts(receipt))
    return receipt if is_whole else None


@dataclass(frozen=True)
class PartFile:
    """A file that an attempt wrote: where it lies in staging, and its name below the output."""

    staged: str
    final: str
    rows: int
    size_bytes: int
    sha256: str

    def is_staged(self, trusted: bool) -> bool:
        """Say whether the file is in staging, whole; if ``trusted``, its size is proof enough."""
        if storage.held_bytes(self.staged) != self.size_bytes:
            return False
        return trusted or storage.sha256(self.staged) == self.sha256

    def is_published(self, output: str) -> bool:
        """Say whether the file has its final name already."""
        final = storage.join(output, self.final)
        return storage.size_bytes(final) == self.size_bytes and storage.sha256(final) == self.sha256


def final_name(split: Split) -> str:
    """Return the file that a split's scored rows are published as, relative to the output."""
    return f"{split.name}.parquet"


def parts(receipt: Receipt) -> list[PartFile]:
    """Return the files that a receipt stands for: the scored rows, and the rejected ones if there are any."""
    found = (scored_part(receipt), rejected_part(receipt))
    return [part for part in found if part is not None]


def scored_part(receipt: Receipt) -> PartFile | None:
    """Return the file of scored rows; ``None`` where the shard was refused."""
    if not receipt.attempt:
        return None
    final = final_name(receipt.split)
    return PartFile(receipt.attempt, final, receipt.rows_scored, receipt.file_bytes, receipt.file_sha256)


def rejected_part(receipt: Receipt) -> PartFile | None:
    """Return the file of rejected rows; ``None`` where there are none."""
    if not receipt.rejects:
        return None
    final = f"{REJECTED}/{receipt.split.name}{REJECTED_SUFFIX}"
    rows, size_bytes = receipt.rows_rejected, receipt.rejects_bytes
    return PartFile(receipt.rejects, final, rows, size_bytes, receipt.rejects_sha256)


def handles_of(output: str, runs: Iterable[str]) -> set[str]:
    """Return the handles of all files that the receipts of some runs name."""
    folders = [storage.join(folder_of(output, run), "receipts") for run in runs]
    paths = [info.path for folder in folders for info in storage.tree(folder)]
    found: set[str] = set()
    for content in storage.parallel(storage.read_bytes, paths, name="receipts"):
        with suppress(ValueError, TypeError, AttributeError):
            fields = json.loads(content or b"{}")
            found.update((fields.get("attempt", ""), fields.get("rejects", "")))
    return found


def finished(output: str, run: str) -> set[str]:
    """Return the names of the splits of a run that have a receipt, as a listing shows them."""
    folder = storage.join(folder_of(output, run), "receipts")
    paths = (info.path.removeprefix(f"{folder}/") for info in storage.tree(folder))
    return {path.removesuffix(".json") for path in paths if path.endswith(".json")}


def write_failure(output: str, run: str, where: str, error: JobError, *, planned: bool = True) -> None:
    """Leave a worker's error where the launcher finds it: engines flatten exceptions into text.

    ``where`` is the split's name, or empty where no split is to blame. ``planned`` says that the run has a
    plan as long as it is under way.
    """
    folder = storage.join(folder_of(output, run), "failures")
    content = {"error": type(error).__name__, "message": secrets.scrub(str(error)), "where": where}
    # What is being told matters more than that it could not be written down.
    with suppress(JobError):
        if planned:
            _check_under_way(output, run)
        storage.make_folder(folder)
        path = storage.join(folder, f"{os.urandom(8).hex()}.json")
        storage.write_atomic(path, json.dumps(content).encode(), durable=False)


def failure(output: str, run: str) -> JobError | None:
    """Return the first error, by place, that a worker left; ``None`` where there is none."""
    folder = storage.join(folder_of(output, run), "failures")
    contents = [storage.read_bytes(storage.join(folder, name)) for name in storage.names(folder)]
    found = sorted((json.loads(content) for content in contents if content), key=lambda f: str(f["where"]))
    return by_name(found[0]["error"])(found[0]["message"]) if found else None


def clear_failures(output: str, run: str) -> None:
    """Forget the errors of an earlier try."""
    storage.remove_tree(storage.join(folder_of(output, run), "failures"))


def write_refusal(run: Run, compared: Compared) -> None:
    """Note that the gates have refused a run, and keep the run itself beside it.

    With this note, another process can publish the night without its model, its shards or its command.
    """
    limits = {**dict(run.gates.limits), "baselines": run.gates.baselines}
    content = {"run": {**dataclasses.asdict(run), "gates": limits}, "compared": compared.to_fields()}
    storage.write_atomic(_refusal_path(run.output, run.run_id), json.dumps(content).encode())


def read_refusal(output: str, run: str) -> tuple[Run, Compared] | None:
    """Return a refused run and why it was; ``None`` where no gate has refused it.

    Raises:
        StateUnknownError: the note cannot be made out.
    """
    content = storage.read_bytes(_refusal_path(output, run))
    if content is None:
        return None
    try:
        told = json.loads(content)
        return _run(told["run"]), Compared.of_fields(told["compared"])
    except (ValueError, TypeError, KeyError) as e:
        raise StateUnknownError(
            f"{_refusal_path(output, run)}: cannot be made out; the command of its run writes it again"
        ) from e


def stop_mark(output: str, run: str) -> str:
    """Return the path of a new mark: one that stops this try's workers stops no later one's."""
    return storage.join(folder_of(output, run), f"stopped-{os.urandom(8).hex()}")


def stop(output: str, run: str, mark: str) -> None:
    """Tell workers that look for the mark to score no further split.

    Raises:
        StateUnknownError: the run's staging is gone.
    """
    _check_under_way(output, run)
    storage.write_atomic(mark, b"", durable=False)


def _refusal_path(output: str, run: str) -> str:
    return storage.join(folder_of(output, run), REFUSAL)


def _run(told: dict[str, Any]) -> Run:
    # What a later version added is of no use here.
    known = {field.name: told[field.name] for field in dataclasses.fields(Run) if field.name in told}
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


def _receipt_path(output: str, run: str, split: Split) -> str:
    return storage.join(folder_of(output, run), "receipts", f"{split.name}.json")


def _work(fields: dict[str, Any] | None) -> ChallengerWork | None:
    if fields is None:
        return None
    return ChallengerWork(**{**fields, "reasons": tuple((key, rows) for key, rows in fields["reasons"])})


def _split(fields: dict[str, Any]) -> Split:
    return Split(**{**fields, "shard": shard_of(fields["shard"]), "row_groups": tuple(fields["row_groups"])})


def shard_of(fields: dict[str, Any]) -> Shard:
    """Return a shard from its JSON."""
    return Shard(**{**fields, "partition": tuple((name, value) for name, value in fields["partition"])})
