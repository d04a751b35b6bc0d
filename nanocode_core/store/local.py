"""A store's files on a local directory.

A file comes to be by a rename within its directory, after its bytes are on the disk, so a kill or a
power cut leaves the old content or the new one. What has to be decided among processes (create,
compare-and-swap, publishing) is decided under one flock'd file, `.lock`, which the kernel frees
when its holder dies. flock works among the machines of one NFS server too, where that is set up.
A version is the sha256 of the content: contents that are swapped have to be unique (leases hold a
nonce and a counter).
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.errors import StorageError
from nanocode_core.store.parallel import HASHERS, side_by_side

Paths = list[str]


@dataclass(frozen=True)
class Content:
    """What a file holds, in short.

    Attributes:
        size: in bytes.
        kind: of the checksum: sha256, or crc32c (as Google Cloud Storage writes it, in base64).
    """

    size: int
    kind: str
    checksum: str


LOCK = ".lock"
LOCK_SECONDS = 60.0
"""How long to wait for the store's lock, which is held for milliseconds."""


class LocalDirectory:
    """Files below a local directory, which need not exist before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        """The content of a file."""
        return (self.root / path).read_bytes()

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The content of a file and its version."""
        data = self.read(path)
        return data, _version(data)

    def write(self, path: str, data: bytes) -> None:
        """Put a file, replacing what was there."""
        with replacing(self.root / path) as partial:
            partial.write_bytes(data)

    def create(self, path: str, data: bytes) -> bool:
        """Put a file unless there is one; whether this call put it."""
        return self.compare_and_swap(path, None, data) is not None

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory; unlike os.path.exists, an error is not a no."""
        try:
            os.stat(self.root / path)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Paths:
        """The paths of all files below a folder, sorted; files still being written are left out."""
        found = []
        for where, _, names in os.walk(self.root / folder, onerror=_raise_unless_missing):
            base = Path(where).relative_to(self.root).as_posix()
            found += [f"{base}/{name}" if base != "." else name for name in names if not is_partial(name)]
        if not folder and LOCK in found:
            found.remove(LOCK)
        return sorted(found)

    def names(self, folder: str) -> Paths:
        """The names in a folder, sorted; files still being written are left out."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not is_partial(name) and name != LOCK)
        except FileNotFoundError:
            return []

    def inventory(self, folder: str) -> dict[str, Content]:
        """Size and sha256 of every file below a folder, by its path relative to that."""
        paths = self.list(folder)
        contents = side_by_side(self._content, paths, HASHERS)
        return dict(zip((path[len(folder) + 1 :] for path in paths), contents, strict=True))

    def settle(self, folder: str) -> None:
        """Force all files below a folder, and its entries, to the disk."""
        for where, _, names in os.walk(self.root / folder):
            for name in names:
                sync(Path(where, name))
            sync(Path(where))
        sync((self.root / folder).parent)

    def clear(self, folder: str) -> None:
        """Delete a folder, or file, that may be absent."""
        path = self.root / folder
        path.unlink(missing_ok=True) if path.is_file() else rmtree(path)

    def delete(self, path: str) -> None:
        """Delete a file that may be absent."""
        (self.root / path).unlink(missing_ok=True)

    def upload(self, source: Path, path: str) -> None:
        """Put a copy of the file `source`."""
        with replacing(self.root / path) as partial:
            shutil.copyfile(source, partial)

    def download(self, path: str, target: Path) -> None:
        """Copy a file to `target`."""
        with replacing(target) as partial:
            shutil.copyfile(self.root / path, partial)

    def compare_and_swap(self, path: str, expected: str | None, data: bytes) -> str | None:
        """Put `data` if the file is at version `expected` (None: absent); the new version, or None."""
        target = self.root / path
        with self.lock():
            if self._current(path) != expected:
                return None
            try:
                with replacing(target, parents=expected is None) as partial:
                    partial.write_bytes(data)
            except FileNotFoundError:
                if expected is None:
                    raise
                return None  # the directory went away with the file
        return _version(data)

    def compare_and_delete(self, path: str, expected: str) -> bool:
        """Delete the file if it is at version `expected`, and its directory if that leaves it empty."""
        target = self.root / path
        if self._current(path) != expected:
            return False
        with self.lock():
            if self._current(path) != expected:
                return False
            target.unlink()
            with suppress_errno(errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                target.parent.rmdir()
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock; not reentrant."""
        self.root.mkdir(parents=True, exist_ok=True)
        name = self.root / LOCK
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            until = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StorageError(
                            f"store {self.root}: its lock {name} was held by another process for "
                            f"{LOCK_SECONDS:.0f} s; is one suspended? end that one and run again"
                        ) from None
                    time.sleep(0.005)
            try:
                yield
            finally:
                # Explicitly, since a child that was forked meanwhile shares this open file.
                fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            os.close(handle)

    def _content(self, path: str) -> Content:
        with (self.root / path).open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            return Content(file.tell(), "sha256", checksum)

    def _current(self, path: str) -> str | None:
        try:
            return self.read_versioned(path)[1]
        except FileNotFoundError:
            return None


@contextmanager
def replacing(target: Path, parents: bool = True) -> Iterator[Path]:
    """A private path beside `target` to write a file to; on success it becomes `target`, durably, in one step."""
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield partial
        sync(partial)
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


def is_partial(name: str) -> bool:
    """Whether a file name is one of those that `replacing` gives to files in the making."""
    return name.startswith(".") and name.endswith(".tmp")


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def suppress_errno(*numbers: int) -> Iterator[None]:
    """Go on after an OSError with one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def rmtree(path: Path) -> None:
    """Remove a directory tree that may be absent, or be removed or (a heartbeat's file) written to by others."""

    def check(function: Any, name: str, info: Any) -> None:
        if not isinstance(info[1], FileNotFoundError):
            raise info[1]

    for _ in range(10):
        with suppress_errno(errno.ENOTEMPTY, errno.EEXIST):
            shutil.rmtree(path, onerror=check)
            return
    shutil.rmtree(path, onerror=check)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
