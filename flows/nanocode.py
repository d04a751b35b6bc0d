"""The flow `nanocode`: the stages in order, one task run each.

The store remembers, Prefect conducts: its own cache is off, and a stage whose artifact is there
ends as `Reused`. Bad input ends the run as `BadInput` with the one line that says what to do.
A cancelled run gets SIGTERM; the local launcher then stops the job's process group, and whatever happens
to this process, the job ends with it (see nanocode_core/jobs/tether.py). A job on Kubernetes outlives this
process, for the next run to adopt; only a cancellation deletes it (by `_delete_jobs`; by cli/sweep.py where the run
has no process then).
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import FailedRun
from prefect.runtime import flow_run
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from flows.board import Board
from flows.pipeline import RETRIES, Outcome, Schedule, choose_launcher, headline, prepare, run_stage, summarize
from nanocode_core.config import load_config
from nanocode_core.errors import StorageError, UserError
from nanocode_core.jobs.launcher import JobFailed, JobPreempted
from nanocode_core.jobs.stage import Planned

if TYPE_CHECKING:
    from pydantic import BaseModel as Overrides
else:
    from nanocode_core.config import Overrides

Preset = Literal["demo", "smoke", "d3", "d6", "d12", "d20", "d24"]
StageName = Literal["corpus", "tokenizer", "tokens", "pretrain", "synthetic", "sft", "dpo", "eval", "report"]
OURS = {"nanocode": True}
"""Marks log records with a line for the user, among those that Prefect writes about itself."""


class _OneLine(logging.Filter):
    """Drops the traceback that Prefect logs about a failed state which we returned on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


_ONE_LINE = _OneLine()


def _delete_jobs(flow: Any, flow_run: Any, state: State[Any]) -> None:
    """After a cancellation: delete the run's jobs on Kubernetes. Prefect calls it, by these parameter names."""
    asked = flow_run.parameters
    sets = [*(asked.get("set") or ())]
    config = load_config(asked.get("preset") or "demo", sets, _changes(asked.get("overrides")))
    if config.run.launcher == "gke":
        from nanocode_core.jobs.gke.launcher import cancel

        for name in cancel(str(flow_run.id), config.gke.namespace):
            logging.getLogger("prefect.flow_runs").info("deleted the job %s", name)


def _changes(overrides: Any) -> dict[str, Any]:
    """The single settings of a run's parameters, as they come from a form or from its record."""
    if overrides is None or isinstance(overrides, dict):
        return _without_none(overrides or {})
    changes: dict[str, Any] = overrides.model_dump(mode="json", exclude_none=True)
    return changes


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in value.items() if v is not None}


@flow(name="nanocode", persist_result=False, on_cancellation=[_delete_jobs])
def nanocode(
    preset: Preset = "demo",
    stages: list[StageName] | None = None,
    overrides: Overrides | None = None,
    set: list[str] | None = None,
    store: str | None = None,
    newest: bool = False,
) -> dict[str, Any] | State[Any]:
    """Train a coding agent, from raw text to a report; what is in the store already is reused.

    Args:
        preset: The one dial: every setting follows from it.
        stages: Only these stages; their inputs must have been built. Empty: all stages.
        overrides: Single settings to change; an empty field keeps the preset's value.
        set: The same as on the command line: "training.steps=50", applied last.
        store: Where the artifacts are: a directory or gs://bucket/prefix. Empty: the default store.
        newest: Evaluate the newest dpo artifact of the store, whatever its settings were.
    """
    begin = time.monotonic()
    line = _liner()
    board = Board(complain=line)
    try:
        changes = _changes(overrides)
        sets = [*(set or ()), *([f"run.store={store}"] if store else ())]
        schedule = prepare(load_config(preset, sets, changes), stages or None, newest)
    except (UserError, StorageError) as error:
        line(f"error: {error}")
        return _failed("BadInput", str(error))
    outcomes: list[Outcome] = []
    for planned in schedule.todo:
        state = _stage.with_options(name=planned.stage.name)(planned, schedule, board, return_state=True)
        if not state.is_completed():
            return _failed(state.name, state.message)
        outcomes.append(cast(Outcome, state.result()))
    _show(board, schedule, outcomes)
    summary = summarize(schedule, outcomes, time.monotonic() - begin)
    if summary["report"]:
        board.report(summary["report"])
    board.flush()
    return summary


def _was_preempted(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a failed stage may be started again: only one whose job was told to go away."""
    try:
        state.result()
    except JobPreempted:
        return True
    except BaseException:
        return False
    return False


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="{planned.stage.name}",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=_was_preempted,
)
def _stage(planned: Planned, schedule: Schedule, board: Board) -> State[Outcome]:
    """One stage of the pipeline."""
    line = _liner()

    def follow(text: str) -> None:
        line(text)
        board.progress(text)

    try:
        launcher = choose_launcher(schedule.config, flow_run.get_id())
        outcome = run_stage(planned, schedule, launcher, follow)
    except (UserError, StorageError) as error:
        line(f"error: {error}")
        return Failed(name="BadInput", message=str(error))
    except JobFailed as error:
        line(f"error: {error}")
        return Failed(message=str(error))
    name = "Reused" if outcome.reused else "Completed"
    line(f"{outcome.stage}: {'reused' if outcome.reused else 'built'} {outcome.fingerprint}")
    return State(type=StateType.COMPLETED, name=name, message=headline(outcome.metrics) or None, data=outcome)


def _failed(name: str | None, message: str | None) -> State[Any]:
    """The end of a run whose one line has been logged already."""
    logging.getLogger("prefect.flow_runs").addFilter(_ONE_LINE)
    return Failed(name=name or "Failed", message=message)


def _show(board: Board, schedule: Schedule, outcomes: list[Outcome]) -> None:
    board.stages(outcomes)
    for outcome in outcomes:
        if outcome.stage == "eval":
            board.evaluation(outcome.metrics, schedule.planned["dpo"].fingerprint)


def _liner() -> Callable[[str], None]:
    """A function that writes a line to the log of the current run."""
    logger = get_run_logger()

    def line(text: str) -> None:
        logger.log(logging.ERROR if text.startswith("error: ") else logging.INFO, text, extra=OURS)

    return line
