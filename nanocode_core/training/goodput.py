"""Goodput: seconds of steps that count / seconds of all starts.

Productive is the time of steps whose result is in the end: without compiling, waiting for input,
measurements and saves, and without steps that a kill undid and a restart repeated (each checkpoint
carries the sum up to its step). The divisor adds up, over all starts, the time from entering
training to the last sign of life, a file's modification time, so that a kill hides nothing.
"""

import os
import time
from pathlib import Path

TOUCH_SECONDS = 0.5


class Starts:
    """The starts of one run, each a file in a directory: its name and content say when, its time until when."""

    def __init__(self, directory: Path) -> None:
        """Note that a start begins now."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._path = directory / f"{1 + self.count:04d}"
        self._path.write_text(repr(time.time()))
        self._touched = time.monotonic()

    def alive(self) -> None:
        """Note that this start still lives; cheap enough for every step."""
        now = time.monotonic()
        if now - self._touched >= TOUCH_SECONDS:
            os.utime(self._path)
            self._touched = now

    @property
    def count(self) -> int:
        """Starts so far, this one included."""
        return sum(1 for _ in self._directory.iterdir())

    def seconds(self) -> float:
        """Of all starts, up to now."""
        os.utime(self._path)
        return sum(_lasted(path) for path in self._directory.iterdir())


def _lasted(path: Path) -> float:
    try:
        return max(0.0, path.stat().st_mtime - float(path.read_text()))
    except ValueError:  # killed while it was written
        return 0.0
