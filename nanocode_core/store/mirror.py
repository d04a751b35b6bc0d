"""A copy of a local work directory in a remote store, so that another machine can go on from it.

    mirror.json       which files there are and which pieces each is made of; written last
    pieces/<id>       bytes that were new at one save; never changed

A save uploads what has changed: of a file that only grew, its new end. Then the index takes the old
one's place in one step, so that the copy is whole whenever a machine is lost: it is as of the last
save. A directory remembers which save it had last. If the store's is another, another machine has
worked on meanwhile, and the directory is made anew from the store.
"""

import hashlib
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from nanocode_core.errors import LeaseLost, StorageError
from nanocode_core.store.files import Files
from nanocode_core.store.local import is_partial, replacing, rmtree
from nanocode_core.store.parallel import side_by_side

INDEX = "mirror.json"
PIECES = "pieces"
MARK = ".mirror"
"""File in the local directory: the id of the save that it had last."""
FORMAT = 1
MOST_PIECES = 32
"""A file of more is uploaded whole again, so that it is read back in few requests."""
SHARE = 0.1
"""Of the time that saves may take: after a long one the next comes later."""
CHUNK = 2**20


@dataclass(frozen=True)
class Copied:
    """A file of the copy.

    Attributes:
        size: in bytes.
        modified: its time, Unix nanoseconds.
        pieces: ids and sizes of what it is made of, in order.
    """

    size: int
    sha256: str
    modified: int
    pieces: tuple[tuple[str, int], ...]


