"""Batches made and placed on the devices by a thread, a step or two ahead of the loop.

`batch(step)` is a pure function, so nothing depends on how far ahead the thread is: a run that stops
after step n goes on with batch n, whatever had been prepared. The time that the loop waits here is
the input pipeline's share of a step.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

AHEAD = 2


class Prefetch:
    """Placed batches of the steps first ... last - 1, in order. Use it as a context manager."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int, ahead: int = AHEAD) -> None:
        """Start the thread.

        Args:
            make: step -> the batch as the step function takes it; must start no collective operation.
            ahead: batches that may be ready beyond the one in use.
        """
        self._make, self._first, self._last = make, first, last
        self._ready: deque[tuple[Any, BaseException | None]] = deque()
        self._room = threading.Semaphore(ahead)
        self._filled = threading.Semaphore(0)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def get(self) -> tuple[Any, float]:
        """The next batch, and the seconds it was waited for. An error of `make` is raised at its step."""
        start = time.perf_counter()
        self._filled.acquire()
        waited = time.perf_counter() - start
        batch, error = self._ready.popleft()
        self._room.release()
        if error is not None:
            raise error
        return batch, waited

    def _work(self) -> None:
        for step in range(self._first, self._last):
            self._room.acquire()
            if self._closed:
                return
            try:
                self._ready.append((self._make(step), None))
            except BaseException as error:
                self._ready.append((None, error))
                return
            finally:
                self._filled.release()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread, at the latest when the batch it is making is done."""
        self._closed = True
        self._room.release()
        self._thread.join()
        self._ready.clear()
