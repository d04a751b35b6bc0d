"""The embedded source: the standard library and the packages of this interpreter.

Items (modules, documentation files, help topics) are listed by name, split by a hash of the name
into training and validation and put in a seeded order; a unit is a run of items. Code and prose
split by the same hash, so that a validation module's docstrings are in no training document.
"""

import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from pydoc_data.topics import topics

from nanocode_core.config.model import PythonSource
from nanocode_core.corpus import docstrings, tables
from nanocode_core.corpus.text import clean, rank
from nanocode_core.corpus.units import Split

_OWN = "nanocode"
_ITEMS = 64
"""Items in a unit."""
_VALIDATION = 0.02
_DOCUMENTATION = (".md", ".rst", ".txt")
_LICENSE = re.compile(r"(licen[cs]e|copying)", re.IGNORECASE)
_COPYRIGHT = re.compile(r"^.*\bcopyright\b.*\n?", re.IGNORECASE | re.MULTILINE)
_LISTS = ("SOURCES.txt", "top_level.txt", "entry_points.txt", "requires.txt", "dependency_links.txt")


@dataclass(frozen=True)
class Item:
    """Something to read: `name` is the same on every machine, `path` is where it lies here."""

    name: str
    path: str


@dataclass(frozen=True)
class PythonUnit:
    """A run of items, to be made into a parquet file of documents."""

    name: str
    split: Split
    content: str
    items: tuple[Item, ...]
    column: str = "text"

    def path(self, folder: Path) -> Path:
        """The parquet file in the work directory."""
        return folder / f"{self.name}.parquet"

    def fetch(self) -> None:
        """Nothing to fetch."""

    def make(self, folder: Path) -> None:
        """Read the items and write the documents they give."""
        path = self.path(folder)
        if not path.exists():
            texts = (_document(item, self.content) for item in self.items)
            tables.write_documents(path, ("text",), ((clean(text),) for text in texts if text is not None))


def distributions() -> list[tuple[str, str]]:
    """(name, version) of the packages that the source reads, sorted; nanocode itself is not one."""
    return sorted((name, package.version) for name, package in _packages().items())


def units(source: PythonSource, seed: int) -> list[PythonUnit]:
    """The source's units, validation ones first."""
    items = sorted(_items(source.content), key=lambda item: (rank(seed, source.name, item.name), item.name))
    held = [item for item in items if rank(seed, "validation", item.name) < _VALIDATION]
    train = [item for item in items if rank(seed, "validation", item.name) >= _VALIDATION]
    return [
        PythonUnit(f"{label}-{start // _ITEMS:05d}", split, source.content, tuple(some[start : start + _ITEMS]))
        for label, split, some in (("validation", Split.ALL, held), ("train", Split.NONE, train))
        for start in range(0, len(some), _ITEMS)
    ]


def _packages() -> dict[str, metadata.Distribution]:
    """The installed distributions by normalized name, the first of each on the path."""
    folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    found: dict[str, metadata.Distribution] = {}
    for package in metadata.distributions(path=list(folders)):
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        if name != _OWN:
            found.setdefault(name, package)
    return found


def _items(content: str) -> Iterator[Item]:
    """All items of a content, in no particular order; a file of two packages comes once."""
    seen: set[str] = set()
    for name, path in _files():
        if path not in seen and _wanted(PurePosixPath(name), content):
            seen.add(path)
            yield Item(name, path)
    if content == "prose":
        yield from (Item(f"topics/{topic}", "") for topic in topics)


@cache
def _files() -> tuple[tuple[str, str], ...]:
    """(name, path) of every file of the standard library and of the packages."""
    return tuple(_walk())


def _walk() -> Iterator[tuple[str, str]]:
    library = sysconfig.get_path("stdlib")
    for folder, folders, files in os.walk(library):
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages", "__pycache__")]
        inside = Path(folder).relative_to(library).as_posix()
        yield from ((f"python/{inside}/{file}".replace("/./", "/"), os.path.join(folder, file)) for file in files)
    for package, distribution in _packages().items():
        for file in distribution.files or []:
            if ".." not in file.parts and not file.is_absolute():
                yield f"{package}/{file.as_posix()}", str(distribution.locate_file(file))


def _wanted(name: PurePosixPath, content: str) -> bool:
    if content == "code":
        return name.suffix == ".py"
    if name.parent.name.endswith(".dist-info") and name.name == "METADATA":
        return True
    return name.suffix == ".py" or _is_license(name) or (name.suffix in _DOCUMENTATION and name.name not in _LISTS)


def _is_license(name: PurePosixPath) -> bool:
    return bool(_LICENSE.match(name.name)) and name.suffix in ("", *_DOCUMENTATION)


def _document(item: Item, content: str) -> str | None:
    """The document an item gives; None where it gives none worth training on."""
    name = PurePosixPath(item.name)
    if name.parts[0] == "topics" and not item.path:
        return topics[name.name]
    try:
        text = Path(item.path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    except FileNotFoundError:  # listed by its package, removed since (a slimmed image)
        return None
    if content == "code":
        return text if docstrings.is_code(text) else None
    if name.suffix == ".py":
        text = docstrings.docstrings(text, _module(name)) or ""
    elif name.name == "METADATA":
        text = text.partition("\n\n")[2]
    elif _is_license(name):
        # Without its copyright lines a licence is the same text everywhere, and is kept once.
        text = _COPYRIGHT.sub("", text)
    return text if docstrings.is_prose(text) else None


def _module(name: PurePosixPath) -> str:
    """The dotted name of a module file, "requests/requests/api.py" -> "requests.api"."""
    return ".".join(name.with_suffix("").parts[1:]).removesuffix(".__init__")
