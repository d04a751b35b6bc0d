"""Resumable computation in pieces: each finished piece is one JSON line of a file.

The pieces have a fixed order and each depends on nothing but itself, so a start after a kill takes
the lines that are there and computes the rest, with the same outcome. A line that a kill cut short
does not count.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def resumed(path: Path, pieces: Sequence[T], compute: Callable[[T], Any]) -> Iterator[Any]:
    """The JSON values of all pieces in order, those on file read and the others computed and saved.

    What is yielded went through JSON in either case.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = whole_lines(path)[: len(pieces)]
    yield from (json.loads(line) for line in lines)
    if len(lines) == len(pieces):
        return
    with path.open("ab") as file:
        file.truncate(sum(len(line) for line in lines))
        for piece in pieces[len(lines) :]:
            line = json.dumps(compute(piece)).encode() + b"\n"
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            yield json.loads(line)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file up to its last line end; none where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
