"""Attempt → receipt → publish: how a night becomes complete, right and once.

::

    OUTPUT/_staging/lease                                   held by the run that works on OUTPUT
                   /<run_id>/plan.jsonl                     the splits of the run
                            /attempts/<split>.<token>.attempt
                            /receipts/<split>.json          the attempt that counts
                            /publishing.json                from here on, only forward

An **attempt** writes one split's predictions to a file of its own name. The **receipt** is written under the
split's name when the attempt's file is complete, and names the attempt that counts. When every split has its
receipt, the run is **published**. The disk shows what state a run is in, and from every state the same
command goes on to the end:

========== ==================================================== ==============================================
state      on the disk                                          the step out of it, which can be repeated
========== ==================================================== ==============================================
new        nothing of the run                                   write ``plan.jsonl``; the same each time
planned    the plan                                             score a split, then write its receipt
scoring    some receipts; any attempts, torn or whole           the same, of splits without a receipt
complete   a receipt of every split                             count all rows, ask the gates; write
                                                                ``publishing.json``
refused    the same, and a gate's note                          the same with another threshold, or at a
                                                                person's word (``job publish``) without gates
publishing the mark; the old night's ``_SUCCESS`` may be gone,  take ``_SUCCESS`` away, rename each attempt
           some files renamed, some of the old night removed    that counts, remove what the new night lacks
moved      every file under its final name                      flush; report, manifest, then ``_SUCCESS``
published  ``_SUCCESS``, and a manifest that names the run      remove the run's staging
unmarked   this run's manifest, no ``_SUCCESS``, no staging     ``_SUCCESS``, if every file has its SHA-256
========== ==================================================== ==============================================

* Two attempts of one split never touch each other's file; the later receipt wins, and either is right.
* A zombie that ends after publishing finds its run's staging gone, and leaves nothing.
* Two publishers of one run do the same steps; a file that is gone from staging and has the receipt's digest
  under its final name was renamed by the other. At worst they leave the state *unmarked*.
* A publisher that outlives its launcher may find that another run has published. It ends there, before it
  removes anything of that night; at worst its ``_SUCCESS``, which the other run's command puts back.
* A second command is refused while the lease is held. The system frees the lease of one that died. One that
  ends before its job hands it over, see ``job.commit.handover``. Where locks do not hold, the lease is of
  the kind that buckets have, see ``job.commit.lease``.
* One that stood still while another took its lease finds what it would have renamed gone: who replaces a
  night first removes the staging of all others, and what is taken away, ``_SUCCESS`` too, is moved into one's
  own.
* A full disk, or one that turns read-only, fails a step; the state before it is still there.
* No state depends on a clock.

A reader sees one whole night that looks at ``_SUCCESS``, reads the manifest and the files, and then looks at
``_SUCCESS`` and at the manifest's run id again: while files are exchanged there is no ``_SUCCESS``.

**In a bucket** there is no rename, no lock and no disk to flush; a write is whole, durable and seen by all or
it did not happen. What stands in their place:

========== ==================================================== ==============================================
           S3                                                   Cloud Storage
========== ==================================================== ==============================================
attempt    an upload to the final name that is not finished:    an object in staging: an open upload is known
           nobody sees it, and it outlives its process          by an address that is a secret there
receipt    written if absent: the first attempt stands; names   written if absent; names the object
           the upload and its parts
lease      an object that its owner keeps changing, each time   the same, by generation
           only if nobody else has; see ``job.commit.lease``
publishing each upload is finished: one request, no copy; the   each object is copied to its final name: one
           rows are counted in the footers after that           request, no bytes move within a bucket
repeated   an upload that is gone, and has the receipt's digest the same, of the object in staging
           under the final name, was finished before
abandoned  given up when a night is published, and by           gone with the staging
           ``job clean``; let a lifecycle rule give up others
========== ==================================================== ==============================================

Rejected rows are plain objects in staging, to be looked at there, and are copied in both. A machine that
stood still may have lost the lease: it is looked at right before each step that cannot be taken back (the
mark, ``_SUCCESS`` taken away or written, each move, each removal), and before any other request where the own
clocks say that this may be so; see ``job.commit.lease``, also for what is left. No step relies on a listing:
one
that is late shows fewer leftovers, and fewer finished splits on the screen.

What is flushed to the disk, and when: the mark and the names of all folders that lead to it, those above
the output too, before the old ``_SUCCESS`` is taken away; that it is gone, before the first file is renamed;
every published file, every folder that leads to one or to one that was removed, and the manifest, before the
new ``_SUCCESS``. ``tests.support.power_cut`` cuts the power at every step of that. Attempts and receipts are
not
flushed one by one, which would cost 4 ms each. A power cut can take what was not yet on the disk; so a
receipt tells in which boot of which machine its file was written, and after a restart it counts only if the
file still has the receipt's digest. A torn receipt counts as none.

Before the mark is written, rows are counted three times: the plan's (from the shards' footers), the receipts'
(read = scored + rejected, split by split), and those in the footers of the files that were written. Then the
gates compare the night with the last good one, see ``job.commit.baseline``; what they said is in the mark, so
that who
goes on from there asks nobody again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from job import environment, storage
from job.commit import baseline, manifest, output, reconciliation, staging
from job.errors import StateUnknownError
from job.gates.gate import Compared
from job.report.run_report import RunReport
from job.spec import Receipt, Run, Shard, Split

_TOLD: Final = (output.REPORT_JSON, output.REPORT_HTML, output.MANIFEST)


def run_id(shards: Iterable[Shard], model_digest: str, options: Mapping[str, object]) -> str:
    """Return a run's identity: SHA-256 over its inputs, its model and the options that shape its output."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(json.dumps([shard.path, shard.size_bytes, shard.stamp]).encode())
    digest.update(json.dumps([model_digest, options], sort_keys=True).encode())
    return digest.hexdigest()


