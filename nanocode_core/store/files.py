"""Files below one root: a local directory or an fsspec URL such as gs://bucket/prefix, by the same calls.

Paths are relative to the root and use "/". A file is visible whole or not at all, whatever happens to
its writer. FileNotFoundError means that a file is not there, and nothing else does: every other
failure is a StorageError with one line that names the path and the remedy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nanocode_core.errors import StorageError, UserError
from nanocode_core.store.failures import storage_error
from nanocode_core.store.local import Content, LocalDirectory, Paths

if TYPE_CHECKING:
    from nanocode_core.store.remote import RemoteFolder

_BUGS = (TypeError, AttributeError, NameError, AssertionError)


class Files:
    """The files below `root`. Making one touches nothing.

    Attributes:
        root: an absolute local path, or the URL as given without a trailing "/".
        directory: the local directory, or None for a URL.
    """

    def __init__(self, root: str) -> None:
        protocol, separator, rest = root.partition("://")
        if separator and protocol != "file":
            self.root = root.rstrip("/")
            self.directory: Path | None = None
            self._backend: LocalDirectory | RemoteFolder
            with self.guard("open", ""):
                self._backend = _remote(self.root)
        else:
            self.directory = Path(os.path.abspath(os.path.expanduser(rest if separator else root)))
            self.root = str(self.directory)
            self._backend = LocalDirectory(self.directory)

    def read(self, path: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        with self.guard("read", _clean(path), missing=True):
            return self._backend.read(path)

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The content of a file and its version, for `compare_and_swap`; FileNotFoundError where there is none."""
        with self.guard("read", _clean(path), missing=True):
            return self._backend.read_versioned(path)

    def write(self, path: str, data: bytes) -> None:
        """Put a file, replacing what was there."""
        with self.guard("write", _clean(path)):
            self._backend.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Put a file unless there is one, and tell whether this call did. Give `data` that no one else writes."""
        with self.guard("write", _clean(path)):
            return self._backend.create(path, data)

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        with self.guard("read", _clean(path)):
            return self._backend.exists(path)

    def list(self, folder: str = "") -> Paths:
        """The paths (relative to the root) of all files below a folder, sorted; none where it is not there."""
        with self.guard("list", _clean(folder) if folder else ""):
            return self._backend.list(folder)

    def names(self, folder: str = "") -> Paths:
        """The names of the files and folders in a folder, sorted; none where it is not there."""
        with self.guard("list", _clean(folder) if folder else ""):
            return self._backend.names(folder)

    def inventory(self, folder: str) -> dict[str, Content]:
        """Size and checksum of every file below a folder, by its path relative to that.

        On a local directory the files are read, with sha256; on gs:// the server tells its crc32c.
        """
        with self.guard("read", _clean(folder)):
            return self._backend.inventory(folder)

    def settle(self, folder: str) -> None:
        """Force to the disk what others have written below a folder; on a URL it is safe already."""
        with self.guard("write", _clean(folder)):
            self._backend.settle(folder)

    def delete(self, path: str) -> None:
        """Delete a file; fine where there is none."""
        with self.guard("delete", _clean(path)):
            self._backend.delete(path)

    def clear(self, folder: str) -> None:
        """Delete a folder, or a file, with all below; fine where it is not there."""
        with self.guard("delete", _clean(folder)):
            self._backend.clear(folder)

    def upload(self, source: Path, path: str) -> None:
        """Put a copy of the local file `source`."""
        with self.guard("write", _clean(path)):
            self._backend.upload(source, path)

    def download(self, path: str, target: Path) -> None:
        """Copy a file to the local `target`, which appears in one step; FileNotFoundError where there is none."""
        with self.guard("read", _clean(path), missing=True):
            self._backend.download(path, target)

    def compare_and_swap(self, path: str, expected: str | None, data: bytes) -> str | None:
        """Put `data` if the file is still at version `expected` (None: if there is none).

        Returns:
            The new version, or None where the file is at another version. Give `data` that no one
            else writes: on gs:// equal content counts as ours, since a response may have got lost.
        """
        with self.guard("write", _clean(path)):
            return self._backend.compare_and_swap(path, expected, data)

    def compare_and_delete(self, path: str, expected: str) -> bool:
        """Delete the file if it is still at version `expected`; whether this call did.

        On gs:// also False where it did and the answer got lost, so that the next try found nothing.
        """
        with self.guard("delete", _clean(path)):
            return self._backend.compare_and_delete(path, expected)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of a local store: short decisions only. Not reentrant, not for URLs."""
        assert isinstance(self._backend, LocalDirectory)
        with self._backend.lock():
            yield

    @contextmanager
    def guard(self, doing: str, path: str, missing: bool = False) -> Iterator[None]:
        """Raise what storage raises inside as StorageError; with `missing`, let FileNotFoundError through."""
        try:
            yield
        except (StorageError, UserError):
            raise
        except FileNotFoundError as error:
            if missing:
                raise FileNotFoundError(f"{path} is not in {self.root}") from None
            raise self._failure(error, path, doing) from error
        except OSError as error:
            raise self._failure(error, path, doing) from error
        except Exception as error:
            if self.directory is not None or isinstance(error, _BUGS):
                raise
            raise self._failure(error, path, doing) from error

    def _failure(self, error: Exception, path: str, doing: str) -> StorageError:
        if isinstance(self._backend, LocalDirectory):
            return storage_error(error, self.root, path, doing)
        if isinstance(error, FileNotFoundError):
            try:
                self._backend.require_bucket()
            except StorageError as missing:
                return missing
        return storage_error(error, self.root, path, doing, self._backend.principal())


def _remote(root: str) -> "RemoteFolder":
    # Imported here: a run on a local store needs no cloud clients, which take a second to import.
    from nanocode_core.store import remote

    if root.partition("://")[0] in ("gs", "gcs"):
        return remote.Bucket(root)
    from fsspec import available_protocols

    if root.partition("://")[0] not in available_protocols():
        raise UserError(f"run.store={root}: unknown kind of storage; give a directory or gs://bucket/prefix")
    return remote.RemoteFolder(root)


def _clean(path: str) -> str:
    """`path`, if it stays below the root."""
    if not is_relative(path):
        raise ValueError(f"{path!r} is not a relative path inside a store")
    return path


def is_relative(path: str) -> bool:
    """Whether `path` is relative, normal and stays below its root on every system."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not any(c in path for c in "\\\0")
