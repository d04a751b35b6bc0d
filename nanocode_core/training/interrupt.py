"""Asking a training loop to stop between two steps instead of anywhere.

A step's input state is donated to it, so an exception in the middle of one would leave nothing to
save. While training runs, SIGTERM and SIGINT are only noted; the loop looks after each step, saves
and raises KeyboardInterrupt itself.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by the first signal; a second one raises at once."""

    def __init__(self) -> None:
        self.asked = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler."""
        del signum, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT while the block runs, then put the old handlers back.

    Python delivers signals to the main thread; elsewhere nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    old = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
