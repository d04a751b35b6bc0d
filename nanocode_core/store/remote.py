"""A store's files behind an fsspec URL: gs://bucket/prefix, or memory://name and the like.

An object appears whole or not at all, because every write here is one upload of known length; the
streamed `fs.open(url, "wb")`, which publishes a cut-off object when its `with` block raises, is not
used. On gs:// create-only and compare-and-swap are decided by the server (object generations). A
response may get lost after the write has landed and the retry then meets its own object, so a
conflict is read back: equal content is a success. What is read from gs:// is compared with the checksum
that the server keeps, and read again where it differs: the clients trust an answer that was cut short
on its way. Other filesystems have no compare-and-swap: there
a lock of this process stands in, which serves tests and single-process use.
"""

import base64
import hashlib
import io
import logging
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from nanocode_core.errors import StorageError
from nanocode_core.store.failures import AGAIN, CHOOSE
from nanocode_core.store.local import Content, Paths, replacing
from nanocode_core.store.parallel import side_by_side
from nanocode_core.store.principal import name_of

BLOCK_SIZE = 32 * 2**20
"""Bytes a request of a large upload; more than twice as fast as gcsfs's 5 MiB."""
RETRY_SECONDS = 30.0
"""Time limit for one compare-and-swap, retries included."""
TRIES = 5
"""How often an object, or a part of it, is read that arrives damaged."""
PART = 8 * 2**20
"""Bytes a request of a download; in one read each it costs a third of the CPU time of the client's own small ones."""

_process_lock = threading.RLock()


class RemoteFolder:
    """Files below an fsspec URL without compare-and-swap of its own."""

    def __init__(self, root: str) -> None:
        import fsspec

        self._fs, base = fsspec.core.url_to_fs(root, use_listings_cache=False)
        self._base: str = base.rstrip("/")

    def read(self, path: str) -> bytes:
        """The content of an object."""
        data: bytes = self._fs.cat_file(self._full(path))
        return data

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The content of an object and its version."""
        data = self.read(path)
        return data, hashlib.sha256(data).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        """Put an object, replacing what was there."""
        self._fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object unless there is one; whether it holds `data`, put by this call or a retry of it."""
        try:
            with _process_lock:
                self._fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            try:
                return self.read(path) == data
            except FileNotFoundError:
                return False
        return True

    def exists(self, path: str) -> bool:
        """Whether there is an object; asks for it rather than for fsspec's `exists`, which swallows errors."""
        try:
            self._fs.info(self._full(path))
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Paths:
        """The paths of all objects below a folder, sorted."""
        start = self._full(folder).rstrip("/") + "/"
        names: Paths = self._fs.find(start.rstrip("/"))
        return sorted(name[len(self._base) + 1 :] for name in names if name.startswith(start))

    def names(self, folder: str) -> Paths:
        """The first parts of the paths below a folder, sorted."""
        depth = len(folder.split("/")) if folder else 0
        return sorted({path.split("/")[depth] for path in self.list(folder)})

    def inventory(self, folder: str) -> dict[str, Content]:
        """Size and sha256 of every object below a folder, by its path relative to that."""
        contents = {path[len(folder) + 1 :]: self.read(path) for path in self.list(folder)}
        return {path: Content(len(data), "sha256", hashlib.sha256(data).hexdigest()) for path, data in contents.items()}

    def settle(self, folder: str) -> None:
        """Nothing: an upload that has returned is safe."""

    def clear(self, folder: str) -> None:
        """Delete all objects below a folder, and one of its name."""
        side_by_side(self.delete, [*self.list(folder), folder])

    def delete(self, path: str) -> None:
        """Delete an object that may be absent."""
        try:
            self._fs.rm_file(self._full(path))
        except FileNotFoundError:
            return

    def upload(self, source: Path, path: str) -> None:
        """Put a copy of the local file `source`."""
        self._fs.put_file(str(source), self._full(path))

    def download(self, path: str, target: Path) -> None:
        """Copy an object to the local file `target`."""
        with replacing(target) as partial:
            self._fs.get_file(self._full(path), str(partial))

    def compare_and_swap(self, path: str, expected: str | None, data: bytes) -> str | None:
        """Put `data` if the object is at version `expected` (None: absent); the new version, or None."""
        with _process_lock:
            if self._current(path) != expected:
                return None
            self.write(path, data)
            return self._current(path)

    def compare_and_delete(self, path: str, expected: str) -> bool:
        """Delete the object if it is at version `expected`."""
        with _process_lock:
            if self._current(path) != expected:
                return False
            self.delete(path)
            return True

    def require_bucket(self) -> None:
        """Nothing: only a bucket can be missing."""

    def principal(self) -> str:
        """Who we are there, for messages."""
        return "this process"

    def _current(self, path: str) -> str | None:
        try:
            return self.read_versioned(path)[1]
        except FileNotFoundError:
            return None

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base


