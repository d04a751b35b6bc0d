"""Why an artifact would not be reused under a config: its record against what the config asks for.

The comparison goes from the artifact to its inputs, since a change in the corpus, say, is the whole
reason why a model is built anew. A stage that several paths lead to is reported once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanocode_core.config import Config
from nanocode_core.errors import UserError
from nanocode_core.jobs.stage import Planned, Stage, plan
from nanocode_core.store import Record, Store
from nanocode_core.store.records import canonical
from nanocode_core.store.tree import ABSENT, diff_config


@dataclass(frozen=True)
class Change:
    """A field whose value in the record is not what the config says; ABSENT where there is none."""

    name: str
    was: Any
    now: Any


@dataclass(frozen=True)
class Difference:
    """Why one stage's fingerprint differs: its own changes, and those of its inputs.

    Attributes:
        was, now: fingerprints; `was` is None for an input that the record doesn't have.
        known: False where the store no longer holds the record of `was`, so `changes` can't be told.
        again: True where the same difference was reported above.
    """

    stage: str
    was: str | None
    now: str | None
    changes: tuple[Change, ...] = ()
    inputs: tuple["Difference", ...] = ()
    known: bool = True
    again: bool = False


def compare(record: Record, stages: Sequence[Stage], config: Config, store: Store) -> Difference | None:
    """What keeps `record` from being reused under `config`; None where it would be.

    Raises:
        UserError: no such stage in this version, or what decides an identity can't be had.
        StorageError: the store can't be read.
    """
    planned = plan(_up_to(record.stage, stages), config, store)
    if planned[record.stage].fingerprint == record.fingerprint:
        return None
    return _difference(record.stage, record.fingerprint, record, planned, store, set())


def _up_to(name: str, stages: Sequence[Stage]) -> list[Stage]:
    """The stage and all that it is made from, in order."""
    by_name = {stage.name: stage for stage in stages}
    if name not in by_name:
        raise UserError(f"this version has no stage {name!r}; its stages are {', '.join(by_name)}")
    wanted, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current not in wanted:
            wanted.add(current)
            queue += by_name[current].inputs
    return [stage for stage in stages if stage.name in wanted]


def _difference(
    name: str, was: str, record: Record | None, planned: Mapping[str, Planned], store: Store, seen: set[str]
) -> Difference:
    now = planned[name]
    if name in seen:
        return Difference(name, was, now.fingerprint, again=True)
    seen.add(name)
    if record is None:
        return Difference(name, was, now.fingerprint, known=False)
    changes = []
    if record.version != now.stage.version:
        changes.append(Change("stage version", record.version, now.stage.version))
    changes += [change for field in diff_config(record, now.identity) for change in _parts(*field)]
    inputs = []
    for other in dict.fromkeys([*now.inputs, *record.inputs]):
        before = record.inputs.get(other)
        after = now.inputs.get(other)
        if before is None or after is None:
            inputs.append(Difference(other, before.fingerprint if before else None, after))
        elif before.fingerprint != after:
            old = store.record(before.stage, before.fingerprint)
            inputs.append(_difference(other, before.fingerprint, old, planned, store, seen))
    return Difference(name, was, now.fingerprint, tuple(changes), tuple(inputs))


def _parts(name: str, was: Any, now: Any) -> Iterable[Change]:
    """A changed field, taken apart where it holds sections: `corpus.sources[1].shards`."""
    before, after = dict(_leaves(name, was)), dict(_leaves(name, now))
    for leaf in dict.fromkeys([*before, *after]):
        old, new = before.get(leaf, ABSENT), after.get(leaf, ABSENT)
        if old is ABSENT or new is ABSENT or canonical(old) != canonical(new):
            yield Change(leaf, old, new)


def _leaves(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Single values with their names: sections and lists of sections are taken apart."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple) and value and all(isinstance(inner, Mapping) for inner in value):
        for place, inner in enumerate(value):
            yield from _leaves(f"{name}[{place}]", inner)
    elif value is not ABSENT:
        yield name, value
