"""The local cache of a remote store's artifacts: bounded, safe among the processes of this machine.

    <directory>/.lock                       held while it is decided what comes and what goes
    <directory>/<stage>/<entry>.lock        held by each process that uses the entry; its text is the entry's size in
                                            bytes, its time the last use
    <directory>/<stage>/<entry>/...         the files

Locks are flock's, which the kernel frees when a process ends, however that happens. An entry counts
with its full size from the moment it is admitted. What has not been used for longest goes first, and
nothing that a live process uses. Whoever reads an entry verifies its files, so that one in the making,
or one that a kill has left half removed, is taken for nothing more than it is.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nanocode_core.errors import StorageError
from nanocode_core.store.failures import AGAIN
from nanocode_core.store.local import rmtree

LOCK = ".lock"
SHARE = 0.5
"""Without a limit given: of what is free on the disk, together with what the cache holds already."""

_held: dict[Path, int] = {}
"""Open lock files of the entries that this process uses. They stay to its end: others may have mapped the files."""


@dataclass(frozen=True)
class Entry:
    """An artifact in the cache.

    Attributes:
        size: bytes of all its files, whether they are there yet or not.
        used: when it was used last, Unix nanoseconds.
    """

    path: Path
    size: int
    used: int


class Cache:
    """The entries below a directory, which need not exist.

    Args:
        limit: bytes that all entries may have together; None: SHARE of the disk.
    """

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        self.directory = directory
        self._limit = limit
        self._trash = directory.with_name(f"{directory.name}.trash")

    def admit(self, stage: str, name: str, size: int) -> Path:
        """The directory for an entry of `size` bytes, which stays while this process lives; others go to make room.

        Raises:
            StorageError: there is no room for it, even without what is not in use.
        """
        path = self.directory / stage / name
        if path in _held:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            handle = os.open(_lock(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                self._make_room(path, size)
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(size).encode(), 0)
                path.mkdir(exist_ok=True)
            except BaseException:
                os.close(handle)
                if not path.exists():
                    _lock(path).unlink(missing_ok=True)
                raise
            os.utime(handle)
            _held[path] = handle
        return path

    def entries(self) -> list[Entry]:
        """All entries, those that were used last at the end."""
        found = []
        for lock in self.directory.glob(f"*/*{LOCK}"):
            with suppress(FileNotFoundError, ValueError):
                size = int(lock.read_text() or 0)
                found.append(Entry(lock.with_name(lock.name.removesuffix(LOCK)), size, lock.stat().st_mtime_ns))
        return sorted(found, key=lambda entry: (entry.used, entry.path))

    def _make_room(self, path: Path, size: int) -> None:
        """Remove what was not used for longest until `size` bytes fit at `path`."""
        rmtree(self._trash)  # of one that was killed
        others = [entry for entry in self._adopted() if entry.path != path]
        there = _stored(path)
        total, free = sum(entry.size for entry in others), shutil.disk_usage(self.directory).free
        limit = self._limit
        if limit is None:
            limit = int(SHARE * (free + there + sum(_stored(entry.path) for entry in others)))
        # An entry that is being filled by another process takes room that the disk does not know of yet.
        coming = sum(max(0, entry.size - _stored(entry.path)) for entry in others)
        for entry in others:
            if total + size <= limit and size - there <= free - coming:
                return
            stored = _stored(entry.path)
            if _remove(entry.path, self._trash):
                total, free, coming = total - entry.size, free + stored, coming - max(0, entry.size - stored)
        if total + size > limit:
            used = f", of which {_gib(total)} are in use" if total else ""
            raise StorageError(
                f"the cache {self.directory} has no room for {path.parent.name}/{path.name}: {_gib(size)}, and it may "
                f"hold {_gib(limit)}{used}; raise run.cache_gib, or choose another disk with --set run.cache=...",
                lasting=True,
            )
        if size - there > free - coming:
            raise StorageError(
                f"the disk is full: {path.parent.name}/{path.name} needs {_gib(size - there)} in the cache "
                f"{self.directory}, and {_gib(max(0, free - coming))} are free; free some space and {AGAIN}, or choose "
                "another disk with --set run.cache=...",
                lasting=True,
            )

    def _adopted(self) -> list[Entry]:
        """All entries, among them those of versions that wrote no lock files."""
        for path in self.directory.glob("*/*"):
            if path.is_dir() and not _lock(path).exists():
                _lock(path).write_text(str(_stored(path)))
                os.utime(_lock(path), (path.stat().st_mtime,) * 2)
        return self.entries()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the whole cache."""
        with (self.directory / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _remove(path: Path, trash: Path) -> bool:
    """Remove an entry unless a process uses it; whether it is gone."""
    handle = os.open(_lock(path), os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        trash.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(path, trash / secrets.token_hex(8))
        _lock(path).unlink(missing_ok=True)
        rmtree(trash)
        return True
    finally:
        os.close(handle)


def _lock(path: Path) -> Path:
    return path.with_name(path.name + LOCK)


def _stored(path: Path) -> int:
    """Bytes of the files below a directory, which may be absent or change meanwhile."""
    total = 0
    for where, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
