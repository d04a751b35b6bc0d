"""Held-out tasks played by a model: greedy, in lockstep batches, calls executed in the sandbox.

A batch is a fixed slice of the tasks, in their order; its outcome depends on the model and the slice
alone. An outcome is a dict: id, family, solved, reason (what its checks found wrong), turns (of the
agent), attempts (calls tried, see play.Attempt), solution (tools that the teacher used, in order), faults
(why a turn, by its index, is not whole) and the conversation.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.constitution.task import Task
from nanocode_core.evals.play import Limits, Play
from nanocode_core.evals.rates import DIGITS, rate, share
from nanocode_core.tokenizer import Tokenizer, Turn, from_json

Outcome = dict[str, Any]
Write = Callable[[Sequence[list[int] | None]], list[list[int]]]
"""Prompts by slot (None: nothing to write there) to what the model writes after each."""


def play_batch(
    tasks: Sequence[Task], write: Write, tokenizer: Tokenizer, limits: Limits, scratch: Path
) -> list[Outcome]:
    """Play tasks side by side, a slot each; their outcomes in order.

    Args:
        scratch: folder to make the tasks' projects in; made anew and removed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    with Sandbox() as sandbox, ThreadPoolExecutor(os.cpu_count()) as pool:
        plays = [Play(task, scratch / f"{slot:04d}", tokenizer, sandbox, limits) for slot, task in enumerate(tasks)]
        while any(play.active for play in plays):
            written = write([play.prompt() if play.active else None for play in plays])
            moving = [(play, ids) for play, ids in zip(plays, written, strict=True) if play.active]
            list(pool.map(lambda pair: pair[0].take(pair[1]), moving))
        outcomes = list(pool.map(Play.outcome, plays))
    shutil.rmtree(scratch)
    return outcomes


def read_tasks(file: Path, limit: int) -> list[Task]:
    """The first tasks of a parquet file, spread over the families: one of each in turn.

    Raises:
        ValueError: a row is no task.
    """
    tasks = [Task.from_json(json.loads(text)) for text in pq.read_table(file, columns=["task"])["task"].to_pylist()]
    by_family = [list(group) for _, group in groupby(sorted(tasks, key=lambda t: (t.family, t.id)), lambda t: t.family)]
    rounds = max((len(group) for group in by_family), default=0)
    return [group[turn] for turn in range(rounds) for group in by_family if turn < len(group)][:limit]


def tools_used(file: Path) -> dict[str, list[str]]:
    """The tools that the teacher called for each task id of a rollouts file, in order.

    A task's own solution is only the calls that solve it; a good agent also looks before it edits.
    """
    rows = pq.read_table(file, columns=["task", "conversation"]).to_pylist()
    return {row["task"]: [turn.call.name for turn in _turns(row["conversation"]) if turn.call] for row in rows}


def _turns(conversation: str) -> Sequence[Turn]:
    return from_json(json.loads(conversation)).turns


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of some outcomes.

    valid_call_rate: calls that parse and have a known name and proper arguments, of all attempts.
    right_tool_rate: places where the tool equals the one that the teacher used, of the longer of both.
    first_tool_rate: tasks whose first tool does, of those in which the teacher used one.
    recovered_rate: tasks solved, of those in which a call failed.
    """
    attempts = [attempt for outcome in outcomes for attempt in outcome["attempts"]]
    tools = [([a["tool"] for a in outcome["attempts"]], outcome["solution"]) for outcome in outcomes]
    failed = [outcome for outcome in outcomes if any(attempt["failed"] for attempt in outcome["attempts"])]
    return {
        "tasks": len(outcomes),
        "task_success": share(outcome["solved"] for outcome in outcomes),
        "valid_call_rate": share(attempt["fault"] is None for attempt in attempts),
        "right_tool_rate": rate(
            sum(tool == wanted for used, known in tools for tool, wanted in zip(used, known, strict=False)),
            sum(max(len(used), len(known)) for used, known in tools),
        ),
        "first_tool_rate": share(used[:1] == known[:1] for used, known in tools if known),
        "recovered_rate": share(outcome["solved"] for outcome in failed),
        "turns": _mean([outcome["turns"] for outcome in outcomes]),
        "calls": _mean([len(outcome["attempts"]) for outcome in outcomes]),
        "malformed_turns": sum(len(outcome["faults"]) for outcome in outcomes),
    }


def by_family(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """`summary` of each family, in the order of their names."""
    families = sorted({outcome["family"] for outcome in outcomes})
    return {name: summary([outcome for outcome in outcomes if outcome["family"] == name]) for name in families}


def _mean(values: Sequence[int]) -> float | None:
    return round(sum(values) / len(values), DIGITS) if values else None
