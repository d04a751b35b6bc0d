"""From families to outcomes: who writes which task, who is held out, what is worked out when.

Several rollouts are under way at a time, each by one worker. Nothing that is decided here looks at
the clock: tasks are taken by number, duplicates dropped in that order, and what a wave did not
accept the next one makes up for.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from nanocode_core.constitution.families import Family
from nanocode_core.constitution.prompts import task_from_json
from nanocode_core.constitution.revision import Outcome, Studio, work_out
from nanocode_core.constitution.rollout import verify
from nanocode_core.constitution.task import Task
from nanocode_core.constitution.teacher import BadAnswer

BATCH = 25
"""Tasks in one request to the teacher, at most."""
SPARE = 4
"""Tasks asked for, at most, per rollout wanted."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Stream:
    """The tasks of one family, taken in the order of their numbers.

    Attributes:
        dropped: why tasks were not used, counted.
    """

    family: Family
    most: int
    asked: int = 0
    ready: list[Task] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def asks(self, count: int) -> list[tuple["Stream", int, int]]:
        """Batches (first number, tasks) that may make up for what `count` ready tasks lack."""
        end = min(self.most, self.asked + count - len(self.ready))
        return [(self, first, min(BATCH, end - first)) for first in range(self.asked, end, BATCH)]


@dataclass(frozen=True)
class Made:
    """All outcomes, in the order in which they are written; and the tasks that were not used."""

    train: list[Outcome]
    held_out: list[Outcome]
    refused: list[Outcome]
    """Training tasks without an accepted attempt."""
    dropped: dict[str, Counter[str]]


class Production:
    """Makes the outcomes of one data set.

    Args:
        progress: called with the number of rollouts done and to do.
    """

    def __init__(
        self,
        studio: Studio,
        families: Sequence[Family],
        seed: int,
        concurrency: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self._studio = studio
        self._families = families
        self._seed = seed
        self._concurrency = concurrency
        self._progress = progress
        self._seen: set[str] = set()
        self._done = 0

    async def run(self, rollouts: int, held_out: int) -> Made:
        """Work out `held_out` tasks and as many others as it takes for `rollouts` accepted ones."""
        wanted, kept = _shares(rollouts, len(self._families)), _shares(held_out, len(self._families))
        streams = [
            Stream(family, SPARE * (train + held) + BATCH)
            for family, train, held in zip(self._families, wanted, kept, strict=True)
        ]
        total = rollouts + held_out
        accepted: list[list[Outcome]] = [[] for _ in streams]
        refused: list[Outcome] = []
        try:
            tests = await self._take(streams, kept)
            outcomes = await self._work_out([task for tasks in tests for task in tasks], total)
            while True:
                lacking = [want - len(have) for want, have in zip(wanted, accepted, strict=True)]
                tasks = await self._take(streams, lacking)
                wave = [task for group in tasks for task in group]
                if not wave:
                    break
                for outcome in await self._work_out(wave, total):
                    if outcome.accepted is None:
                        refused.append(outcome)
                    else:
                        place = next(i for i, f in enumerate(self._families) if f.name == outcome.task.family)
                        accepted[place].append(outcome)
        finally:
            await self._studio.teacher.close()
        by_family = [[o for o in outcomes if o.task.family == family.name] for family in self._families]
        dropped = {stream.family.name: stream.dropped for stream in streams}
        return Made(_interleaved(accepted), _interleaved(by_family), refused, dropped)

    async def _take(self, streams: Sequence[Stream], counts: Sequence[int]) -> list[list[Task]]:
        """The next tasks of each family: verified, and unlike any that was taken before."""
        while True:
            asks = [ask for stream, count in zip(streams, counts, strict=True) for ask in stream.asks(count)]
            if not asks:
                break
            for (stream, _, count), written in zip(asks, await self._each(self._write, asks), strict=True):
                stream.asked += count
                for task, problem in written:
                    if problem is None and task is not None and task.key() in self._seen:
                        problem = "like another task"
                    if problem is not None or task is None:
                        stream.dropped[problem or "not a task"] += 1
                        continue
                    self._seen.add(task.key())
                    stream.ready.append(task)
        taken = []
        for stream, count in zip(streams, counts, strict=True):
            taken.append(stream.ready[: max(0, count)])
            del stream.ready[: max(0, count)]
        return taken

    async def _write(self, ask: tuple[Stream, int, int]) -> list[tuple[Task | None, str | None]]:
        """One batch of a family's tasks, each with what is wrong with it."""
        stream, first, count = ask
        name = stream.family.name
        try:
            answer = await self._studio.teacher.ask(self._studio.prompts.tasks(stream.family, self._seed, first, count))
            values = list(answer["tasks"])[:count]
        except (BadAnswer, KeyError, TypeError) as error:
            return [(None, f"no tasks: {type(error).__name__}")]
        tasks: list[tuple[Task | None, str | None]] = []
        for number, value in enumerate(values, start=first):
            try:
                task = task_from_json(value, name, number)
                tasks.append((task, await asyncio.to_thread(self._problem, task)))
            except ValueError as error:
                tasks.append((None, str(error)))
        return tasks

    def _problem(self, task: Task) -> str | None:
        """Why a task can't be used."""
        root = self._studio.scratch / f"verify-{task.id}"
        try:
            found = verify(task, root, self._studio.sandbox)
        except (OSError, ValueError) as error:
            found = [f"its files can't be made: {type(error).__name__}"]
        finally:
            shutil.rmtree(root, ignore_errors=True)
        return found[0] if found else None

    async def _work_out(self, tasks: Sequence[Task], total: int) -> list[Outcome]:
        async def one(task: Task) -> Outcome:
            outcome = await work_out(task, self._studio)
            shutil.rmtree(self._studio.scratch / task.id, ignore_errors=True)
            self._done += outcome.accepted is not None
            self._progress(self._done, total)
            return outcome

        return await self._each(one, tasks)

    async def _each(self, function: Callable[[T], Awaitable[R]], values: Sequence[T]) -> list[R]:
        """function(value) for every value, `concurrency` at a time; results in the order of the values."""
        results: dict[int, R] = {}
        pending = iter(enumerate(values))

        async def worker() -> None:
            for index, value in pending:
                results[index] = await function(value)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(values))):
                    group.create_task(worker())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others end the same way, or because of it
        return [results[index] for index in range(len(values))]


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` parts that differ by one at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _interleaved(groups: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """One of each group in turn, until all are used."""
    longest = max((len(group) for group in groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]