def publish(
    run: Run,
    receipts: Iterable[Receipt],
    *,
    ask: baseline.Ask = baseline.passed,
    clock: Callable[[], float] = time.time,
) -> RunReport:
    """Publish a run whose splits all have receipts; safe to repeat from any point.

    Args:
        run: the run.
        receipts: those that an engine has given; the others are looked up.
        ask: the gates, and whoever may release what they refuse.
        clock: tells the time in seconds since 1970.

    Raises:
        GateError: the night is not as it must be; it stays in staging.
        DataError: rows do not add up, or workers built different models.
        StorageError: reading or writing failed; nothing is lost.
        StateUnknownError: a split has no receipt, a file that a receipt names is nowhere, or another run has
            published meanwhile.
    """
    # Hours may have passed since the launcher looked.
    seen = output.look(run.output, run.run_id)
    if seen.published is not None and seen.published["run_id"] == run.run_id:
        # Engines may repeat a step when they have lost its outcome.
        output.remove_staging(run.output, run.run_id)
        if run.handed:
            output.give_back(run.output, run.run_id, run.lease)
        return output.read_report(run.output)
    with output.watched(run.output, run.lease):
        return _publish(run, receipts, seen, ask, clock)


def _publish(
    run: Run,
    receipts: Iterable[Receipt],
    seen: output.Seen,
    ask: baseline.Ask,
    clock: Callable[[], float],
) -> RunReport:
    every = _one_of_each_split(run, receipts)
    counted = sorted(every, key=lambda receipt: (receipt.split.shard.path, receipt.split.first_row))
    reconciliation.reconcile(run, counted)
    parts = [part for receipt in counted for part in staging.parts(receipt)]
    storage.together(
        run.output,
        lambda: output.check_lease(run.output, run.lease),
        lambda: reconciliation.check_parts(run, counted),
    )
    reconciliation.recount(run.output, [part for part in parts if storage.is_readable(part.staged)])
    if not storage.is_remote(run.output):
        # Counting may have taken minutes. In a bucket nobody else can have changed it without the lease.
        seen = output.look(run.output, run.run_id)
    output.check_output(run.output, run.run_id, replace=run.replace, seen=seen)
    marker = seen.marker or _begin_publishing(run, parts, seen, ask(run, counted, seen))
    stale = marker["stale"]
    # After a power cut the mark must be found, or nobody knows whose files lie beside the old night's; and
    # what is published in a new folder is lost with the folder's own name.
    storage.sync_way(staging.folder_of(run.output, run.run_id))
    _check_still(run)
    _disarm(run, seen.others, parts)
    _check_still(run)
    _withdraw(run, [output.SUCCESS])
    # After a power cut the old mark must not stand beside files of the new night.
    storage.sync_folder(run.output)
    _move_all(run, parts)
    # What could not be read before it had its name.
    reconciliation.recount(run.output, [part for part in parts if not storage.is_readable(part.staged)])
    storage.sync_files(storage.join(run.output, part.final) for part in parts)
    _check_still(run)
    _withdraw(run, stale)
    for path in stale:
        storage.remove_empty_parents(storage.join(run.output, path), run.output)
    named = (*(part.final for part in parts), *stale)
    for folder in sorted({run.output, *(folder for name in named for folder in _folders(run.output, name))}):
        # Of what is stale, those that are left: a file that was removed must not come back beside the mark.
        if storage.is_folder(folder):
            storage.sync_folder(folder)
    told = marker.get("compared")
    compared = None if told is None else Compared.of_fields(told)
    return _finish(run, counted, RunReport.of(run, counted, ended_unix_s=clock(), compared=compared))


