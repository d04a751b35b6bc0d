"""The mixture: which documents, in which order. A pure function of the documents' digests and sizes.

Code and prose take turns so that every prefix has the code share, to within a document. Sources of
the same content take turns by the characters they gave so far; one that is used up drops out, and
the mixture ends when code or prose is used up, or at the number of characters asked for, at which
the last document is cut. A document whose digest was seen before, in any source, is passed over.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

CONTENTS = ("code", "prose")


class Document(NamedTuple):
    """A document by its place: row `row` of unit number `unit` of its source."""

    unit: int
    row: int
    digest: bytes
    characters: int
    bytes: int


class Pick(NamedTuple):
    """A document that was taken: the first `characters` of it, from source number `source`."""

    source: int
    document: Document
    characters: int


def distinct(documents: Iterable[Document], seen: set[bytes]) -> Iterator[Document]:
    """Those whose digest is not in `seen`, to which it is added when the document is taken."""
    for document in documents:
        if document.digest not in seen:
            seen.add(document.digest)
            yield document


def take(documents: Iterable[Document], characters: int, source: int = 0) -> Iterator[Pick]:
    """Documents up to `characters` in all; the last one is cut."""
    left = characters
    for document in documents:
        pick = Pick(source, document, min(left, document.characters))
        left -= pick.characters
        yield pick
        if not left:
            return


@dataclass
class Mixture:
    """Documents of several sources, mixed.

    Attributes:
        contents: "code" or "prose" of each source.
        code_share: share of code in the characters.
        limit: characters at most; None: until code or prose is used up.
        given: characters taken so far, by source.
        ended: the content that was used up, once the mixture has ended for that.
    """

    contents: tuple[str, ...]
    code_share: float
    limit: int | None
    given: dict[int, int] = field(default_factory=dict)
    ended: str | None = None

    def of(self, content: str) -> int:
        """Characters of code or of prose taken so far."""
        return sum(characters for source, characters in self.given.items() if self.contents[source] == content)

    def picks(self, sources: Iterable[Iterable[Document]], seen: set[bytes]) -> Iterator[Pick]:
        """Mix the documents of `sources`, one stream for each of `contents`."""
        streams = {number: distinct(documents, seen) for number, documents in enumerate(sources)}
        self.given = dict.fromkeys(streams, 0)
        total, code = 0, 0
        while self.limit is None or total < self.limit:
            content = "code" if self.code_share > 0 and code <= self.code_share * total else "prose"
            document = None
            while document is None:
                open_ones = [number for number in streams if self.contents[number] == content]
                if not open_ones:
                    self.ended = content
                    return
                source = min(open_ones, key=lambda number: (self.given[number], number))
                document = next(streams[source], None)
                if document is None:
                    del streams[source]
            left = document.characters if self.limit is None else self.limit - total
            characters = min(document.characters, left)
            self.given[source] += characters
            total += characters
            code += characters if content == "code" else 0
            yield Pick(source, document, characters)
