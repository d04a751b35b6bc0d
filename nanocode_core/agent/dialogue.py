"""A conversation with the model as a state machine: no model, no tools, no terminal in here.

The caller moves it: `user` puts a message in, `prompt` says which ids the model continues,
`generated` takes what the model wrote, `result` takes what came of its call. The chat moves one
dialogue, the evaluation moves a batch of them in lockstep.

The ids that the model wrote are kept as they are, never encoded anew from their text, so that each
prompt begins with the one before it and a KV cache has to take in the new turns only. The context
holds a window of the conversation: when it is full the oldest turns leave it. A window always opens
with a user turn, which carries the system text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanocode_core.tokenizer import Conversation, MalformedTurn, Tokenizer, Turn, parse_assistant, render_turn

REJECTED = "rejected by user"
"""The tool result of a call that the user did not allow."""

SHORTEST_CONTEXT = 64

Expects = Literal["user", "assistant", "result"]


class MessageTooLong(ValueError):
    """A user message that would leave no room for work in the context."""


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end generation: the end of the assistant's turn, and whatever can't stand inside one."""
    t = tokenizer
    return frozenset(
        {t.bos, t.user_start, t.user_end, t.assistant_start, t.assistant_end, t.tool_result_start, t.tool_result_end}
    )


def unreadable(fault: str) -> str:
    """The result of a call that could not be parsed."""
    return f"error: the call could not be read: {fault}"


@dataclass(frozen=True)
class Reply:
    """What the model wrote in one turn.

    Attributes:
        turn: the turn; of a malformed one the text before its fault, without a call.
        fault: why the ids are no whole turn; None where they are.
        raw: the generated ids as text, special tokens written out.
    """

    turn: Turn
    fault: str | None
    raw: str


@dataclass(frozen=True)
class _Kept:
    turn: Turn
    ids: tuple[int, ...]
    """As the model reads it; without the system text."""


class Dialogue:
    """One conversation and the window of it that the model sees.

    Args:
        context: positions that the model may use.
        max_new: ids the model may write in one turn, the end included; a fifth of the context at most.
        system: text put in front of the window's first user message.

    Raises:
        ValueError: the context is shorter than SHORTEST_CONTEXT.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, max_new: int, system: str = ""):
        if context < SHORTEST_CONTEXT:
            raise ValueError(f"a dialogue needs a context of {SHORTEST_CONTEXT} positions, not {context}")
        self.tokenizer = tokenizer
        self.context = context
        self.max_new = max(1, min(max_new, context // 5))
        self.system = system
        self.stops = stop_ids(tokenizer)
        self.clear()

    def clear(self) -> None:
        """Forget everything that was said."""
        self.expects: Expects = "user"
        self._all: list[_Kept] = []
        self._window: list[_Kept] = []

    @property
    def dropped(self) -> int:
        """Turns that the context no longer holds."""
        return len(self._all) - len(self._window)

    @property
    def conversation(self) -> Conversation:
        """All of the conversation, dropped turns included."""
        return Conversation(tuple(kept.turn for kept in self._all), self.system if self._all else "")

    @property
    def ids(self) -> list[int]:
        """All of the conversation as ids: what was rendered and what the model wrote."""
        return self._render(self._all)

    def user(self, text: str) -> None:
        """Put a user's message in.

        Raises:
            MessageTooLong: it takes more than two fifths of the context.
        """
        self._require("user")
        turn = Turn("user", text)
        length = len(self._carrier(turn))
        if length > 2 * self.context // 5:
            raise MessageTooLong(
                f"the message takes {length} tokens and the model can hold {self.context} in all; "
                f"keep it below {2 * self.context // 5}"
            )
        self._keep(_Kept(turn, tuple(render_turn(turn, self.tokenizer))))
        self.expects = "assistant"

    def prompt(self) -> list[int]:
        """The ids after which the model writes its turn, at most context - max_new of them.

        Drops the oldest turns where they don't fit: whole exchanges first, then the calls of the
        running one, never the last user message or the last result.
        """
        self._require("assistant")
        while len(ids := self._render(self._window)) + 1 > self.context - self.max_new:
            self._drop()
        return [*ids, self.tokenizer.assistant_start]

    def generated(self, ids: Sequence[int]) -> Reply:
        """Take the ids that the model wrote after `prompt`, up to and with the first of `stops`.

        Where it tried to call a tool a result is due next (also after a malformed call: the result
        is an error then); else it is the user's turn.
        """
        self._require("assistant")
        t = self.tokenizer
        written = list(ids)[: self.max_new]
        turn, fault = self._parse(written)
        body = [id_ for id_ in written if id_ not in self.stops]
        self._keep(_Kept(turn, (t.assistant_start, *body, t.assistant_end)))
        self.expects = "result" if turn.call or (fault and t.tool_call_start in written) else "user"
        return Reply(turn, fault, t.decode(written))

    def result(self, text: str, then: Literal["assistant", "user"] = "assistant") -> None:
        """Take the result of the call; `then` is whose turn it is (the user's after a rejection).

        The model reads as much of it as its context holds beside the last message and the call.
        """
        self._require("result")
        turn = Turn("tool", text)
        self._keep(_Kept(turn, tuple(self._cut(render_turn(turn, self.tokenizer)))))
        self.expects = then

    def interrupt(self, ids: Sequence[int]) -> Reply:
        """Take the ids that the model had written when it was stopped; it is the user's turn then."""
        reply = self.generated([id_ for id_ in ids if not self.tokenizer.is_special(id_)])
        return Reply(reply.turn, "interrupted", reply.raw)

    def _parse(self, ids: list[int]) -> tuple[Turn, str | None]:
        try:
            return parse_assistant(ids, self.tokenizer), None
        except MalformedTurn as fault:
            start = next((place for place, id_ in enumerate(ids) if self.tokenizer.is_special(id_)), len(ids))
            return Turn("assistant", self.tokenizer.decode(ids[:start])), fault.reason

    def _require(self, state: Expects) -> None:
        if self.expects != state:
            raise RuntimeError(f"the dialogue waits for {self.expects}, not for {state}")

    def _carrier(self, turn: Turn) -> list[int]:
        """A window's first user turn, with the system text."""
        return render_turn(Conversation((turn,), self.system).merged()[0], self.tokenizer)

    def _keep(self, kept: _Kept) -> None:
        self._all.append(kept)
        self._window.append(kept)

    def _render(self, turns: list[_Kept]) -> list[int]:
        out = [self.tokenizer.bos]
        for place, kept in enumerate(turns):
            out += self._carrier(kept.turn) if place == 0 and self.system else kept.ids
        return out

    def _drop(self) -> None:
        """Move the window on by one exchange, or take the oldest call out of the running exchange.

        The limits on a message, a turn and a result see to it that there is one to take out.
        """
        later = (place for place, kept in enumerate(self._window) if place and kept.turn.role == "user")
        following = next(later, None)
        if following is not None:
            del self._window[:following]
        else:
            del self._window[1:3]

    def _cut(self, ids: list[int]) -> list[int]:
        """A rendered result, shortened to what fits beside the last message and the last turn."""
        message = next(kept for kept in reversed(self._window) if kept.turn.role == "user")
        taken = 1 + len(self._carrier(message.turn)) + len(self._window[-1].ids) + 1
        room = self.context - self.max_new - taken
        if len(ids) <= room:
            return ids
        note = self.tokenizer.encode("\n[cut]")
        return [*ids[: room - len(note) - 1], *note, ids[-1]]
