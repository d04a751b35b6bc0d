"""Many small pieces of work side by side: hashing files, moving objects."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

HASHERS = min(4, os.cpu_count() or 1)
"""Files hashed at a time."""
TRANSFERS = 8
"""Requests to a remote store at a time."""


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int = TRANSFERS) -> list[R]:
    """The results of `work` for all items, in order; the first error is raised."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