class Mirror:
    """The copy in `folder` of `files` of the local directory `local`; a context manager that saves now and then.

    Args:
        seconds: between two saves; None: only when `save` is called.
        log: told once when a save in the background fails; the next one tries again.
    """

    def __init__(
        self,
        files: Files,
        folder: str,
        local: Path,
        seconds: float | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self._files, self._folder, self._local = files, folder, local
        self._seconds, self._log = seconds, log
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._version: str | None = None
        self._known: dict[str, Copied] = {}
        self._thread: threading.Thread | None = None

    def restore(self) -> bool:
        """Bring the local directory to the last save, unless it has gone on from there itself; whether it was changed.

        Where the store's copy was removed the directory is emptied too.

        Raises:
            StorageError: the store can't be read, or a piece is missing or damaged.
        """
        index, self._version = read_index(self._files, self._folder)
        mark = self._local / MARK
        last = mark.read_text() if mark.exists() else None
        if index is None:
            if last is not None:
                rmtree(self._local)
            return last is not None
        self._known = index.files
        if last == index.save:
            return False
        rmtree(self._local)
        self._local.mkdir(parents=True)
        side_by_side(lambda item: self._bring(*item), index.files.items())
        self._write_mark(index.save)
        return True

    def save(self) -> None:
        """Copy what has changed since the last save; when it returns, all that was there at the call is safe.

        Raises:
            LeaseLost: somebody else has saved this work meanwhile.
            StorageError: the store can't be written.
        """
        with self._lock:
            before = self._known
            found = {path.relative_to(self._local).as_posix(): path for path in self._local.rglob("*")}
            names = [name for name, path in found.items() if _counts(path)]
            copied = side_by_side(lambda name: self._copy(name, before.get(name)), names)
            after = {name: entry for name, entry in zip(names, copied, strict=True) if entry is not None}
            if after == before:
                return
            save = secrets.token_hex(8)
            data = json.dumps({"format": FORMAT, "save": save, "files": {n: asdict(e) for n, e in after.items()}})
            version = self._files.compare_and_swap(f"{self._folder}/{INDEX}", self._version, data.encode())
            if version is None:
                raise LeaseLost(f"{self._folder} was saved by another process meanwhile")
            self._version, self._known = version, after
            self._write_mark(save)
            side_by_side(self._files.delete, [self._piece(id_) for id_ in _pieces(before) - _pieces(after)])

    def __enter__(self) -> "Mirror":
        """Begin to save now and then."""
        if self._seconds is not None:
            self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop that; a save that is under way ends first."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._seconds is not None
        pause, told = self._seconds, False
        while not self._end.wait(pause):
            begin = time.monotonic()
            try:
                self.save()
                told = False
            except StorageError as error:
                if not told:
                    self._log(f"the work in progress could not be copied to the store, trying again: {error}")
                told = True
            except LeaseLost:
                return  # the lease's own thread finds out
            pause = max(self._seconds, (time.monotonic() - begin) / SHARE)

    def _copy(self, name: str, old: Copied | None) -> Copied | None:
        """A file as it is now, its new bytes uploaded; None where it is gone."""
        path = self._local / name
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if old is not None and (stat.st_size, stat.st_mtime_ns) == (old.size, old.modified):
                    return old
                return self._upload(file, stat.st_size, stat.st_mtime_ns, old)
        except FileNotFoundError:
            return None

    def _upload(self, file: BinaryIO, size: int, modified: int, old: Copied | None) -> Copied:
        """The first `size` bytes of a file that may be growing; those that `old` has too are not uploaded again."""
        hasher = hashlib.sha256()
        kept: tuple[tuple[str, int], ...] = ()
        if old is not None and size >= old.size and len(old.pieces) < MOST_PIECES:
            _feed(file, old.size, hasher.update)
            if hasher.hexdigest() == old.sha256:
                kept = old.pieces
        if not kept:
            file.seek(0)
            hasher = hashlib.sha256()
        start = sum(length for _, length in kept)
        if start == size and kept:
            return Copied(size, hasher.hexdigest(), modified, kept)
        id_ = secrets.token_hex(8)
        with tempfile.NamedTemporaryFile(prefix="nanocode-piece-") as piece:

            def take(data: bytes) -> None:
                hasher.update(data)
                piece.write(data)

            length = _feed(file, size - start, take)
            piece.flush()
            self._files.upload(Path(piece.name), self._piece(id_))
        return Copied(start + length, hasher.hexdigest(), modified, (*kept, (id_, length)))

    def _bring(self, name: str, entry: Copied) -> None:
        """Make a file from its pieces."""
        target = self._local / name
        with replacing(target) as partial, partial.open("wb") as file:
            hasher = hashlib.sha256()

            def take(data: bytes) -> None:
                hasher.update(data)
                file.write(data)

            for id_, length in entry.pieces:
                with tempfile.TemporaryDirectory(prefix="nanocode-piece-") as scratch:
                    piece = Path(scratch, id_)
                    try:
                        self._files.download(self._piece(id_), piece)
                    except FileNotFoundError:
                        raise self._damaged(name, f"its piece {id_} is missing") from None
                    with piece.open("rb") as source:
                        if _feed(source, length, take) != length:
                            raise self._damaged(name, f"its piece {id_} is cut short")
            if hasher.hexdigest() != entry.sha256:
                raise self._damaged(name, "its sha256 differs")
        os.utime(target, ns=(entry.modified, entry.modified))

    def _damaged(self, name: str, what: str) -> StorageError:
        place = f"{self._files.root}/{self._folder}"
        return StorageError(f"the saved work in {place} is damaged: {name}: {what}; remove {place} to begin it anew")

    def _piece(self, id_: str) -> str:
        return f"{self._folder}/{PIECES}/{id_}"

    def _write_mark(self, save: str) -> None:
        with replacing(self._local / MARK) as partial:
            partial.write_text(save)


@dataclass(frozen=True)
class Index:
    """What a copy holds: the id of its save, and its files by their path in the directory."""

    save: str
    files: dict[str, Copied]


def read_index(files: Files, folder: str) -> tuple[Index | None, str | None]:
    """The index of the copy in a folder, and its version; nothing where there is none.

    Raises:
        StorageError: it can't be read, or is no index.
    """
    try:
        data, version = files.read_versioned(f"{folder}/{INDEX}")
    except FileNotFoundError:
        return None, None
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise ValueError("another format")
        entries = {
            name: Copied(**entry | {"pieces": tuple((id_, length) for id_, length in entry["pieces"])})
            for name, entry in value["files"].items()
        }
        return Index(value["save"], entries), version
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{files.root}/{folder}/{INDEX} is no index of saved work ({type(error).__name__}); remove "
            f"{files.root}/{folder} to begin that work anew"
        ) from None


def _pieces(files: dict[str, Copied]) -> set[str]:
    return {id_ for entry in files.values() for id_, _ in entry.pieces}


def _counts(path: Path) -> bool:
    """Whether a path is a file that is copied: none that is being written."""
    return path.name != MARK and not is_partial(path.name) and not path.name.endswith(".tmp") and path.is_file()


def _feed(file: BinaryIO, length: int, take: Callable[[bytes], Any]) -> int:
    """Give up to `length` bytes of a file to `take`, in chunks; how many there were."""
    done = 0
    while done < length and (chunk := file.read(min(CHUNK, length - done))):
        take(chunk)
        done += len(chunk)
    return done
