"""Looking at a store: the data behind `nanocode artifacts ls` and `show`, and what a user's reference means.

Nothing is printed here, and nothing is changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanocode_core.errors import UserError
from nanocode_core.store.records import Record, canonical, is_name
from nanocode_core.store.store import Key, Store


@dataclass(frozen=True)
class Row:
    """One artifact in a listing.

    Attributes:
        created: Unix seconds, where recorded; minutes: of work, over all starts; size: bytes.
        problem: why the record can't be read; the other figures are empty then.
    """

    stage: str
    fingerprint: str
    created: float | None = None
    minutes: float | None = None
    size: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def rows(store: Store, stage: str | None = None) -> list[Row]:
    """All artifacts (of one stage), oldest first."""
    listing = []
    for (name, key), value in store.scan(stage).items():
        if isinstance(value, UserError):
            listing.append(Row(name, key, problem=str(value)))
            continue
        minutes = value.provenance.get("minutes")
        listing.append(Row(name, key, value.finished or None, minutes, value.size, value.metrics))
    return listing


@dataclass(frozen=True)
class Node:
    """An artifact and what it is made from.

    Attributes:
        name: under which the artifact above takes it.
        record: None where it is not in the store (any more) or can't be read; `problem` says which.
    """

    name: str
    stage: str
    fingerprint: str
    record: Record | None
    problem: str | None
    inputs: tuple["Node", ...]


def input_tree(store: Store, record: Record) -> Node:
    """The artifact with its inputs, their inputs, and so on."""
    known: dict[Key, Node] = {}

    def grow(name: str, stage: str, key: str, found: Record | None = None) -> Node:
        if (stage, key) not in known:
            problem = None
            try:
                found = found or store.record(stage, key)
                problem = None if found else "not in the store"
            except UserError as error:
                problem = str(error)
            refs = found.inputs if found else {}
            inputs = tuple(grow(n, ref.stage, ref.fingerprint) for n, ref in sorted(refs.items()))
            known[stage, key] = Node(name, stage, key, found, problem, inputs)
        node = known[stage, key]
        return node if node.name == name else Node(name, stage, key, node.record, node.problem, node.inputs)

    return grow(record.stage, record.stage, record.fingerprint, record)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""Stands in a difference for a field that one side does not have."""


def diff_config(record: Record, identity: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Why an artifact would not be reused: (field, value in the record, value in `identity`), sorted by field."""
    differences = []
    for name in sorted({*record.config, *identity}):
        old, new = record.config.get(name, ABSENT), identity.get(name, ABSENT)
        if old is ABSENT or new is ABSENT or canonical(old) != canonical(new):
            differences.append((name, old, new))
    return differences


def resolve_key(store: Store, reference: str) -> Key:
    """The artifact a user means: "dpo" (if it has one), "dpo/newest", "dpo/ab12" or "ab12" (beginnings).

    The record need not be readable, except for "newest": this is what `rm` and `verify` go by.

    Raises:
        UserError: nothing or more than one artifact fits; the message lists what there is.
    """
    stage, slash, start = reference.strip().rstrip("…").partition("/")
    keys = store.published()
    if not keys:
        raise UserError(f"no artifacts in {store.root}")
    stages = sorted({name for name, _ in keys})
    if not slash and stage not in stages:
        fits = [key for key in keys if key[1].startswith(stage)] if is_name(stage) else []
    elif stage not in stages:
        raise UserError(f"no {stage!r} artifacts in {store.root}; there are {', '.join(stages)}")
    elif start == "newest":
        record = store.newest(stage)
        fits = [record.key] if record else []
    else:
        fits = [key for key in keys if key[0] == stage and key[1].startswith(start)]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        raise UserError(f"no artifact {reference!r} in {store.root}; `nanocode artifacts ls` shows what there is")
    listed = ", ".join("/".join(key) for key in fits[:5]) + (", ..." if len(fits) > 5 else "")
    newest = f"; for the last one write {stage}/newest" if stage in stages else ""
    raise UserError(f"{reference!r} is ambiguous: {listed}{newest}")


def resolve(store: Store, reference: str) -> Record:
    """The record of the artifact a user means: as `resolve_key`, but a stage alone means its newest."""
    reference = reference.strip()
    if any(stage == reference for stage, _ in store.published()):
        reference += "/newest"
    stage, key = resolve_key(store, reference)
    record = store.record(stage, key)
    if record is None:
        raise UserError(f"artifact {stage}/{key} was removed just now; `nanocode artifacts ls` shows what there is")
    return record
