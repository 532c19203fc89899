"""What an output folder holds, who may work on it, and whether a run may touch it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from job import storage
from job.commit import handover, staging
from job.commit import lease as commit_lease
from job.commit.manifest import check_inside, entries, parse
from job.commit.staging import STAGING
from job.errors import OutputConflictError, of_place
from job.report.run_report import RunReport

MANIFEST, SUCCESS, LEASE = "_manifest.json", "_SUCCESS", "lease"
REPORT_JSON, REPORT_HTML = "_report.json", "_report.html"


@dataclass(frozen=True)
class Seen:
    """What an output held when it was looked at by ``run``.

    ``others`` are the runs that left something in staging, ``marker`` what ``run`` was about to publish.
    """

    output: str
    run: str
    has_success: bool
    manifest_content: bytes | None
    marker: dict[str, Any] | None
    others: list[str]
    paths: list[str]

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest, finished or not."""
        content = self.manifest_content
        return None if content is None else parse(content, storage.join(self.output, MANIFEST))

    @property
    def published(self) -> dict[str, Any] | None:
        """The manifest of the night that is there, ``None`` if there is no finished one."""
        return self.manifest if self.has_success else None


def look(output: str, run: str) -> Seen:
    """Look at an output: all at once in a bucket, where each look waits for an answer."""
    return Seen(
        output,
        run,
        *storage.together(
            output,
            lambda: storage.size_bytes(storage.join(output, SUCCESS)) is not None,
            lambda: storage.read_bytes(storage.join(output, MANIFEST)),
            lambda: read_marker(output, run),
            lambda: leftovers(output, run),
            lambda: [info.path for info in storage.tree(output)],
        ),
    )


def published(output: str) -> dict[str, Any] | None:
    """Return the manifest of the night that the output holds, or ``None`` if it holds no finished one."""
    has_success, content = storage.together(
        output,
        lambda: storage.size_bytes(storage.join(output, SUCCESS)) is not None,
        lambda: storage.read_bytes(storage.join(output, MANIFEST)),
    )
    return parse(content, storage.join(output, MANIFEST)) if has_success and content is not None else None


def is_published(output: str, run: str) -> bool:
    """Say whether the output holds this run, finished."""
    done = published(output)
    return done is not None and done["run_id"] == run


def damaged(output: str, manifest: dict[str, Any]) -> list[str]:
    """Return the files of a published night that are gone or have another size."""
    found = {info.path: info.size_bytes for info in storage.tree(output)}
    sizes = {entry["path"]: entry["bytes"] for entry in entries(manifest)}
    wrong = [path for path, size in sizes.items() if found.get(storage.join(output, path)) != size]
    return wrong if storage.join(output, REPORT_JSON) in found else [*wrong, REPORT_JSON]


def report_of(output: str, run: str) -> RunReport | None:
    """Return the report of a run if the output holds it, finished."""
    path = storage.join(output, REPORT_JSON)
    done, content = storage.together(output, lambda: published(output), lambda: storage.read_bytes(path))
    if done is None or done["run_id"] != run:
        return None
    return RunReport.from_json((content or b"").decode(), path)


def read_report(output: str) -> RunReport:
    """Return the report of the night that the output holds.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = storage.join(output, REPORT_JSON)
    return RunReport.from_json((storage.read_bytes(path) or b"").decode(), path)


def mark_again(output: str, run: str, seen: Seen | None = None, *, token: str = "") -> bool:
    """Put back the ``_SUCCESS`` of a published run that lacks it, and say whether that was done.

    Two publishers of one run, or a person, may have taken it away. Every file must be as the manifest has it.
    The lease must be held, by this ``token``.
    """
    seen = seen or look(output, run)
    manifest = None if seen.marker is not None else seen.manifest
    if manifest is None or manifest["run_id"] != run or damaged(output, manifest):
        return False
    for entry in entries(manifest):
        if storage.sha256(storage.join(output, entry["path"])) != entry["sha256"]:
            return False
    check_lease(output, token)
    storage.write_atomic(storage.join(output, SUCCESS), b"", aside=storage.join(output, STAGING))
    return True


@contextmanager
def lease(
    output: str,
    announce: Callable[[str], None] = lambda _: None,
    ended: handover.Ended = lambda _: False,
) -> Iterator[str]:
    """Be the only run that works on an output while the body runs; a dead owner's lease becomes free.

    So does that of a job whose run is published, or that has ``ended``. Yields the token that ``check_lease``
    needs. It is empty where the lock alone is enough, which cannot get lost.

    Raises:
        OutputConflictError: another run is at work on it.
    """
    over = handover.either(lambda job: is_published(output, job.run), ended)
    if storage.is_remote(output):
        with commit_lease.held(lease_path(output), announce, over) as token:
            yield token
        return
    folder = storage.join(output, STAGING)
    with of_place(fix="choose another output"):
        storage.make_folder(folder)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    try:
        with commit_lease.locked(storage.join(folder, LEASE), owner) as lock:
            if lock.holder is not None:
                raise commit_lease.taken(output, lock.holder)
            renewed = renewed_path(output)
            # One that is there is another's, who sees this folder by another file system.
            is_sure = lock.is_sure and not storage.exists(renewed)
            with nullcontext("") if is_sure else commit_lease.held(renewed, announce, over) as token:
                if (job := handover.noted(folder)) is not None:
                    handover.check_ended(output, job, over)
                    handover.forget(folder)
                yield token
    finally:
        storage.remove_empty_folder(folder)


def lease_path(output: str) -> str:
    """Return the path of an output's lease."""
    return storage.join(output, STAGING, LEASE)