class Bucket(RemoteFolder):
    """Files on Google Cloud Storage: gcsfs lists and uploads, google-cloud-storage reads and matches generations.

    The plain gcsfs class is taken on purpose: its extended one asks the storage-control API about the
    bucket first, which stalls for a minute against servers without that API. What FSSPEC_GCS_* and
    STORAGE_EMULATOR_HOST say holds for both clients.
    """

    def __init__(self, root: str) -> None:
        _set_other_clients()
        from gcsfs.core import GCSFileSystem

        # It logs a traceback for what it also raises; raised, it becomes one line.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self._fs: Any = GCSFileSystem(use_listings_cache=False, block_size=BLOCK_SIZE)
        self._base = root.partition("://")[2].strip("/")
        self._root = root
        self._lock = threading.Lock()
        self._opened: Any = None
        self._seen = False

    def read(self, path: str) -> bytes:
        """The content of an object."""
        return self.read_versioned(path)[0]

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The content of an object and its generation."""
        content = io.BytesIO()
        generation = self._receive(path, content)
        return content.getvalue(), generation

    def exists(self, path: str) -> bool:
        """Whether there is an object."""
        return self._blob(path) is not None

    def list(self, folder: str) -> Paths:
        """The paths of all objects below a folder, sorted."""
        found = super().list(folder)
        if not found:
            self.require_bucket()
        return found

    def inventory(self, folder: str) -> dict[str, Content]:
        """Size and crc32c of every object below a folder, as the server knows them."""
        start = self._full(folder) + "/"
        found = self._fs.find(start, detail=True)
        return {
            name[len(start) :]: Content(int(entry["size"]), "crc32c", str(entry["crc32c"]))
            for name, entry in sorted(found.items())
            if name.startswith(start)
        }

    def upload(self, source: Path, path: str) -> None:
        """Put a copy of the local file `source`, its md5 checked against the server's."""
        self._fs.put_file(str(source), self._full(path), consistency="md5", chunksize=BLOCK_SIZE)

    def download(self, path: str, target: Path) -> None:
        """Copy an object to the local file `target`."""
        with replacing(target) as partial, partial.open("w+b") as file:
            for _ in range(TRIES):
                blob = self._blob(path)
                if blob is None:
                    raise FileNotFoundError(path)
                expected = blob.crc32c  # what is downloaded may overwrite it
                if _download_parts(blob, blob.size, file) and _crc32c(file) == expected:
                    return
            raise self._damaged(path)  # in here: what came must not become `target`

    def compare_and_swap(self, path: str, expected: str | None, data: bytes) -> str | None:
        """Put `data` if the object is at generation `expected` (None: absent); the new one, or None."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._bucket().blob(self._name(path))
        try:
            blob.upload_from_string(data, if_generation_match=int(expected or 0), retry=_retry(), timeout=RETRY_SECONDS)
            return str(blob.generation)
        except PreconditionFailed:
            pass
        except NotFound:
            if expected is None:
                self.require_bucket()
                raise
        try:
            content, version = self.read_versioned(path)
        except FileNotFoundError:
            return None
        return version if content == data else None

    def compare_and_delete(self, path: str, expected: str) -> bool:
        """Delete the object if it is at generation `expected`."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            # Naming the generation too leaves no old version behind in a bucket that keeps versions.
            self._bucket().blob(self._name(path), generation=int(expected)).delete(
                if_generation_match=int(expected), retry=_retry(), timeout=RETRY_SECONDS
            )
        except (NotFound, PreconditionFailed):
            return False
        return True

    def principal(self) -> str:
        """The principal behind the credentials."""
        return name_of(getattr(self._fs.credentials, "credentials", None))

    def _blob(self, path: str) -> Any:
        """What the server knows of an object; None where it is not there, though the bucket is."""
        from google.api_core.exceptions import GoogleAPICallError

        try:
            blob = self._bucket().get_blob(self._name(path))
        except GoogleAPICallError as error:
            if error.code != 410:
                raise
            blob = None
        if blob is None:
            self.require_bucket()
        return blob

    def _receive(self, path: str, target: BinaryIO) -> str:
        """Write the content of an object to `target`, compared with the server's crc32c; returns its generation."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.storage.exceptions import DataCorruption

        for _ in range(TRIES):
            target.seek(0)
            target.truncate()
            blob = self._bucket().blob(self._name(path))
            try:
                blob.download_to_file(target)
                if blob.crc32c is None:  # not told with an answer that is the rest of one which broke off
                    blob.reload()
            except DataCorruption:
                continue
            except GoogleAPICallError as error:
                if error.code not in (404, 410):
                    raise
                if target.tell():  # it was replaced after its first bytes had come
                    continue
                self.require_bucket()
                raise FileNotFoundError(path) from None
            if _crc32c(target) == blob.crc32c:
                return str(blob.generation)
        raise self._damaged(path)

    def _damaged(self, path: str) -> StorageError:
        return StorageError(
            f"store {self._root}: {path} arrived damaged {TRIES} times in a row (its size or crc32c differs); see to "
            f"the network and {AGAIN}"
        )

    def _bucket(self) -> Any:
        with self._lock:
            if self._opened is None:
                from google.cloud import storage

                # Objects need no project, but the client wants a name for one.
                client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))
                self._opened = client.bucket(self._base.partition("/")[0])
            return self._opened

    def _name(self, path: str) -> str:
        return self._full(path).partition("/")[2]

    def require_bucket(self) -> None:
        """Raise where not the object but the bucket is missing: both answer 404."""
        from google.api_core.exceptions import NotFound

        if self._seen:
            return
        try:
            next(iter(self._bucket().list_blobs(max_results=1)), None)
        except NotFound:
            name = self._bucket().name
            text = f"store {self._root}: bucket {name} does not exist; create it, or {CHOOSE}"
            raise StorageError(text, lasting=True) from None
        self._seen = True


def _set_other_clients() -> None:
    """Make the clients that libraries open themselves (Orbax, through fsspec) behave as ours does.

    gcsfs reads the variable when it is imported: without it every operation may stall for a minute.
    """
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    for name in ("gcs", "gs"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def _download_parts(blob: Any, size: int, file: BinaryIO) -> bool:
    """Write one generation of an object to `file`; False where a part does not come whole, or the object is gone."""
    from google.api_core.exceptions import GoogleAPICallError

    file.truncate(0)
    for start in range(0, size, PART):
        end = min(start + PART, size)
        for _ in range(TRIES):
            file.seek(start)
            try:
                blob.download_to_file(file, start=start, end=end - 1, checksum=None, single_shot_download=True)
            except GoogleAPICallError as error:
                if error.code not in (404, 410):
                    raise
                return False
            if file.tell() == end:
                break
        else:
            return False
    return True


def _crc32c(file: BinaryIO) -> str:
    """The checksum of a file as Google Cloud Storage writes it."""
    from google_crc32c import Checksum

    checksum: Any = Checksum()  # type: ignore[no-untyped-call]
    file.seek(0)
    while chunk := file.read(2**20):
        checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS)
