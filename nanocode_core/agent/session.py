"""The agent's loop: a message in, then turns and calls until the model ends without a call.

An `AgentSession` moves a `Dialogue` with the real things plugged in as plain callables: `generate`
(prompt ids -> written ids, one by one), `tools.run`, `approve` (asked before a call that can change
something) and `on_event` (told what happens, as it happens). What the model writes can't break it:
a malformed turn is shown and, where it was an attempt at a call, answered with an error to learn
from. Ctrl-C ends the turn or the call that is running, not the session.
"""

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nanocode_core.agent.dialogue import REJECTED, Dialogue, MessageTooLong, Reply, unreadable
from nanocode_core.tokenizer import Tokenizer, ToolCall

ASKED_FOR = frozenset({"Bash", "Edit"})
"""The tools that run only after the user has said yes."""

Generate = Callable[[list[int]], Iterable[int]]


class Approval(Enum):
    """The user's answer to "run this?"; ALWAYS also answers for that tool's later calls."""

    YES = "yes"
    NO = "no"
    ALWAYS = "always"


class Runner(Protocol):
    """What executes a call: its result as text, errors included."""

    def run(self, call: ToolCall) -> str:
        """Execute a call and say what came of it."""


@dataclass(frozen=True)
class TextWritten:
    """The model wrote a piece of prose."""

    text: str


@dataclass(frozen=True)
class CallWritten:
    """The model finished a call; it is not executed yet."""

    call: ToolCall


@dataclass(frozen=True)
class TurnMalformed:
    """The model wrote something that is no turn."""

    reply: Reply


@dataclass(frozen=True)
class CallEnded:
    """A call has its result; `call` is None for one that could not be read."""

    call: ToolCall | None
    result: str


@dataclass(frozen=True)
class Noted:
    """Something the user should know about the session."""

    text: str


Event = TextWritten | CallWritten | TurnMalformed | CallEnded | Noted


class AgentSession:
    """A chat of one user with one model in one project.

    Args:
        generate: yields ids for a prompt; may go on past the end, the session stops listening.
        check: why a call is not valid (validate_call); such a call is answered, never executed.
        approve: asked before each valid call of a tool in ASKED_FOR.
        stopping: polled between ids; True ends the turn.
        context, max_new, system: see `Dialogue`.
        max_turns: assistant turns for one message, at most.
    """

    def __init__(
        self,
        generate: Generate,
        tokenizer: Tokenizer,
        tools: Runner,
        check: Callable[[ToolCall], str | None],
        approve: Callable[[ToolCall], Approval],
        on_event: Callable[[Event], None],
        context: int,
        max_new: int = 512,
        max_turns: int = 16,
        system: str = "",
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.dialogue = Dialogue(tokenizer, context, max_new, system)
        self.always: set[str] = set()
        self._generate, self._tools, self._check = generate, tools, check
        self._approve, self._tell, self._stopping = approve, on_event, stopping
        self._max_turns = max_turns

    def clear(self) -> None:
        """Start a new conversation. What the user always allows stays allowed."""
        self.dialogue.clear()

    def ask(self, message: str) -> None:
        """Take one message and go on until it is the user's turn again."""
        try:
            self.dialogue.user(message)
        except MessageTooLong as error:
            self._tell(Noted(str(error)))
            return
        for _ in range(self._max_turns):
            reply = self._turn()
            if reply is None or not self._answer(reply):
                return
        self.dialogue.expects = "user"
        self._tell(Noted(f"stopped after {self._max_turns} turns; say how to go on"))

    def _turn(self) -> Reply | None:
        """Let the model write one turn, showing its prose as it comes; None where no result is due."""
        dropped = self.dialogue.dropped
        prompt = self.dialogue.prompt()
        if gone := self.dialogue.dropped - dropped:
            self._tell(Noted(f"the context is full: the {gone} oldest turns left it"))
        ids: list[int] = []
        interrupted = False
        try:
            self._listen(prompt, ids)
            interrupted = self._stopping()
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:
            self.dialogue.interrupt(ids)
            self._tell(Noted("stopped"))
            return None
        reply = self.dialogue.generated(ids)
        if reply.fault:
            self._tell(TurnMalformed(reply))
        elif reply.turn.call:
            self._tell(CallWritten(reply.turn.call))
        return reply if self.dialogue.expects == "result" else None

    def _listen(self, prompt: list[int], ids: list[int]) -> None:
        """Collect the ids of one turn in `ids`, its text going out piece by piece."""
        tokenizer = self.dialogue.tokenizer
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        prose = True
        for id_ in self._generate(prompt):
            ids.append(id_)
            prose = prose and not tokenizer.is_special(id_)
            if prose and (piece := decoder.decode(tokenizer.raw([id_]))):
                self._tell(TextWritten(piece))
            if id_ in self.dialogue.stops or len(ids) >= self.dialogue.max_new or self._stopping():
                break
        if rest := decoder.decode(b"", final=True):
            self._tell(TextWritten(rest))

    def _answer(self, reply: Reply) -> bool:
        """Give the model the result of its call, run if valid and allowed; whether it goes on then."""
        call = reply.turn.call
        if call is None:
            return self._end(None, unreadable(str(reply.fault)))
        if reason := self._check(call):
            return self._end(call, reason if reason.startswith("error:") else f"error: {reason}")
        if not self._allowed(call):
            return self._end(call, REJECTED, goes_on=False)
        try:
            result = self._tools.run(call)
        except KeyboardInterrupt:
            return self._end(call, "error: interrupted by user", goes_on=False)
        return self._end(call, result)

    def _end(self, call: ToolCall | None, result: str, goes_on: bool = True) -> bool:
        self.dialogue.result(result, then="assistant" if goes_on else "user")
        self._tell(CallEnded(call, result))
        return goes_on

    def _allowed(self, call: ToolCall) -> bool:
        if call.name not in ASKED_FOR or call.name in self.always:
            return True
        try:
            approval = self._approve(call)
        except (KeyboardInterrupt, EOFError):
            return False
        if approval is Approval.ALWAYS:
            self.always.add(call.name)
        return approval is not Approval.NO