def renewed_path(output: str) -> str:
    """Return the path of the lease that is renewed: a bucket's, or of a disk whose lock is not enough."""
    if storage.is_remote(output):
        return lease_path(output)
    return storage.join(output, STAGING, handover.RENEWED)


def hand_over(output: str, token: str, job: handover.Job) -> None:
    """Leave an output whose lease this process holds to a job, beyond the end of the process."""
    if token:
        commit_lease.hand_over(token, job)
    else:
        handover.note(storage.join(output, STAGING), job)
    if is_published(output, job.run):
        # The job was faster, and found nothing to give back.
        give_back(output, job.run, token)


def give_back(output: str, run: str, token: str) -> None:
    """Make an output free that was handed to a job for this run."""
    handover.give_back(output, lease_path(output), lambda job, of: (job.run, of) == (run, token))


def check_lease(output: str, token: str) -> None:
    """Refuse to go on when another run has taken the lease, because this one was taken for dead.

    Raises:
        StateUnknownError: it has.
    """
    if token:
        commit_lease.check(renewed_path(output), token)


@contextmanager
def watched(output: str, token: str) -> Iterator[None]:
    """Send no request about the output in the body once another run has taken the lease.

    Requests then raise ``StateUnknownError``.
    """
    with commit_lease.watched(renewed_path(output), token) if token else nullcontext():
        yield


def check_output(output: str, run: str, *, replace: bool, seen: Seen | None = None) -> None:
    """Refuse an output that this run must not touch; ``seen`` is what ``look`` has just found there.

    Raises:
        OutputConflictError: another night is there and ``replace`` is off, or files that no run wrote.
    """
    seen = seen or look(output, run)
    if seen.marker is not None:
        return
    manifest, others = seen.manifest, seen.others
    interrupted = [other for other in others if read_marker(output, other) is not None]
    if interrupted and not replace:
        raise OutputConflictError(
            f"{output}: run {interrupted[0][:12]} was interrupted while it was published; finish it with its "
            f"own command, or --if_exists=replace"
        )
    if manifest is not None and not replace:
        held_run = manifest["run_id"]
        told = f"this is run {run[:12]} (input, model or options differ)"
        if held_run == run:
            told = "which is this run, but without its _SUCCESS"
        raise OutputConflictError(
            f"{output}: it holds run {held_run[:12]}, {told}; choose another --output, or --if_exists=replace"
        )
    visible = [path for path in seen.paths if not _is_hidden(path, output)]
    known = {storage.join(output, path) for path in known_files(output, others, manifest)}
    foreign = [path for path in visible if path not in known]
    if foreign:
        raise OutputConflictError(
            f"{output}: it holds {len(foreign)} file(s) that no run of this job wrote, first {foreign[0]}; "
            f"move them away or choose another --output"
        )


def known_files(output: str, others: Sequence[str], manifest: dict[str, Any] | None) -> set[str]:
    """Return the files, relative to the output, of the night that is there and of half-published others."""
    found = {entry["path"] for entry in entries(manifest)} if manifest else set()
    for other in others:
        found.update((read_marker(output, other) or {}).get("files", ()))
    return found


def read_marker(output: str, run: str) -> dict[str, Any] | None:
    """Return what a run that began to publish was going to do, or ``None`` if none has begun."""
    path = marker_path(output, run)
    content = storage.read_bytes(path)
    if not content:
        return None
    marker: dict[str, Any] = json.loads(content)
    check_inside([*marker["stale"], *marker["files"]], path)
    return marker


def marker_path(output: str, run: str) -> str:
    """Return the path of the mark that a run leaves when it begins to publish."""
    return storage.join(staging.folder_of(output, run), "publishing.json")


def leftovers(output: str, run: str) -> list[str]:
    """Return the ids of other runs that left something in staging."""
    found = storage.names(storage.join(output, STAGING))
    # A lease of either kind, or one that was moved away when it was taken over.
    return [name for name in found if name not in (run, handover.NOTE) and not name.startswith(LEASE)]


def handles_of(output: str, runs: Iterable[str], token: str) -> set[str]:
    """Return the handles of all files that the receipts of some runs name; what is none of them may go.

    Raises:
        StateUnknownError: another run has taken the lease that was held by ``token``.
    """
    found = staging.handles_of(output, runs)
    check_lease(output, token)
    return found


def remove_staging(
    output: str, run: str, token: str = "", *, first: Callable[[], None] = lambda: None
) -> None:
    """Remove one run's staging, and the staging folder if it is then empty; before that, do ``first``.

    Raises:
        StateUnknownError: another run has taken the lease that was held by ``token``.
    """
    folder = staging.folder_of(output, run)
    if storage.is_remote(output):
        _, found = storage.together(output, first, lambda: storage.tree(folder))
        check_lease(output, token)
        storage.remove_all([info.path for info in found])
        return
    first()
    check_lease(output, token)
    storage.remove_tree(folder)
    storage.remove_empty_folder(storage.join(output, STAGING))


def _is_hidden(path: str, output: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.removeprefix(output).split("/"))
