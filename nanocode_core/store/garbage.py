"""Collecting garbage: the newest artifacts of each stage stay, with all they are made from.

Work in progress is somebody's saved hours: it goes only when its artifact is there already, or when
nobody has held or touched it for days. While anything is being built in the store nothing goes.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from nanocode_core.errors import UserError
from nanocode_core.store.leases import live_owner
from nanocode_core.store.local import rmtree
from nanocode_core.store.mirror import read_index
from nanocode_core.store.records import Record, is_name
from nanocode_core.store.store import Key, Store, lease_path, work_path

IDLE_SECONDS = 7 * 86_400.0
"""Work in progress that was not touched for so long is given up."""


@dataclass(frozen=True)
class Garbage:
    """What nobody needs.

    Attributes:
        artifacts: whole artifacts, dependents before what they are made from.
        work: work in progress, by stage and fingerprint.
        leftovers: folders of the store that belong to no artifact: of killed uploads and removals.
        size: bytes of the artifacts.
    """

    artifacts: tuple[Key, ...]
    work: tuple[Key, ...]
    leftovers: tuple[str, ...]
    size: int


def garbage(store: Store, keep: int = 1, idle: float = IDLE_SECONDS) -> Garbage:
    """What `sweep` would remove. A store being built in is judged as it is now.

    Args:
        keep: how many of the newest artifacts of each stage stay, with all they are made from.
        idle: seconds after which untouched work in progress is given up.

    Raises:
        UserError: a record can't be read, so that what it is made from is not known.
    """
    if keep < 0:
        raise UserError(f"keep must be 0 or more (got {keep})")
    records = {record.key: record for record in store.records()}
    newest: dict[str, list[Key]] = {}
    for key in reversed(records):
        newest.setdefault(key[0], []).append(key)
    kept = _closure(records, [key for keys in newest.values() for key in keys[:keep]])
    artifacts = tuple(key for key in reversed(records) if key not in kept)
    work = tuple(key for key in _work(store) if _given_up(store, key, key in records, idle))
    leftovers = tuple(sorted(_leftovers(store, records)))
    return Garbage(artifacts, work, leftovers, sum(records[key].size for key in artifacts))


def sweep(store: Store, keep: int = 1, idle: float = IDLE_SECONDS) -> Garbage:
    """Remove what `garbage` finds, and return it.

    Raises:
        UserError: something is being built in this store, which may need what is to go.
    """
    for stage, key in _work(store):
        owner = live_owner(store.files, lease_path(stage, key))
        if owner is not None:
            raise UserError(f"{stage}/{key} is being built by {owner}; run gc when that is done")
    found = garbage(store, keep, idle)
    for stage, key in found.artifacts:
        store.remove(stage, key)
    for stage, key in found.work:
        store.clear_work(stage, key)
        store.files.delete(lease_path(stage, key))
    for folder in found.leftovers:
        store.clear(folder)
    if store.files.directory is not None:
        with store.files.guard("delete", "trash"):
            rmtree(store.files.directory / "trash")
    return found


def _closure(records: Mapping[Key, Record], roots: Iterable[Key]) -> set[Key]:
    """The roots and all they are made from, directly or not."""
    reached: set[Key] = set()
    left = list(roots)
    while left:
        key = left.pop()
        if key not in reached and key in records:
            reached.add(key)
            left += [(ref.stage, ref.fingerprint) for ref in records[key].inputs.values()]
    return reached


def _work(store: Store) -> list[Key]:
    """All work in progress: local directories, and leases in the store."""
    paths = {*store.files.list("work"), *store.work_files.list("work")}
    found = {(parts[1], parts[2]) for path in paths if len(parts := path.split("/")) >= 4}
    found |= {(path.parent.name, path.name) for path in store.work_root.glob("*/*") if path.is_dir()}
    return sorted(key for key in found if is_name(key[0]) and is_name(key[1]))


def _given_up(store: Store, key: Key, published: bool, idle: float) -> bool:
    if live_owner(store.files, lease_path(*key)) is not None:
        return False
    return published or time.time() - _touched(store, key) > idle


def _touched(store: Store, key: Key) -> float:
    """When this work was last written to, here or in the store's copy; 0 where there is nothing of it."""
    path = store.work_root / key[0] / key[1]
    found = [0.0]
    if path.is_dir():
        for inner in (path, *path.rglob("*")):
            with suppress(FileNotFoundError):
                found.append(inner.stat().st_mtime)
    if store.files.directory is None:
        index, _ = read_index(store.work_files, work_path(*key))
        found += [entry.modified / 1e9 for entry in index.files.values()] if index else []
    return max(found)


def _leftovers(store: Store, records: Mapping[Key, Record]) -> set[str]:
    """Folders below artifacts/ without a record, or of a publishing that its record does not name."""
    found = set()
    for path in store.files.list("artifacts"):
        parts = path.split("/")
        if len(parts) < 4:
            continue
        record = records.get((parts[1], parts[2]))
        if record is None:
            found.add("/".join(parts[:3]))
        elif record.folder and len(parts) > 4 and parts[3] != record.folder:
            found.add("/".join(parts[:4]))
    return found
