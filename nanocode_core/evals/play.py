"""One held-out task being played by a trained agent, without the model.

A `Play` holds an `Episode` (the project, the tools, the scripted user) and the `Dialogue` that the
model sees of it. The caller asks for the prompt of the next turn and hands back the ids that a model
wrote, so that many plays can move in lockstep.
"""

from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nanocode_core.agent.dialogue import Dialogue, MessageTooLong, unreadable
from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.agent.tools import validate_call
from nanocode_core.constitution.rollout import Episode
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer import Tokenizer, Turn, to_json


@dataclass(frozen=True)
class Limits:
    """What an agent may use for a task: positions, ids a turn, assistant turns, seconds a command."""

    context: int
    max_new: int
    max_turns: int
    bash_seconds: float


@dataclass(frozen=True)
class Attempt:
    """One try to call a tool, at an index of the conversation's turns.

    `tool` is empty where the call could not be parsed; `fault` says why a call is not valid;
    `failed`: its result was an error.
    """

    turn: int
    tool: str
    fault: str | None
    failed: bool


class Play:
    """A task in the folder `root`, which is emptied first; `active` until it is over."""

    def __init__(self, task: Task, root: Path, tokenizer: Tokenizer, sandbox: Sandbox, limits: Limits):
        self.task = task
        self.active = True
        self._episode = Episode(task, root, sandbox, limits.bash_seconds)
        self._dialogue = Dialogue(tokenizer, limits.context, limits.max_new)
        self._max_turns = limits.max_turns
        self._turns = 0
        self._attempts: list[Attempt] = []
        self._faults: dict[int, str] = {}
        self._stopped = ""
        self._follow(0)

    def prompt(self) -> list[int]:
        """The ids after which the model writes its next turn."""
        return self._dialogue.prompt()

    def take(self, ids: list[int]) -> None:
        """Take one turn that the model wrote, and do what follows from it."""
        reply = self._dialogue.generated(ids)
        place = len(self._episode.turns)
        self._turns += 1
        if reply.fault:
            self._faults[place] = reply.fault
        tried = self._dialogue.expects == "result"
        if tried and not reply.turn.call:
            self._episode.turns += [reply.turn, Turn("tool", unreadable(str(reply.fault)))]
        else:
            self._episode.step(reply.turn)
        if tried:
            call = reply.turn.call
            failed = self._episode.turns[place + 1].text.startswith("error:")
            fault = validate_call(call) if call else reply.fault
            self._attempts.append(Attempt(place, call.name if call else "", fault, failed))
        self._follow(place + 1)
        if self._episode.done:
            self.active = False
        elif self.active and self._turns >= self._max_turns:
            self._stop(f"not done after {self._max_turns} turns")

    def outcome(self) -> dict[str, Any]:
        """What came of it, JSON-able: see agentic.py for the fields."""
        wrong = self._episode.failures()
        return {
            "id": self.task.id,
            "family": self.task.family,
            "solved": not wrong,
            "reason": "; ".join([*filter(None, [self._stopped]), *wrong]) if wrong else "",
            "turns": self._turns,
            "faults": {str(place): fault for place, fault in self._faults.items()},
            "attempts": [asdict(attempt) for attempt in self._attempts],
            "solution": [call.name for call in self.task.solution],
            "conversation": to_json(self._episode.conversation),
        }

    def _follow(self, place: int) -> None:
        """Show the model what tools and user have added to the episode since turn `place`."""
        added = self._episode.turns[place:]
        for turn, following in zip_longest(added, added[1:]):
            if turn.role == "tool":
                self._dialogue.result(turn.text, then="user" if following else "assistant")
                continue
            try:
                self._dialogue.user(turn.text)
            except MessageTooLong as error:
                self._stop(str(error))

    def _stop(self, why: str) -> None:
        self._stopped = why
        self.active = False
