"""What a run has to do, and the one way a stage is done: reuse the artifact, or have a job build it.

No Prefect here. `prepare` plans the wanted stages and everything they are made of; `run_stage` does
one of them. The flow wraps that in task runs; where no Prefect server can be had, `run_plainly`
calls it directly and the artifacts come out the same.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanocode_core.config import Config, config_from_identity
from nanocode_core.errors import UserError
from nanocode_core.jobs.launcher import JobFailed, JobPreempted, Launcher
from nanocode_core.jobs.local import LocalLauncher
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.jobs.stage import Planned, Stage, plan
from nanocode_core.store import Record, Store
from tasks import STAGES

RETRIES = 3
"""Further starts of a job that was preempted."""


@dataclass(frozen=True)
class Schedule:
    """A run: the config, the store, and what to do in which order.

    Attributes:
        planned: the wanted stages and all that they are made of, in order.
        wanted: the stages to run; the others are only looked up.
    """

    config: Config
    store: Store
    planned: Mapping[str, Planned]
    wanted: tuple[str, ...]

    @property
    def todo(self) -> list[Planned]:
        """The wanted stages in order."""
        return [self.planned[name] for name in self.wanted]


@dataclass(frozen=True)
class Outcome:
    """A stage that is done.

    Attributes:
        minutes: what the artifact took to build, whenever that was.
        files: the directory or URL below which the artifact's files lie.
    """

    stage: str
    fingerprint: str
    digest: str
    reused: bool
    minutes: float
    metrics: Mapping[str, Any]
    files: str

    @classmethod
    def of(cls, record: Record, store: Store, reused: bool) -> "Outcome":
        """The outcome that a record tells."""
        minutes = float(record.provenance.get("minutes", 0.0))
        files = "/".join(filter(None, [store.root, "artifacts", record.stage, record.fingerprint, record.folder]))
        return cls(record.stage, record.fingerprint, record.digest, reused, minutes, dict(record.metrics), files)


def prepare(config: Config, stages: Iterable[str] | None = None, newest: bool = False) -> Schedule:
    """Plan a run of `stages` (None: all) under `config`.

    Args:
        newest: take the newest dpo artifact of the store and everything it was made of as given,
            whatever config they had; `stages` None then means the evaluation only.

    Raises:
        UserError: an unknown stage, an input that is not built, a store without a dpo artifact.
        StorageError: the store can't be read.
    """
    store = Store.of(config)
    if newest:
        return _prepare_newest(config, store, stages)
    wanted = _wanted(stages)
    planned = plan(_closure(wanted), config, store)
    _check_inputs(planned, wanted, store)
    return Schedule(config, store, planned, wanted)


def _prepare_newest(config: Config, store: Store, stages: Iterable[str] | None) -> Schedule:
    wanted = _wanted(["eval"] if stages is None else stages)
    model = store.newest("dpo")
    if model is None:
        raise UserError(f"there is no dpo artifact in {store.root} to evaluate; train one first with nanocode speedrun")
    chain = _chain(model, store)
    identity = {path: value for record in chain.values() for path, value in record.config.items()}
    config = config_from_identity({p: v for p, v in identity.items() if _is_field(config, p)}, config)
    fixed = {name: record.fingerprint for name, record in chain.items()}
    planned = plan(_closure(wanted), config, store, fixed)
    _check_inputs(planned, wanted, store)
    return Schedule(config, store, planned, wanted)


def _chain(record: Record, store: Store) -> dict[str, Record]:
    """A record and those of everything it was made of, by stage."""
    chain: dict[str, Record] = {}
    for name, ref in record.inputs.items():
        made_of = store.record(name, ref.fingerprint)
        if made_of is None:
            raise UserError(
                f"{record.stage} {record.fingerprint} was made of {name} {ref.fingerprint}, which is no longer in "
                f"{store.root}; build it again by running the pipeline with that model's settings"
            )
        chain.update(_chain(made_of, store))
    chain[record.stage] = record
    return chain


def _is_field(config: Config, path: str) -> bool:
    """Whether `path` is an identity field (a record also holds hashes of files, which are not)."""
    try:
        config.pick(path)
    except KeyError:
        return False
    return True


def _wanted(stages: Iterable[str] | None) -> tuple[str, ...]:
    """Stage names in the order of the pipeline, checked."""
    known = [stage.name for stage in STAGES]
    if stages is None:
        return tuple(known)
    names = list(stages)
    for name in names:
        if name not in known:
            raise UserError(f"unknown stage {name!r}; choose from {', '.join(known)}")
    if not names:
        raise UserError(f"the list of stages is empty; leave it out for all of them, or choose from {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _closure(wanted: Sequence[str]) -> list[Stage]:
    """The wanted stages and, transitively, their inputs, in order."""
    needed = set(wanted)
    for stage in reversed(STAGES):
        if stage.name in needed:
            needed.update(stage.inputs)
    return [stage for stage in STAGES if stage.name in needed]


def _check_inputs(planned: Mapping[str, Planned], wanted: Sequence[str], store: Store) -> None:
    """Raise UserError if a wanted stage has to be built from something that is neither there nor wanted."""
    to_build = [name for name in wanted if planned[name].record is None]
    inputs = {name for stage in to_build for name in planned[stage].inputs}
    missing = {name for name in inputs if name not in wanted and planned[name].record is None}
    if not missing:
        return
    first = next(name for name in planned if name in missing)
    stage = next(name for name in to_build if first in planned[name].inputs)
    unbuilt = [name for name in planned if planned[name].record is None]
    raise UserError(
        f"stage {stage} needs {first} {planned[first].fingerprint}, which is not in {store.root}; run all stages, or "
        f"--stages {','.join(unbuilt)} with the same preset and settings"
    )


def run_stage(planned: Planned, schedule: Schedule, launcher: Launcher, line: Callable[[str], None]) -> Outcome:
    """Reuse the artifact of a planned stage or have a job build it; the job's output goes to `line`.

    Raises:
        UserError, JobPreempted, JobFailed: see the launcher.
        StorageError: the store can't be read.
    """
    store, stage = schedule.store, planned.stage
    record = store.record(stage.name, planned.fingerprint)
    if record is not None:
        _verify(store, record)
        return Outcome.of(record, store, reused=True)
    by_another = False

    def follow(text: str) -> None:
        nonlocal by_another
        # The worker says so when it has waited for another run's lease and then found the record.
        by_another = by_another or text.startswith(f"{stage.name}: built by another run meanwhile")
        line(text)

    launcher.run(JobSpec.of(planned, schedule.config), follow)
    record = store.record(stage.name, planned.fingerprint)
    if record is None:
        raise JobFailed(f"the {stage.name} job ended well but left no artifact in {store.root}")
    return Outcome.of(record, store, reused=by_another)


def choose_launcher(config: Config, run: str | None = None) -> Launcher:
    """The launcher that the config asks for.

    Args:
        run: id of the run that the jobs are for.
    """
    if config.run.launcher == "local":
        return LocalLauncher()
    from nanocode_core.jobs.gke.launcher import GKELauncher

    return GKELauncher(run)


def _verify(store: Store, record: Record) -> None:
    """Check the files of a reused artifact where that needs no download (else: when it is read)."""
    if store.files.directory is not None:
        store.open(record.stage, record.fingerprint)


def run_plainly(schedule: Schedule, line: Callable[[str], None], done: Callable[[Outcome], None]) -> list[Outcome]:
    """All wanted stages in order, without Prefect; `done` is called after each."""
    outcomes = []
    for planned in schedule.todo:
        for attempt in range(RETRIES + 1):
            try:
                outcomes.append(run_stage(planned, schedule, choose_launcher(schedule.config), line))
                break
            except JobPreempted as error:
                if attempt == RETRIES:
                    raise
                line(f"{planned.stage.name}: {error}; starting it again")
                time.sleep(5 * 2**attempt)
        done(outcomes[-1])
    return outcomes


def summarize(schedule: Schedule, outcomes: Iterable[Outcome], seconds: float) -> dict[str, Any]:
    """What a run did, as one JSON-able object."""
    done = {outcome.stage: outcome for outcome in outcomes}
    stages = {
        name: {
            "state": "reused" if outcome.reused else "built",
            "minutes": outcome.minutes,
            "fingerprint": outcome.fingerprint,
            "digest": outcome.digest,
            "metrics": dict(outcome.metrics),
        }
        for name, outcome in done.items()
    }
    return {
        "preset": schedule.config.preset,
        "store": schedule.store.root,
        "minutes": round(seconds / 60, 3),
        "stages": stages,
        "report": f"{done['report'].files}/report.html" if "report" in done else None,
    }


def headline(metrics: Mapping[str, Any], most: int = 3) -> str:
    """The first few metrics as text (build functions return the telling ones first)."""
    shown: list[str] = []
    for name, value in metrics.items():
        if isinstance(value, bool | int | float | str) and len(shown) < most:
            shown.append(f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}")
    return ", ".join(shown)
