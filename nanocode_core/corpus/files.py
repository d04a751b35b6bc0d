"""Your own files: parquet or JSON lines, by globs, on this machine or behind a URL such as gs://.

A file is a unit, in sorted order. Local parquet files are read where they lie; others become a
parquet file in the work directory first. Documents keep the order of their file. Files on gs:// are
downloaded whole and verified before they are read: a stream that is cut short looks like one that ends.
"""

import glob
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from nanocode_core.config.model import FilesSource
from nanocode_core.corpus import tables
from nanocode_core.corpus.text import clean
from nanocode_core.corpus.units import ParquetUnit, Split, Unit
from nanocode_core.errors import UserError
from nanocode_core.store import Files

_CHUNK = 1 << 24
_PARQUET = (".parquet", ".pq")
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class LinesUnit:
    """A JSON-lines file; each line is an object with the text under the key `key`."""

    name: str
    split: Split
    url: str
    key: str
    column: str = "text"

    def path(self, folder: Path) -> Path:
        """The parquet file in the work directory."""
        return folder / f"{self.name}.parquet"

    def fetch(self) -> None:
        """Nothing: the lines are streamed when the parquet file is made."""

    def make(self, folder: Path) -> None:
        """Parse the lines.

        Raises:
            UserError: with file and line, where a line is no JSON object or has no such text.
        """
        if self.path(folder).exists():
            return
        # The ending keeps it out of the copy of this work that a remote store has.
        with _here(self.url, folder / f"{self.name}.lines.tmp") as place, _open(self.url, place) as file:
            tables.write_documents(self.path(folder), ("text",), _texts(file, self.url, self.key))


@dataclass(frozen=True)
class RemoteParquetUnit:
    """A parquet file behind a URL, copied into the work directory."""

    name: str
    column: str
    split: Split
    url: str

    def path(self, folder: Path) -> Path:
        """The copy in the work directory."""
        return folder / f"{self.name}.parquet"

    def fetch(self) -> None:
        """Nothing: the copy is made in the worker process."""

    def make(self, folder: Path) -> None:
        """Copy the file."""
        path = self.path(folder)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if _on_gs(self.url):
            _download(self.url, path)
            return
        partial = path.with_name(path.name + ".partial")
        with _open(self.url, self.url) as source, partial.open("wb") as target:
            for chunk in _reading(iter(lambda: source.read(_CHUNK), b""), self.url):
                target.write(chunk)
        tables.put(partial, path)


def units(source: FilesSource) -> list[Unit]:
    """One unit a file, in sorted order.

    Raises:
        UserError: a glob matches nothing, a file is empty or of an unknown kind.
    """
    found: list[Unit] = []
    for number, (path, size) in enumerate(_match(source)):
        name, split = f"file-{number:05d}", Split.HASHED if number else Split.HASHED_ONE
        if not size:
            raise UserError(f"corpus.sources: {path} is empty; remove it or fill it")
        if path.endswith(_LINES):
            found.append(LinesUnit(name, split, path, source.column))
        elif "://" in path:
            found.append(RemoteParquetUnit(name, source.column, split, path))
        else:
            found.append(ParquetUnit(name, source.column, split, Path(path)))
    return found


def identity(source: FilesSource) -> list[dict[str, Any]]:
    """Path, size and checksum of every file that matches: sha256 here, the server's own for a URL."""
    return [{"path": path, "size": size, "checksum": _checksum(path)} for path, size in _match(source)]


def _match(source: FilesSource) -> list[tuple[str, int]]:
    """(absolute path or URL, size in bytes) of the files that match, each once, sorted."""
    found: dict[str, int] = {}
    for pattern in source.paths:
        paths = _remote(pattern) if "://" in pattern else _local(pattern)
        if not paths:
            raise UserError(
                f"corpus.sources: no file matches {pattern!r}; correct the paths of source {source.name!r} (relative "
                f"ones start at {os.getcwd()})"
            )
        found |= paths
    for path in found:
        if not path.endswith((*_PARQUET, *_LINES)):
            known = ", ".join((*_PARQUET, *_LINES))
            raise UserError(f"corpus.sources: {path} is of no known kind; use files that end in {known}")
    return sorted(found.items())


def _local(pattern: str) -> dict[str, int]:
    paths = (os.path.abspath(path) for path in glob.glob(os.path.expanduser(pattern), recursive=True))
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}


def _remote(pattern: str) -> dict[str, int]:
    with _named(pattern):
        system, inside = fsspec.core.url_to_fs(pattern)
        matched = system.glob(inside, detail=True)
    return {system.unstrip_protocol(path): info["size"] for path, info in matched.items() if info.get("type") == "file"}


def _checksum(path: str) -> str:
    if "://" not in path:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with _named(path):
        system, inside = fsspec.core.url_to_fs(path)
        info = system.info(inside)
        return str(info.get("md5Hash") or info.get("crc32c") or system.ukey(inside))


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Raise what comes up inside as one line that names the file."""
    try:
        if _on_gs(url):
            bucket, _, path = url.partition("://")[2].partition("/")
            with Files(f"gs://{bucket}").guard("read", path, missing=True):
                yield
        else:
            yield
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(url, error) from error


def _on_gs(url: str) -> bool:
    return url.startswith(("gs://", "gcs://"))


def _download(url: str, target: Path) -> None:
    """Copy a file from gs://, verified by the server's checksum; it appears in one step."""
    root, _, name = url.rpartition("/")
    try:
        Files(root).download(name, target)
    except FileNotFoundError as error:
        raise _unreadable(url, error) from error


@contextmanager
def _here(url: str, copy: Path) -> Iterator[str]:
    """Where a file can be read: a copy for the while if it is on gs://, else itself."""
    if not _on_gs(url):
        yield url
        return
    try:
        _download(url, copy)
        yield str(copy)
    finally:
        copy.unlink(missing_ok=True)


def _open(url: str, place: str) -> IO[bytes]:
    """The file `url`, which can be read at `place`, decompressed by its ending."""
    try:
        file: IO[bytes] = fsspec.open(place, "rb", compression="gzip" if url.endswith(".gz") else None).open()
    except (OSError, ValueError) as error:
        raise _unreadable(url, error) from error
    return file


def _texts(file: IO[bytes], url: str, key: str) -> Iterator[tuple[str]]:
    for number, line in enumerate(_reading(file, url), 1):
        if not line.strip():
            continue
        place = f"{url}:{number}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{place}: not valid JSON ({error}); correct or remove the line") from None
        except RecursionError:
            raise UserError(f"{place}: nested too deeply; remove the line") from None
        if not isinstance(value, dict):
            raise UserError(f"{place}: a {type(value).__name__} instead of an object with the key {key!r}")
        if key not in value:
            known = ", ".join(map(repr, value)) or "nothing"
            raise UserError(f"{place}: no key {key!r}, the object has {known}; set `column` of the source")
        if not isinstance(value[key], str):
            raise UserError(f"{place}: {key!r} is a {type(value[key]).__name__}, not text; correct the line")
        yield (clean(value[key]),)


def _reading(chunks: Iterable[bytes], url: str) -> Iterator[bytes]:
    """The chunks; an error of the one who reads them, not of the one who uses them, names the file."""
    try:
        yield from chunks
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(f"corpus.sources: cannot read {url} ({reason}); check the file and your access to it")
