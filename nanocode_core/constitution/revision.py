"""The constitutional loop over one task: play, validate, check, critique; revise with all that was found.

A revision keeps the turns before the first flaw, executes them anew and goes on from there with the
accumulated feedback. So the first rejected attempt and the accepted one share their beginning: the
prompt of a preference pair.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.constitution import validators
from nanocode_core.constitution.prompts import Prompts
from nanocode_core.constitution.rollout import Episode
from nanocode_core.constitution.soul import Flaw, Soul
from nanocode_core.constitution.task import Task
from nanocode_core.constitution.teacher import BadAnswer, Teacher
from nanocode_core.tokenizer.conversation import ToolCall, Turn

IN_A_THREAD = ("Bash", "Grep")
"""Tools that may run for long: they must not hold up the other rollouts."""


@dataclass(frozen=True)
class Attempt:
    """One played conversation and what is wrong with it."""

    turns: tuple[Turn, ...]
    flaws: tuple[Flaw, ...]
    solved: bool
    rating: int

    @property
    def accepted(self) -> bool:
        """Nothing is wrong with it."""
        return not self.flaws


@dataclass(frozen=True)
class Outcome:
    """All attempts at a task, the last one accepted unless the revisions ran out."""

    task: Task
    attempts: tuple[Attempt, ...]

    @property
    def accepted(self) -> Attempt | None:
        """The attempt to learn from."""
        return self.attempts[-1] if self.attempts[-1].accepted else None

    def pair(self) -> tuple[tuple[Turn, ...], tuple[Turn, ...], tuple[Turn, ...]] | None:
        """Prompt, chosen and rejected turns; None without a rejected attempt or without text to prefer."""
        chosen, rejected = self.attempts[-1].turns, self.attempts[0].turns
        if self.accepted is None or len(self.attempts) < 2:
            return None
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        if shared is None:
            return None  # one is the beginning of the other: nothing was preferred
        sides = chosen[shared:], rejected[shared:]
        if not all(side[0].role == "assistant" and side[0].text.strip() for side in sides):
            return None
        return chosen[:shared], *sides


@dataclass(frozen=True)
class Studio:
    """What the loop works with."""

    teacher: Teacher
    prompts: Prompts
    soul: Soul
    sandbox: Sandbox
    scratch: Path
    max_turns: int
    max_revisions: int
    accept_rating: int


async def work_out(task: Task, studio: Studio) -> Outcome:
    """Attempt a task until an attempt is accepted, or the revisions run out."""
    attempts: list[Attempt] = []
    kept: list[Turn] = []
    feedback: list[str] = []
    for number in range(studio.max_revisions + 1):
        attempt = await _attempt(task, studio, number, kept, feedback)
        attempts.append(attempt)
        if attempt.accepted:
            break
        first = min(flaw.turn for flaw in attempt.flaws)
        kept = [turn for turn in attempt.turns[:first] if turn.role == "assistant"]
        feedback += [f"attempt {number}, turn {flaw.turn}: {flaw.reason}" for flaw in attempt.flaws]
    return Outcome(task, tuple(attempts))


async def _attempt(task: Task, studio: Studio, number: int, kept: Sequence[Turn], feedback: Sequence[str]) -> Attempt:
    """Play the kept turns and then the teacher's, and judge the conversation."""
    episode = Episode(task, studio.scratch / task.id, studio.sandbox)
    for turn in kept:
        await _step(episode, turn)
    taken = len(kept)
    broken: list[Flaw] = []
    while not episode.done and not broken:
        if taken == studio.max_turns:
            broken.append(Flaw(1, f"is not done after {taken} turns"))
            break
        try:
            answer = await studio.teacher.ask(studio.prompts.turn(task, episode.turns, number, feedback))
            await _step(episode, _turn(answer))
            taken += 1
        except (BadAnswer, ValueError) as error:
            broken.append(Flaw(len(episode.turns), f"not a turn: {error}"))
    turns = tuple(episode.turns)
    problems = await asyncio.to_thread(episode.failures) if _executes(task) else episode.failures()
    flaws = broken or validators.flaws(episode.conversation, studio.soul.rules)
    rating = 1
    if not flaws:
        rating, flaws = await _critique(task, turns, studio)
    if problems and not flaws:
        flaws = [Flaw(_first_turn(turns), f"the check fails: {problem}") for problem in problems]
    return Attempt(turns, tuple(flaws), not problems, rating)


async def _critique(task: Task, turns: Sequence[Turn], studio: Studio) -> tuple[int, list[Flaw]]:
    """The teacher's rating, and its reasons if that is not enough."""
    try:
        answer = await studio.teacher.ask(studio.prompts.critique(task, turns))
        rating = int(answer["rating"])
        reasons = [str(reason) for reason in answer["reasons"]]
        first = int(answer["first_bad_turn"])
    except (BadAnswer, KeyError, TypeError, ValueError) as error:
        return 1, [Flaw(_first_turn(turns), f"no critique: {error!r}")]
    if rating >= studio.accept_rating:
        return rating, []
    if not (0 <= first < len(turns) and turns[first].role == "assistant"):
        first = _first_turn(turns)
    return rating, [Flaw(first, reason) for reason in reasons or ["the rating is too low"]]


def _first_turn(turns: Sequence[Turn]) -> int:
    return next((index for index, turn in enumerate(turns) if turn.role == "assistant"), 0)


def _turn(answer: dict[str, Any]) -> Turn:
    """The turn in a teacher's answer; numbers among the arguments become text, null ones go.

    Raises:
        ValueError: it is not a turn.
    """
    text, call = answer.get("text"), answer.get("call")
    if not isinstance(text, str):
        raise ValueError("text is missing")
    if call is None:
        return Turn("assistant", text)
    if (
        not isinstance(call, dict)
        or not isinstance(call.get("name"), str)
        or not isinstance(call.get("arguments"), dict)
    ):
        raise ValueError("the call has no name or no arguments")
    arguments = {str(key): str(value) for key, value in call["arguments"].items() if value is not None}
    return Turn("assistant", text, ToolCall(call["name"], arguments))


async def _step(episode: Episode, turn: Turn) -> None:
    if turn.call is not None and turn.call.name in IN_A_THREAD:
        await asyncio.to_thread(episode.step, turn)
    else:
        episode.step(turn)


def _executes(task: Task) -> bool:
    """Whether the task's check runs code."""
    return any(check.get("kind") == "python" for check in task.check)
