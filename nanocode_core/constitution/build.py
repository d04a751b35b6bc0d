"""Build function of the stage `synthetic`: tasks, rollouts and preference pairs, split by task.

Every family gives equally many tasks. Its first ones are held out; the rest are worked out, in waves,
until its share of rollouts is accepted. What is written depends on the teacher's answers only, never
on the order in which they came: files are in the order of families and task numbers.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.production import Production
from nanocode_core.constitution.prompts import Prompts
from nanocode_core.constitution.revision import Outcome, Studio
from nanocode_core.constitution.soul import Soul
from nanocode_core.constitution.statistics import statistics
from nanocode_core.constitution.task import Task
from nanocode_core.constitution.teacher import SCRIPTED, Answers, Endpoint, Teacher, remote_endpoint, scripted_server
from nanocode_core.tokenizer.conversation import Conversation, Turn, to_json, turn_to_json

if TYPE_CHECKING:
    from pathlib import Path

    from nanocode_core.jobs.job import Job

ROLLOUT = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "family", "split", "conversation")]
    + [("rating", pa.int32()), ("attempts", pa.int32())]
)
PAIR = pa.schema([(name, pa.string()) for name in ("id", "task", "family", "prompt", "chosen", "rejected")])
TASKS = pa.schema([(name, pa.string()) for name in ("id", "family", "task")])


def build(job: "Job") -> dict[str, Any]:
    """Make the synthetic data; returns the headline metrics.

    Raises:
        UserError: the constitution or the teacher can't be used.
    """
    settings = job.config.synthetic
    soul = Soul.load(job.config.soul)
    answers = Answers(job.work / "answers.jsonl")
    if len(answers):
        job.log(f"{len(answers)} answers of the teacher are kept from an earlier start")
    with contextlib.closing(answers), _endpoint(settings.teacher, settings.base_url) as endpoint, Sandbox() as sandbox:
        job.log(f"teacher {endpoint.model} at {endpoint.base_url}; sandbox isolates: {sandbox.isolation}")
        teacher = Teacher(endpoint, answers, settings.patience_seconds, job.log)
        studio = Studio(
            teacher,
            Prompts(soul, settings.draft_temperature, settings.critique_temperature),
            soul,
            sandbox,
            sandbox.scratch,
            settings.max_turns,
            settings.max_revisions,
            settings.accept_rating,
        )
        production = Production(
            studio,
            list(FAMILIES.values()),
            job.config.seed,
            settings.concurrency,
            lambda done, total: job.progress(done, total, "rollouts"),
        )
        made = asyncio.run(production.run(settings.rollouts, settings.held_out))
    counts = statistics(made)
    if counts["total"]["rollouts"] < settings.rollouts:
        job.log(
            f"only {counts['total']['rollouts']} of {settings.rollouts} rollouts were accepted; see statistics.json"
        )
    write_rollouts(job.out / "rollouts.parquet", made.train, "train")
    write_rollouts(job.out / "held_out_rollouts.parquet", made.held_out, "held_out")
    write_pairs(job.out / "pairs.parquet", made.train)
    write_pairs(job.out / "held_out_pairs.parquet", made.held_out)
    write_tasks(job.out / "held_out.parquet", [outcome.task for outcome in made.held_out])
    about = {"teacher": endpoint.model, "soul.sha256": soul.sha256, **counts}
    (job.out / "statistics.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    for family, values in counts["families"].items():
        job.metric(family=family, **{key: value for key, value in values.items() if not isinstance(value, dict)})
    job.log(f"{teacher.asked} requests to the teacher in this start")
    return {"teacher": endpoint.model, **{k: v for k, v in counts["total"].items() if not isinstance(v, dict)}}


@contextlib.contextmanager
def _endpoint(teacher: str, base_url: str | None) -> Iterator[Endpoint]:
    if teacher == SCRIPTED and base_url is None:
        with scripted_server() as endpoint:
            yield endpoint
    else:
        yield remote_endpoint(teacher, base_url)


def write_rollouts(path: "Path", outcomes: Sequence[Outcome], split: str) -> None:
    """The accepted conversations as parquet."""
    rows = [
        {
            "id": outcome.task.id,
            "task": outcome.task.id,
            "family": outcome.task.family,
            "split": split,
            "conversation": _json(to_json(Conversation(outcome.accepted.turns))),
            "rating": outcome.accepted.rating,
            "attempts": len(outcome.attempts),
        }
        for outcome in outcomes
        if outcome.accepted is not None
    ]
    pq.write_table(pa.Table.from_pylist(rows, ROLLOUT), path)


def write_pairs(path: "Path", outcomes: Sequence[Outcome]) -> None:
    """The preference pairs as parquet: prompt is a conversation, chosen and rejected are lists of turns."""
    rows = []
    for outcome in outcomes:
        pair = outcome.pair()
        if pair is None:
            continue
        prompt, chosen, rejected = pair
        rows.append(
            {
                "id": outcome.task.id,
                "task": outcome.task.id,
                "family": outcome.task.family,
                "prompt": _json(to_json(Conversation(prompt))),
                "chosen": _turns(chosen),
                "rejected": _turns(rejected),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, PAIR), path)


def write_tasks(path: "Path", tasks: Sequence[Task]) -> None:
    """The tasks themselves as parquet."""
    rows = [{"id": task.id, "family": task.family, "task": _json(task.to_json())} for task in tasks]
    pq.write_table(pa.Table.from_pylist(rows, TASKS), path)


def _turns(turns: Sequence[Turn]) -> str:
    return _json([turn_to_json(turn) for turn in turns])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
