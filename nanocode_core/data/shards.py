"""One file of a `tokens` artifact, made from one parquet file of the corpus.

A file is written beside and moved into place, and its facts (counts) are written after that: where
the facts are, the file is whole. Which process makes it, with how many threads, changes no byte.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nanocode_core.data.packing import Tally, pack
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.tokenizer.documents import documents, texts

_ENCODE_CHARACTERS = 2_000_000
"""Characters that are encoded at once, shared out to the threads."""


@dataclass(frozen=True)
class Part:
    """One file to make: packed rows of `row` ids, or the flat stream of a validation source (`row` is None)."""

    source: Path
    tokenizer: Path
    row: int | None
    partial: Path
    target: Path
    facts: Path


@dataclass
class Counts:
    """What was encoded; `tokens` includes each document's <|bos|>, `bytes` is of the text in UTF-8."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


def make(part: Part) -> None:
    """Write the file of a part, then its facts: {"tally": of the packing, "sources": {name: counts}}."""
    tokenizer = _tokenizer(part.tokenizer)
    sources: dict[str, Counts] = {}
    tally = Tally()
    with part.partial.open("wb") as file:
        if part.row is None:
            name = part.source.stem
            stream = ((name, text) for text in texts(part.source))
            bos = np.array([tokenizer.bos], id_type(tokenizer.vocabulary)).tobytes()
            for ids in _encoded(stream, tokenizer, sources):
                file.write(bos + ids.tobytes())
        else:
            stream = ((document.source, document.text) for document in documents(part.source))
            for packed in pack(_encoded(stream, tokenizer, sources), part.row, tokenizer.bos, tally):
                file.write(packed.tobytes())
    os.replace(part.partial, part.target)
    facts = {"tally": asdict(tally), "sources": {name: asdict(counts) for name, counts in sources.items()}}
    temporary = part.facts.with_suffix(".partial")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(temporary, part.facts)


def read_facts(part: Part) -> dict[str, Any]:
    """The facts of a part that was made."""
    facts: dict[str, Any] = json.loads(part.facts.read_text(encoding="utf-8"))
    return facts


def id_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest little-endian type that holds every id."""
    return np.dtype("<u2" if vocabulary <= 65_536 else "<u4")


def _encoded(
    stream: Iterable[tuple[str, str]], tokenizer: Tokenizer, sources: dict[str, Counts]
) -> Iterator[np.ndarray]:
    """The ids of each (source, text), counted in `sources`."""
    dtype = id_type(tokenizer.vocabulary)
    for batch in _batches(stream):
        encoded = tokenizer.encode_batch([text for _, text in batch])
        for (source, text), ids in zip(batch, encoded, strict=True):
            counts = sources.setdefault(source, Counts())
            counts.documents += 1
            counts.tokens += len(ids) + 1
            counts.bytes += len(text.encode())
            yield np.array(ids, dtype)


def _batches(stream: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    characters = 0
    for item in stream:
        batch.append(item)
        characters += len(item[1])
        if characters >= _ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@cache
def _tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.load(file)
