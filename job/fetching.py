"""Row groups of a shard in a bucket, which are fetched while earlier ones are decoded."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

# Row groups that are fetched as a whole lie side by side: so much of them is one request.
FETCHED_BYTES = 8 << 20
# So many requests are sent ahead, which hides some 20 ms that each waits for its answer; more, as long as
# they make up no more than the fewest would of row groups of ``FETCHED_BYTES``.
_FEWEST_AHEAD, _MOST_AHEAD = 4, 16
# Arrow reads from a file in Python in a thread of its own, of which it has 8; here each waits for an answer.
_ARROW_THREADS = 32
# A row group that is larger is not held as a whole: each of its columns is fetched in pieces of this size.
MOST_FETCHED_BYTES = 96 << 20
FETCHED_COLUMN_BYTES = 4 << 20

Begun = tuple[pq.ParquetFile, Iterator[pa.RecordBatch]]


def group_runs(
    groups: Sequence[int], bytes_of: Callable[[list[int]], int], *, side_by_side: bool, first_alone: bool
) -> list[list[int]]:
    """Return row groups in runs that are small enough to be fetched at once.

    ``side_by_side`` says that nothing lies between what is wanted of two row groups: otherwise a run of
    several would save no request, and Arrow would ask for one after the other.
    """
    found: list[list[int]] = []
    held_bytes = 0
    for group in groups:
        alone = not side_by_side or (first_alone and len(found) == 1)
        if not found or alone or held_bytes + bytes_of([group]) > FETCHED_BYTES:
            found.append([])
            held_bytes = 0
        found[-1].append(group)
        held_bytes += bytes_of([group])
    return found


def fetched(
    pieces: Sequence[list[int]],
    bytes_of: Callable[[list[int]], int],
    begin: Callable[[list[int]], Begun],
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of all pieces in order; ``begin`` opens one in a thread."""

    def first_read(piece: list[int]) -> Begun:
        file, batches = begin(piece)
        # Fetches it.
        return file, itertools.chain(list(itertools.islice(batches, 1)), batches)

    if pa.io_thread_count() < _ARROW_THREADS:
        pa.set_io_thread_count(_ARROW_THREADS)
    waiting, held_bytes = deque(pieces), 0
    pending: deque[tuple[int, Future[Begun]]] = deque()

    def fill(pool: ThreadPoolExecutor) -> None:
        nonlocal held_bytes
        while waiting and len(pending) < _MOST_AHEAD:
            more_bytes = bytes_of(waiting[0])
            if len(pending) >= _FEWEST_AHEAD and held_bytes + more_bytes > _FEWEST_AHEAD * FETCHED_BYTES:
                return
            pending.append((more_bytes, pool.submit(first_read, waiting.popleft())))
            held_bytes += more_bytes

    with ThreadPoolExecutor(_MOST_AHEAD, thread_name_prefix="fetch") as pool:
        fill(pool)
        while pending:
            size_bytes, begun = pending.popleft()
            file, batches = begun.result()
            held_bytes -= size_bytes
            fill(pool)
            yield from batches
            file.close()
