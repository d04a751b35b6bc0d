"""Best-fit packing of documents into rows of equal length, without padding.

Every document starts with <|bos|>, and so does every row. A row is filled with the longest waiting
piece that fits, again and again; where none fits, the shortest one is cropped to fill it (nanochat's
scheme). One thing differs: a document longer than a row is first cut into pieces of one row each,
all behind a <|bos|>, where nanochat drops all but its start. Small corpora of long files would lose
most of their tokens that way.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

BUFFER = 1_000
"""Pieces of documents that wait to be packed, where there are as many."""


@dataclass
class Tally:
    """Where the tokens went: `packed` + `cropped` + `unfinished` is what came in, <|bos|> included."""

    documents: int = 0
    rows: int = 0
    packed: int = 0
    cropped: int = 0
    unfinished: int = 0


def pack(
    documents: Iterable[np.ndarray], row: int, bos: int, tally: Tally, buffer: int = BUFFER
) -> Iterator[np.ndarray]:
    """Rows of `row` ids from documents (ids without <|bos|>, of an unsigned type).

    The last row, which can't be filled, is left out and counted in `tally`. Memory: `buffer`
    pieces.
    """
    arrivals = _pieces(documents, row, bos, tally)
    waiting: dict[int, np.ndarray] = {}
    order: list[tuple[int, int]] = []  # (length, -serial), sorted: of equal lengths the first arrival comes last
    serial = 0
    while True:
        parts: list[np.ndarray] = []
        space = row
        while space:
            while len(waiting) < buffer and (piece := next(arrivals, None)) is not None:
                waiting[serial] = piece
                insort(order, (len(piece), -serial))
                serial += 1
            if not waiting:
                tally.unfinished += row - space
                return
            fitting = bisect_right(order, (space, 1))
            length, key = order.pop(max(0, fitting - 1))
            part = waiting.pop(-key)[:space]
            tally.cropped += length - len(part)
            parts.append(part)
            space -= len(part)
        tally.rows += 1
        tally.packed += row
        yield np.concatenate(parts)


def _pieces(documents: Iterable[np.ndarray], row: int, bos: int, tally: Tally) -> Iterator[np.ndarray]:
    """Documents behind <|bos|>, cut so that no piece is longer than a row."""
    for document in documents:
        tally.documents += 1
        for start in range(0, max(1, len(document)), row - 1):
            body = document[start : start + row - 1]
            yield np.concatenate([np.array([bos], dtype=document.dtype), body])
