"""The documents of a corpus artifact, streamed in the order of its files.

train/shard_*.parquet          columns text, source, content ("code" or "prose")
validation/<source>.parquet    column text
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

Content = Literal["code", "prose"]
_BATCH = 256


@dataclass(frozen=True)
class Document:
    """One training document."""

    text: str
    source: str
    content: Content


def shards(corpus: Path) -> list[Path]:
    """The training shards of a corpus artifact, in order."""
    return sorted((corpus / "train").glob("shard_*.parquet"))


def documents(shard: Path) -> Iterator[Document]:
    """The documents of one training shard."""
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=["text", "source", "content"]):
            columns = (batch.column(name).to_pylist() for name in ("text", "source", "content"))
            for text, source, content in zip(*columns, strict=True):
                yield Document(text, source, content)


def contents(corpus: Path) -> set[str]:
    """Which kinds of content the training shards hold."""
    columns = (pq.read_table(shard, columns=["content"]).column("content") for shard in shards(corpus))
    return {content for column in columns for content in column.unique().to_pylist()}


def validation(corpus: Path) -> dict[str, Path]:
    """The validation file of each source, by the source's name."""
    return {file.stem: file for file in sorted((corpus / "validation").glob("*.parquet"))}


def texts(file: Path) -> Iterator[str]:
    """The texts of one validation file."""
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=_BATCH, columns=["text"]):
            yield from batch.column("text").to_pylist()
