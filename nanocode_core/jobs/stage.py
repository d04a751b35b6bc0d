"""A stage: what turns artifacts into one artifact, and what its result depends on.

A `Stage` is inert: a name, a version, the identity fields it reads, the stages it takes as inputs
and the place of its build function. `plan` computes every fingerprint from these, in order, and
says which artifacts already lie in the store. Nothing is built here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nanocode_core.config import Config
from nanocode_core.errors import UserError
from nanocode_core.store import Record, Store, fingerprint


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: also the folder of its artifacts.
        version: raise it when the build function's result changes for the same identity.
        build: "module:function", called as build(job) in the worker process; returns the headline
            metrics, a flat JSON-able dict.
        inputs: names of the stages whose artifacts it reads.
        identity: dotted config paths that decide the result.
        extra: further identity that is not in the config's values, such as the hash of a file that
            the config names; raises UserError where that can't be had.
        accelerated: whether it is worth a TPU or GPU.
    """

    name: str
    version: int
    build: str
    inputs: tuple[str, ...]
    identity: tuple[str, ...]
    extra: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    accelerated: bool = False

    def identify(self, config: Config) -> dict[str, Any]:
        """The identity of this stage under `config`: flat dotted names to JSON values."""
        return {**config.pick(*self.identity), **self.extra(config)}


@dataclass(frozen=True)
class Planned:
    """A stage with its fingerprint under one config; `record` is None where it has to be built."""

    stage: Stage
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    record: Record | None


def plan(
    stages: Iterable[Stage], config: Config, store: Store, fixed: Mapping[str, str] | None = None
) -> dict[str, Planned]:
    """Every stage in the order given with its fingerprint and its record, if there is one.

    Args:
        fixed: fingerprints of input stages that are given instead of computed (a nightly
            evaluation of the newest model, say). A stage that is fixed is looked up, not planned.

    Raises:
        UserError: a stage's extra identity can't be had, or a fixed artifact is not there.
        StorageError: the store can't be read.
    """
    planned: dict[str, Planned] = {}
    for stage in stages:
        if fixed and stage.name in fixed:
            record = store.record(stage.name, fixed[stage.name])
            if record is None:
                raise UserError(f"no {stage.name} artifact {fixed[stage.name]} in {store.root}")
            inputs = {name: ref.fingerprint for name, ref in record.inputs.items()}
            planned[stage.name] = Planned(stage, record.fingerprint, dict(record.config), inputs, record)
            continue
        identity = stage.identify(config)
        inputs = {name: planned[name].fingerprint for name in stage.inputs}
        key = fingerprint(stage.name, stage.version, identity, inputs)
        planned[stage.name] = Planned(stage, key, identity, inputs, store.record(stage.name, key))
    return planned
