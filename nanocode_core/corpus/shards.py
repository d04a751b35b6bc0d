"""Shards: a plan says which documents a training shard holds; writing it is work for any process."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanocode_core.corpus.tables import Cursor, write_documents

PLACE = np.dtype([("source", "<u2"), ("unit", "<u4"), ("row", "<u4"), ("characters", "<u4")])
"""One document of a plan; its first `characters` are taken."""


@dataclass(frozen=True)
class ShardPlan:
    """A training shard to write.

    Attributes:
        documents: of dtype PLACE, in the shard's order; rows of one unit ascend.
        files: (parquet file, text column) of every (source, unit) that occurs.
        sources: (name, content) by source number.
    """

    path: Path
    documents: NDArray[np.void]
    files: dict[tuple[int, int], tuple[Path, str]]
    sources: tuple[tuple[str, str], ...]


def write_shard(plan: ShardPlan) -> None:
    """Write a planned shard (columns text, source, content), unless it is there."""
    if not plan.path.exists():
        write_documents(plan.path, ("text", "source", "content"), _rows(plan))


def _rows(plan: ShardPlan) -> Iterator[tuple[str, str, str]]:
    # A source gives its units one after the other, so one open file a source is enough.
    cursors: dict[int, tuple[int, Cursor]] = {}
    for source, unit, row, characters in plan.documents.tolist():
        number, cursor = cursors.get(source, (-1, None))
        if cursor is None or number != unit:
            cursor = Cursor(*plan.files[source, unit], start=row)
            cursors[source] = (unit, cursor)
        yield (cursor.text(row)[:characters], *plan.sources[source])
