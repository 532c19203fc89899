"""Things that are asked of files at the same time, since each waits for its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from job import storage

T = TypeVar("T")
R = TypeVar("R")

REQUESTS_AT_ONCE: Final = 32


def parallel(function: Callable[[T], R], items: Iterable[T], *, name: str) -> list[R]:
    """Do something to many files, several at a time, and return the results in order."""
    every = list(items)
    if len(every) < 2:
        # A thread takes longer to start than a small file to be read.
        return [function(one) for one in every]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix=name) as pool:
        return list(pool.map(function, every))


def ahead(path: str, call: Callable[[], T]) -> Callable[[], T]:
    """Begin a call in a thread where ``path`` leads into a bucket, and return what waits for its result.

    Elsewhere it is made when the result is asked for.
    """
    if not storage.is_remote(path):
        return call
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    result = pool.submit(call)
    pool.shutdown(wait=False)
    return result.result


def together(path: str, *calls: Callable[[], Any]) -> list[Any]:
    """Call all and return their results in order; in threads where ``path`` leads into a bucket.

    On a disk the next one is not called when one has raised. Elsewhere all are called, and what the first of
    them, in order, raised is raised.
    """
    if not storage.is_remote(path):
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls), thread_name_prefix="together") as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
