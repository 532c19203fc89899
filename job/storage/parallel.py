"""Calls about several files at the same time, since each call waits for its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from job import storage

T = TypeVar("T")
R = TypeVar("R")

REQUESTS_AT_ONCE: Final = 32


def parallel(function: Callable[[T], R], items: Iterable[T], *, name: str) -> list[R]:
    """Call ``function`` for many files, several at a time, and return the results in order."""
    every = list(items)
    if len(every) < 2:
        # A thread takes longer to start than a small file to be read.
        return [function(one) for one in every]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix=name) as pool:
        return list(pool.map(function, every))


def ahead(path: str, call: Callable[[], T]) -> Callable[[], T]:
    """Begin a call in a thread if ``path`` is in a bucket; return a function that waits for its result.

    On a disk the call is made when that function is called.
    """
    if not storage.is_remote(path):
        return call
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    result = pool.submit(call)
    pool.shutdown(wait=False)
    return result.result


def together(path: str, *calls: Callable[[], Any]) -> list[Any]:
    """Make all calls and return their results in order; in threads if ``path`` is in a bucket.

    On a disk the calls are made one after the other, and the first error ends them. In a bucket all are made,
    and the error of the first one that failed, in their order, is raised.
    """
    if not storage.is_remote(path):
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls), thread_name_prefix="together") as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