def _finish(run: Run, receipts: Sequence[Receipt], report: RunReport) -> RunReport:
    """Write what tells of the night, ``_SUCCESS`` last, and remove what led to it."""
    # What a killed process leaves unfinished goes with the staging.
    aside = staging.folder_of(run.output, run.run_id)

    def write(name: str, content: str) -> None:
        path = storage.join(run.output, name)
        storage.write_atomic(path, content.encode(), durable=name == output.SUCCESS, aside=aside)

    _check_still(run)
    storage.together(
        run.output,
        lambda: write(output.REPORT_JSON, report.to_json()),
        lambda: write(output.REPORT_HTML, report.to_html()),
        lambda: write(output.MANIFEST, manifest.compose(run, receipts, report.compared)),
    )
    # The folder once for all three.
    storage.sync_files(storage.join(run.output, name) for name in _TOLD)
    storage.sync_folder(run.output)
    _check_still(run)
    write(output.SUCCESS, "")
    for other in output.leftovers(run.output, run.run_id) if run.replace else ():
        output.remove_staging(run.output, other, run.lease)

    def of_others() -> set[str]:
        return output.handles_of(run.output, output.leftovers(run.output, run.run_id), run.lease)

    # The staging last: as long as it is there, the next command knows that there may be more to sweep.
    output.remove_staging(
        run.output, run.run_id, run.lease, first=lambda: storage.sweep(run.output, of_others)
    )
    if run.handed:
        output.give_back(run.output, run.run_id, run.lease)
    return report


def _one_of_each_split(run: Run, receipts: Iterable[Receipt]) -> list[Receipt]:
    """Return the receipt of each split that has one, whatever the engine did with its own copies.

    Engines may deliver one twice. Beam's embedded one was seen to lose 2 of 20,000, once. What is in staging
    counts.
    """
    given = list(receipts)
    found = {receipt.split.name: receipt for receipt in given}
    if len(given) == len(found) == run.splits:
        return given
    times = Counter(receipt.split.name for receipt in given)
    plan = staging.read_plan(storage.join(staging.folder_of(run.output, run.run_id), staging.PLAN))
    looked_for = [split for split in plan if times[split.name] != 1]

    def read(split: Split) -> Receipt | None:
        return staging.read_receipt(run.output, run.run_id, split)

    # On a disk threads would only be in each other's way.
    far = storage.is_remote(run.output)
    on_disk = storage.parallel(read, looked_for, name="receipts") if far else map(read, looked_for)
    found.update({receipt.split.name: receipt for receipt in on_disk if receipt is not None})
    return list(found.values())


