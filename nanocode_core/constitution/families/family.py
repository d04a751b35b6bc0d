"""What a family of tasks is, and what its player sees.

A family is two pure functions: `generate(rng)` writes a task with a known solution, `play(task, past)`
says what a good agent does next, given what has happened so far. The player looks at the real
results (a path found by Grep, an error, a rejection), never at what it expects them to be.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nanocode_core.constitution.families.voice import Voice
from nanocode_core.constitution.task import Check, Task, UserAction
from nanocode_core.tokenizer.conversation import ToolCall, Turn


@dataclass(frozen=True)
class Family:
    """One kind of task.

    Attributes:
        about: one sentence that also tells a language model what to write.
    """

    name: str
    about: str
    generate: Callable[[random.Random], Task]
    play: Callable[[Task, "Past"], Turn]

    def task(self, seed: int, index: int) -> Task:
        """Task number `index` of this family."""
        task = self.generate(random.Random(f"{seed}/{self.name}/{index}"))
        return Task(**{**vars(task), "id": f"{self.name}-{index:06d}"})


@dataclass(frozen=True)
class Hit:
    """One line that Grep has found."""

    path: str
    line: str
    text: str


class Past:
    """The conversation so far, as a player needs it."""

    def __init__(self, task: Task, turns: Sequence[Turn], voice: Voice) -> None:
        self.turns = turns
        self._task = task
        self._voice = voice

    def results(self, tool: str) -> list[str]:
        """The results of all calls of a tool, oldest first."""
        return [
            result.text for turn, result in pairwise(self.turns) if turn.call is not None and turn.call.name == tool
        ]

    def done(self, tool: str) -> int:
        """How many calls of a tool went through: no error, no rejection."""
        return sum(not text.startswith("error:") and text != "rejected by user" for text in self.results(tool))

    def hits(self) -> list[Hit]:
        """What the last Grep has found."""
        lines = (self.results("Grep") or [""])[-1].splitlines()
        found = [re.fullmatch(r"([^:]+):(\d+):(.*)", line) for line in lines]
        return [Hit(*match.groups()) for match in found if match]

    def lines(self) -> list[str]:
        """The lines that the last Read has shown, without their numbers."""
        return [line.partition("→")[2] for line in (self.results("Read") or [""])[-1].splitlines()]

    def line(self, part: str) -> str:
        """The first line read that holds `part`, or "" if there is none."""
        return next((line for line in self.lines() if part in line), "")

    def said(self, index: int = -1) -> str:
        """A message of the user."""
        return [turn.text for turn in self.turns if turn.role == "user"][index]

    @property
    def rejected(self) -> bool:
        """Whether the user has rejected a call."""
        return any(turn.text == "rejected by user" for turn in self.turns if turn.role == "tool")

    def say(self, situation: str, call: ToolCall | None = None, **slots: str) -> Turn:
        """An assistant turn: one of the phrasings of a situation, and perhaps a call."""
        return Turn("assistant", self._voice.say(situation, self._task.id, **slots), call)


def read(path: str) -> ToolCall:
    """A Read call."""
    return ToolCall("Read", {"file_path": path})


def grep(pattern: str) -> ToolCall:
    """A Grep call over the project."""
    return ToolCall("Grep", {"pattern": pattern})


def edit(path: str, old: str, new: str) -> ToolCall:
    """An Edit call that replaces `old`."""
    return ToolCall("Edit", {"file_path": path, "old_string": old, "new_string": new})


def create(path: str, text: str) -> ToolCall:
    """An Edit call that makes a new file."""
    return ToolCall("Edit", {"file_path": path, "new_string": text})


def bash(command: str) -> ToolCall:
    """A Bash call."""
    return ToolCall("Bash", {"command": command})


def make(
    family: str,
    rng: random.Random,
    requests: Sequence[str],
    files: dict[str, str],
    check: Sequence[Check],
    solution: Sequence[ToolCall],
    answer: str,
    user: Sequence[UserAction] = (),
    **facts: Any,
) -> Task:
    """A task whose request is one of `requests` with the facts filled in; `{x!c}` is x, perhaps in backticks."""
    ticks = "`" if rng.random() < 0.4 else ""
    request = re.sub(r"\{(\w+)!c\}", lambda m: f"{ticks}{{{m.group(1)}}}{ticks}", rng.choice(requests))
    text = {key: str(value) for key, value in facts.items()}
    return Task("", family, request.format(**text), files, tuple(check), tuple(solution), answer, tuple(user), text)
