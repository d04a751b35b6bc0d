"""Work on all cores: processes that end with their parent, results in the order of the tasks."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Executor)


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """An executor of `workers` processes; of one thread where that is one.

    The processes are spawned, not forked: the build process has threads.
    """
    pool: Executor
    if workers == 1:
        pool = ThreadPoolExecutor(1)
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    with closing(pool):
        yield pool


@contextmanager
def closing(pool: E) -> Iterator[E]:
    """Shut an executor down, and drop what is queued; only after success wait for what runs."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)


def in_order(submit: Callable[[T], "Future[R]"], tasks: Iterable[T], ahead: int) -> Iterator[R]:
    """The results of the tasks in their order, with up to `ahead` of them under way."""
    waiting: deque[Future[R]] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _end_with_parent() -> None:
    """In a worker process: end as soon as the parent does, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
