"""Units: a source cut into parquet files of documents, and the index of each.

A unit is a small picklable value. The build process fetches it (network only), a worker process
makes its parquet file, where there is none yet, and writes its index: digest, size and split of
every row. Both survive a kill, as files under the unit's name; making them again gives the same.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanocode_core.corpus import tables
from nanocode_core.corpus.text import digest, rank

VALIDATION_SHARE = 0.01
"""Share of the documents that a source without a validation file of its own sets aside."""

TRAIN, VALIDATION, EMPTY = 0, 1, 2
INDEX = np.dtype([("digest", "V16"), ("characters", "<u4"), ("bytes", "<u4"), ("part", "u1")])
"""One row a document: `part` is TRAIN, VALIDATION or EMPTY (no text: in neither)."""

Index = NDArray[np.void]


class Split(Enum):
    """Which documents of a unit are for validation."""

    NONE = "none"
    ALL = "all"
    HASHED = "hashed"
    """Those whose hash falls in the first hundredth."""
    HASHED_ONE = "hashed, at least one"
    """As HASHED, and the document with the smallest hash in any case."""


class Unit(Protocol):
    """One parquet file of a source. `name` is unique within the source and fit for a file name."""

    @property
    def name(self) -> str:
        """Name within the source."""

    @property
    def column(self) -> str:
        """The text column of the parquet file."""

    @property
    def split(self) -> Split:
        """Which of its documents are for validation."""

    def path(self, folder: Path) -> Path:
        """Where its parquet file is or will be; `folder` is the source's own in the work directory."""

    def fetch(self) -> None:
        """Bring what it needs onto this machine; called in a thread of the build process."""

    def make(self, folder: Path) -> None:
        """Make the parquet file, unless it is there; called in a worker process."""


@dataclass(frozen=True)
class ParquetUnit:
    """A parquet file that is there already."""

    name: str
    column: str
    split: Split
    file: Path

    def path(self, folder: Path) -> Path:
        """The file itself, wherever it lies."""
        return self.file

    def fetch(self) -> None:
        """Nothing to fetch."""

    def make(self, folder: Path) -> None:
        """Nothing to make."""


def prepare(unit: Unit, folder: Path, seed: int) -> Path:
    """Make the parquet file and the index of a fetched unit; returns the path of the index."""
    path = folder / f"{unit.name}.npy"
    if not path.exists():
        unit.make(folder)
        index = index_of(unit.path(folder), unit.column, unit.split, seed)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, index, allow_pickle=False)
        tables.put(partial, path)
    return path


def index_of(path: Path, column: str, split: Split, seed: int) -> Index:
    """The index of a parquet file, one row a document."""
    rows: list[tuple[Any, ...]] = []
    smallest: tuple[float, int] | None = None
    for first, texts in tables.read_texts(path, column):
        for number, text in enumerate(texts, first):
            if text is None or not text.strip():
                rows.append((bytes(16), 0, 0, EMPTY))
                continue
            key = digest(text)
            part = TRAIN
            if split is Split.ALL:
                part = VALIDATION
            elif split is not Split.NONE:
                place = rank(seed, "split", key)
                part = VALIDATION if place < VALIDATION_SHARE else TRAIN
                smallest = min(smallest or (place, number), (place, number))
            rows.append((key, len(text), len(text.encode()), part))
    index = np.array(rows, INDEX)
    if split is Split.HASHED_ONE and smallest:
        index["part"][smallest[1]] = VALIDATION
    return index
