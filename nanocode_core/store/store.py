"""The store: artifacts, work in progress, leases, below one root that is a directory or a URL.

    artifacts/<stage>/<fingerprint>/artifact.json    the record; without it there is no artifact
    artifacts/<stage>/<fingerprint>/...              its files
    work/<stage>/<fingerprint>/                      saves of a job, and its lease.json
    trash/                                           directories on their way out (local)

A local artifact is published by one rename of a directory which holds the record already. On a
remote store the files go to a folder of this publishing alone, then the record, create-only, names
that folder. Either way a kill at any moment leaves no artifact or a whole one.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.config import Config
from nanocode_core.errors import CorruptArtifact, UserError
from nanocode_core.store.cache import Cache
from nanocode_core.store.files import Files
from nanocode_core.store.leases import Lease, acquire
from nanocode_core.store.local import rmtree, suppress_errno, sync
from nanocode_core.store.mirror import INDEX, Mirror
from nanocode_core.store.parallel import HASHERS, side_by_side
from nanocode_core.store.records import RECORD, FileEntry, InputRef, Record, digest, is_name, parse_record

Key = tuple[str, str]
"""Stage and fingerprint."""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files lie, verified, below the local directory `path`."""

    record: Record
    path: Path


class Store:
    """The artifacts below one root. Making a Store touches nothing.

    Args:
        root: a directory, or a URL such as gs://bucket/prefix.
        cache: local directory for a remote store's downloads and work directories; by default
            $NANOCODE_CACHE or ~/.cache/nanocode. A local store needs none.
        work: URL where a remote store keeps checkpoints and copies of work in progress (not the leases), for
            a bucket with other rules than the artifacts'; by default in the store.
        cache_bytes: what downloaded artifacts may take in the cache; None: half of the disk's free space.

    Attributes:
        files: the files below the root.
        work_files: those that work in progress is kept in.
    """

    def __init__(
        self, root: str, cache: Path | None = None, work: str | None = None, cache_bytes: int | None = None
    ) -> None:
        self.files = Files(root)
        self.root = self.files.root
        if work and self.files.directory is not None:
            raise UserError(f"run.work={work} is for a store on gs://; the work of {self.root} is kept in it: unset it")
        self.work_files = Files(work) if work else self.files
        default = os.environ.get("NANOCODE_CACHE") or "~/.cache/nanocode"
        self._cache = Path(os.path.abspath(Path(cache or default).expanduser()))
        self._downloads = Cache(self._cache / "artifacts", cache_bytes)
        self._opened: dict[Key, Artifact] = {}

    @classmethod
    def of(cls, config: Config) -> "Store":
        """The store of a run."""
        limit = config.run.cache_gib
        cache_bytes = None if limit is None else int(limit * 2**30)
        return cls(config.run.store, Path(config.run.cache), config.run.work, cache_bytes)

    # Looking things up

    def record(self, stage: str, fingerprint: str) -> Record | None:
        """The record of an artifact, or None where there is no such artifact.

        Raises:
            UserError: it was written by a newer version. CorruptArtifact: it is no valid record.
            StorageError: the store can't be read.
        """
        try:
            data = self.files.read(f"{_artifact(stage, fingerprint)}/{RECORD}")
        except FileNotFoundError:
            return None
        return parse_record(data, stage, fingerprint)

    def published(self, stage: str | None = None) -> list[Key]:
        """Stage and fingerprint of every artifact (of one stage), sorted; the records are not read."""
        found = (path.split("/") for path in self.files.list(f"artifacts/{_name(stage)}" if stage else "artifacts"))
        return [
            (parts[1], parts[2])
            for parts in found
            if len(parts) == 4 and parts[3] == RECORD and is_name(parts[1]) and is_name(parts[2])
        ]

    def scan(self, stage: str | None = None) -> dict[Key, Record | UserError]:
        """Every artifact (of one stage) with its record, or with what is wrong with that; oldest first."""

        def look(key: Key) -> Record | UserError | None:
            try:
                return self.record(*key)
            except UserError as error:
                return error

        keys = self.published(stage)
        found = {key: value for key, value in zip(keys, side_by_side(look, keys), strict=True) if value is not None}
        return dict(sorted(found.items(), key=lambda item: (_finished(item[1]), item[0])))

    def records(self, stage: str | None = None) -> list[Record]:
        """The records of all artifacts (of one stage), newest last; raises at one that can't be read."""
        records = []
        for value in self.scan(stage).values():
            if isinstance(value, UserError):
                raise value
            records.append(value)
        return records

    def newest(self, stage: str) -> Record | None:
        """The record of the stage's artifact that was finished last, if there is any."""
        records = self.records(stage)
        return records[-1] if records else None

    # Reading

    def open(self, stage: str, fingerprint: str) -> Artifact:
        """The artifact, with every file's size and sha256 verified, once per Store object.

        From a remote store it is downloaded to the cache, where it stays while this process lives; cached
        files that are damaged are fetched again. Files that the record does not name are ignored.

        Raises:
            UserError: there is no such artifact.
            CorruptArtifact: a file is missing or damaged; names it and the command that repairs.
            StorageError: the store can't be read, or the cache has no room.
        """
        key = (stage, fingerprint)
        if key not in self._opened:
            record = self.record(stage, fingerprint)
            if record is None:
                raise UserError(f"no artifact {stage}/{fingerprint} in {self.root}; run the pipeline to build it")
            local = self._local(record)
            with self.files.guard("read", _folder(record)):
                path, problems = self._fetch(record) if local is None else (local, _problems(local, record))
            if problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise CorruptArtifact(
                    f"artifact {stage}/{fingerprint}: {problems[0]}{more}; run `nanocode artifacts rm "
                    f"{stage}/{fingerprint}` and run again: only this stage is rebuilt"
                )
            self._opened[key] = Artifact(record, path)
        return self._opened[key]

    def verify(self, record: Record) -> list[str]:
        """What is wrong with the files of an artifact in the store itself: one text a file, none if all is well."""
        local = self._local(record)
        if local is not None:
            with self.files.guard("read", _folder(record)):
                return _problems(local, record)
        scratch = self._cache / "verify" / secrets.token_hex(8)

        def check(item: tuple[str, FileEntry]) -> str | None:
            name, entry = item
            target = scratch / hashlib.sha256(name.encode()).hexdigest()
            try:
                self.files.download(f"{_folder(record)}/{name}", target)
            except FileNotFoundError:
                return f"{name} is missing"
            problem = _problem(target, name, entry)
            target.unlink()
            return problem

        try:
            return [problem for problem in side_by_side(check, sorted(record.files.items())) if problem]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    # Building

    def work_dir(self, stage: str, fingerprint: str) -> Path:
        """The directory of this work in progress, made if need be; hold the lease to write there.

        For a remote store it is a local directory in the cache, of which the store keeps a copy (`mirror`).
        """
        path = self.work_root / _name(stage) / _name(fingerprint)
        with self.files.guard("write", f"work/{stage}/{fingerprint}"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def work_url(self, stage: str, fingerprint: str) -> str | None:
        """Where a remote store keeps this work in progress; None for a local store, whose `work_dir` it is."""
        return None if self.files.directory is not None else f"{self.work_files.root}/{work_path(stage, fingerprint)}"

    def mirror(self, stage: str, fingerprint: str, seconds: float, log: Callable[[str], None]) -> Mirror | None:
        """The copy that a remote store keeps of this work's local directory; None for a local store.

        Args:
            seconds: between two saves in the background.
            log: told when one of those fails.
        """
        if self.files.directory is not None:
            return None
        folder = work_path(stage, fingerprint)
        return Mirror(self.work_files, folder, self.work_dir(stage, fingerprint), seconds, log)

    def clear_work(self, stage: str, fingerprint: str) -> None:
        """Remove this work in progress, here and in the store, but for its lease; fine where there is none."""
        with self.files.guard("delete", work_path(stage, fingerprint)):
            rmtree(self.work_root / _name(stage) / _name(fingerprint))
        if self.files.directory is None:
            files, folder, lease = self.work_files, work_path(stage, fingerprint), lease_path(stage, fingerprint)
            files.delete(f"{folder}/{INDEX}")  # first: what a kill leaves is no copy any more
            side_by_side(files.delete, [path for path in files.list(folder) if path != lease])

    @property
    def work_root(self) -> Path:
        """The local directory of all work in progress."""
        if self.files.directory is not None:
            return self.files.directory / "work"
        return self._cache / "work" / hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def lease(
        self,
        stage: str,
        fingerprint: str,
        seconds: float,
        waiting: Callable[[str], None] = lambda owner: None,
        lost: Callable[[str], None] = lambda reason: None,
    ) -> Lease:
        """Take the lease of this work, waiting while another owner lives; a context manager.

        Args:
            seconds: after so long without a renewal others may take it over.
            waiting: called once, with the other owner in words, if there is one.
            lost: called in a thread, with the reason, when the lease is gone before its release. A
                lease file that went away after the work was published is no loss.
        """

        def is_published() -> bool:
            return self.files.exists(f"{_artifact(stage, fingerprint)}/{RECORD}")

        return acquire(self.files, lease_path(stage, fingerprint), seconds, waiting, lost, is_published)

    def publish(
        self,
        stage: str,
        version: int,
        fingerprint: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Record],
        out: Path,
        metrics: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Record:
        """Make the files below `out` the artifact stage/fingerprint; on a local store `out` is moved there.

        Where somebody else has published it meanwhile, theirs is kept and returned.

        Raises:
            ValueError, TypeError: `out` holds a symbolic link, or a metric has no JSON form.
            StorageError: the store can't be written.
        """
        there = self.record(stage, fingerprint)
        if there is not None:
            return there
        folder = "" if self.files.directory is not None else secrets.token_hex(8)
        with self.files.guard("read", f"work/{stage}/{fingerprint}/out"):
            files = _take_stock(out)
        record = Record(
            stage=stage,
            version=version,
            fingerprint=fingerprint,
            digest=digest(files),
            config=_json(config),
            inputs={n: InputRef(stage=r.stage, fingerprint=r.fingerprint, digest=r.digest) for n, r in inputs.items()},
            folder=folder,
            files=files,
            metrics=_json(metrics),
            provenance=_json(provenance),
        )
        data = record.to_json()
        if not (self._move_in(record, data, out) if self.files.directory else self._upload(record, data, out)):
            there = self.record(stage, fingerprint)
            if there is not None:
                return there
        return parse_record(data, stage, fingerprint)  # as any later reader will see it

    def _move_in(self, record: Record, data: bytes, out: Path) -> bool:
        """Publish on a local store: whether it was us."""
        directory = self.files.directory
        assert directory is not None
        path = _artifact(*record.key)
        target = directory / path
        with self.files.guard("write", path):
            # Into `out` first, so that one rename publishes files and record together.
            (out / RECORD).write_bytes(data)
            sync(out / RECORD)
            for inner, _, _ in os.walk(out):
                sync(Path(inner))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.files.lock():
                if (target / RECORD).exists():
                    return False
                trash = self._to_trash(target)
                os.rename(out, target)
            for folder in (target.parent, target.parent.parent, directory, out.parent):
                sync(folder)
            rmtree(trash)
        return True

    def _upload(self, record: Record, data: bytes, out: Path) -> bool:
        """Publish on a remote store: whether it was us."""
        folder = _folder(record)
        side_by_side(lambda name: self.files.upload(out / name, f"{folder}/{name}"), record.files)
        if self.files.create(f"{_artifact(*record.key)}/{RECORD}", data):
            return True
        self.clear(folder)
        return False

    # Clearing away

    def remove(self, stage: str, fingerprint: str) -> None:
        """Remove an artifact, its record first; fine where there is none."""
        self._opened.pop((stage, fingerprint), None)
        self.files.delete(f"{_artifact(stage, fingerprint)}/{RECORD}")
        self.clear(_artifact(stage, fingerprint))

    def clear(self, folder: str) -> None:
        """Remove all below a folder of the store; fine where it is not there."""
        directory = self.files.directory
        if directory is None:
            self.files.clear(folder)
            return
        with self.files.guard("delete", folder):
            if (directory / folder).exists():
                rmtree(self._to_trash(directory / folder))

    def _to_trash(self, target: Path) -> Path:
        """Move a directory, which may be absent, out of the way in one step; where it is then."""
        assert self.files.directory is not None
        trash = self.files.directory / "trash"
        trash.mkdir(exist_ok=True)
        place = trash / secrets.token_hex(8)
        with suppress_errno(errno.ENOENT):
            os.rename(target, place)
        return place

    def _local(self, record: Record) -> Path | None:
        directory = self.files.directory
        return directory / _folder(record) if directory is not None else None

    def _fetch(self, record: Record) -> tuple[Path, list[str]]:
        """Download what the cache lacks or has damaged; where the files lie, and what is wrong with them."""
        path = self._downloads.admit(record.stage, f"{record.fingerprint}-{record.digest[:16]}", record.size)

        def fetch(item: tuple[str, FileEntry]) -> str | None:
            name, entry = item
            if _problem(path / name, name, entry) is None:
                return None
            try:
                self.files.download(f"{_folder(record)}/{name}", path / name)
            except FileNotFoundError:
                return f"{name} is missing"
            return _problem(path / name, name, entry)

        return path, [problem for problem in side_by_side(fetch, sorted(record.files.items())) if problem]


def work_path(stage: str, fingerprint: str) -> str:
    """Where this work in progress lies, relative to the store's root."""
    return f"work/{_name(stage)}/{_name(fingerprint)}"


def lease_path(stage: str, fingerprint: str) -> str:
    """Where the lease of this work lies, relative to the store's root."""
    return f"{work_path(stage, fingerprint)}/lease.json"


def _artifact(stage: str, fingerprint: str) -> str:
    return f"artifacts/{_name(stage)}/{_name(fingerprint)}"


def _folder(record: Record) -> str:
    """Where the files of an artifact lie, relative to the store's root."""
    return f"{_artifact(*record.key)}/{record.folder}".rstrip("/")


def _name(text: str) -> str:
    if not is_name(text):
        raise UserError(f"{text!r} is no name of a stage or an artifact; see `nanocode artifacts ls`")
    return text


def _take_stock(out: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file below `out`, each forced to the disk. A record of an earlier try does not count."""
    paths = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link; an artifact holds files only")
        if path.is_file() and name != RECORD:
            paths[name] = path

    def take(path: Path) -> FileEntry:
        sync(path)
        return FileEntry(size=path.stat().st_size, sha256=_sha256(path))

    return dict(zip(paths, side_by_side(take, paths.values(), HASHERS), strict=True))


def _problems(path: Path, record: Record) -> list[str]:
    """What is wrong with the local files of an artifact."""
    found = side_by_side(lambda item: _problem(path / item[0], *item), sorted(record.files.items()), HASHERS)
    return [problem for problem in found if problem]


def _problem(path: Path, name: str, entry: FileEntry) -> str | None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            return f"{name} is missing"
        if size != entry.size:
            return f"{name} is damaged ({size} bytes instead of {entry.size})"
        return None if _sha256(path) == entry.sha256 else f"{name} is damaged (sha256 differs)"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as JSON would give it back; numpy's numbers become Python's."""

    def number(value: Any) -> Any:
        if not hasattr(value, "item"):
            raise TypeError(f"{value!r} has no JSON form")
        return value.item()

    result: dict[str, Any] = json.loads(json.dumps(dict(values), default=number))
    return result


def _finished(value: Record | UserError) -> float:
    return value.finished if isinstance(value, Record) else 0.0