def _begin_publishing(
    run: Run, parts: Sequence[staging.PartFile], seen: output.Seen, compared: Compared
) -> dict[str, Any]:
    """Mark the point of no return; the mark's ``stale`` files are of the replaced night alone."""
    new = {part.final for part in parts}
    stale = sorted(output.known_files(run.output, seen.others, seen.manifest) - new)
    marker = {"stale": stale, "files": sorted(new), "compared": compared.to_fields()}
    output.check_lease(run.output, run.lease)
    storage.write_atomic(output.marker_path(run.output, run.run_id), json.dumps(marker).encode())
    return marker


def _disarm(run: Run, others: Sequence[str], parts: Sequence[staging.PartFile]) -> None:
    """Remove what other runs have in staging, before they are replaced.

    One of them may stand still in the midst of a step, with a machine that was suspended. What it would move
    or write under a final name is there no more when it goes on.
    """
    if not run.replace or not others:
        return
    for other in others:
        output.remove_staging(run.output, other, run.lease)
    storage.sweep(run.output, lambda: {part.staged for part in parts})


def _withdraw(run: Run, names: Sequence[str]) -> None:
    """Remove files of the output; on a disk that fails once another run has removed this one's staging."""
    paths = [storage.join(run.output, name) for name in names]
    try:
        storage.withdraw(paths, staging.folder_of(run.output, run.run_id))
    except FileNotFoundError as e:
        raise _replaced(run.output) from e


def _move_all(run: Run, parts: Sequence[staging.PartFile]) -> None:
    """Give every file its final name."""
    if storage.is_remote(run.output):
        # Each waits for an answer; where they are renamed, threads would only be in each other's way.
        storage.parallel(lambda part: _move(run, part), parts, name="move")
        return
    for part in parts:
        _move(run, part)


def _folders(top: str, final: str) -> Iterator[str]:
    """Yield the folders that lead to a published file, below ``top``: each may be new."""
    names = final.split("/")
    return (storage.join(top, *names[:depth]) for depth in range(1, len(names)))


def _move(run: Run, part: staging.PartFile) -> None:
    """Give a file its final name."""
    top = run.output
    final = storage.join(top, part.final)
    storage.make_folder(storage.parent(final))
    # Another run's file may have it by now.
    output.check_lease(top, run.lease)
    try:
        storage.release(part.staged, final)
    except FileNotFoundError as e:
        # A try before this one may have moved it: _check_parts has seen it. Or another run, since then, has
        # removed this one's staging and put its own night here.
        if not part.is_published(top):
            raise _replaced(top) from e


def _check_still(run: Run) -> None:
    """Look whether the output is still this run's: right before each step that cannot be taken back.

    The machine may have stood still since the last one, and nobody has told it.
    """
    storage.together(
        run.output,
        lambda: output.check_lease(run.output, run.lease),
        lambda: _check_not_replaced(run),
    )


def _check_not_replaced(run: Run) -> None:
    """Refuse to go on where another run has put its night in the place of this one."""
    if output.read_marker(run.output, run.run_id) is None and not output.is_published(run.output, run.run_id):
        raise _replaced(run.output)


def _replaced(folder: str) -> StateUnknownError:
    return StateUnknownError(
        f"{folder}: another run has published there since this one began to; "
        f"`{environment.program()} verify {folder}` tells whether that night is whole, and "
        f"the same command again which one is there"
    )
