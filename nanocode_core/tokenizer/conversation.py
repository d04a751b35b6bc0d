"""Conversations, and the token format in which the model reads and writes them.

    <|bos|> turn turn ...
    user       <|user_start|> text <|user_end|>
    assistant  <|assistant_start|> text [call] <|assistant_end|>
    call       <|tool_call_start|> Name { <|tool_arg|> key <|tool_val|> value } <|tool_call_end|>
    tool       <|tool_result_start|> text <|tool_result_end|>

System text goes in front of the first user turn's text, an empty line between. Every text is
encoded on its own, so `render` is the concatenation of its turns' `render_turn`. The loss falls on
what the model has to write: an assistant turn without its start token.
"""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, cast

from nanocode_core.tokenizer.tokenizer import Tokenizer

Role = Literal["user", "assistant", "tool"]
_ROLES = ("user", "assistant", "tool")


class MalformedTurn(Exception):
    """Generated ids that are no assistant turn; `reason` says why, in words fit for a table."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. Arguments keep their order; every value is text.

    Raises:
        ValueError: an empty name or argument name, which the token format can't hold.
    """

    name: str
    arguments: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the format can't express."""
        if not self.name:
            raise ValueError("a tool call needs a name")
        if "" in self.arguments:
            raise ValueError(f"an argument of {self.name} has an empty name")


@dataclass(frozen=True)
class Turn:
    """One turn; for a tool turn `text` is the result. Only an assistant turn has a call, after its text."""

    role: Role
    text: str
    call: ToolCall | None = None

    def __post_init__(self) -> None:
        """Check role and call."""
        if self.role not in _ROLES:
            raise ValueError(f"unknown role {self.role!r}; roles are {', '.join(_ROLES)}")
        if self.call is not None and self.role != "assistant":
            raise ValueError(f"a {self.role} turn can't hold a tool call")


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and the system text that the first user turn is read with."""

    turns: tuple[Turn, ...]
    system: str = ""

    def merged(self) -> tuple[Turn, ...]:
        """The turns as they are rendered: the system text put in front of the first user turn.

        Raises:
            ValueError: there is system text and no user turn to carry it.
        """
        if not self.system:
            return self.turns
        for place, turn in enumerate(self.turns):
            if turn.role == "user":
                carrier = replace(turn, text=f"{self.system}\n\n{turn.text}")
                return (*self.turns[:place], carrier, *self.turns[place + 1 :])
        raise ValueError("a conversation with system text needs a user turn")


def turn_to_json(turn: Turn) -> dict[str, Any]:
    """A turn as a JSON-able dict: {"role", "text", "call": {"name", "arguments"} or None}."""
    call = None if turn.call is None else {"name": turn.call.name, "arguments": dict(turn.call.arguments)}
    return {"role": turn.role, "text": turn.text, "call": call}


def turn_from_json(value: Any) -> Turn:
    """The turn in a dict of `turn_to_json`; `call` may be left out.

    Raises:
        ValueError: a field is missing or is not what it should be.
    """
    turn = _typed(value, dict, "a turn")
    role = _typed(turn.get("role"), str, "a turn's role")
    text = _typed(turn.get("text"), str, "a turn's text")
    call = None
    if turn.get("call") is not None:
        fields = _typed(turn["call"], dict, "a call")
        arguments = _typed(fields.get("arguments", {}), dict, "a call's arguments")
        for key, argument in arguments.items():
            _typed(argument, str, f"the argument {key!r}")
        call = ToolCall(_typed(fields.get("name"), str, "a call's name"), dict(arguments))
    return Turn(cast(Role, role), text, call)


def to_json(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a JSON-able dict: {"system", "turns": [...]}."""
    return {"system": conversation.system, "turns": [turn_to_json(turn) for turn in conversation.turns]}


def from_json(value: Any) -> Conversation:
    """The conversation in a dict of `to_json`; `system` may be left out.

    Raises:
        ValueError: a field is missing or is not what it should be.
    """
    fields = _typed(value, dict, "a conversation")
    turns = _typed(fields.get("turns"), list, "a conversation's turns")
    system = _typed(fields.get("system", ""), str, "a conversation's system text")
    return Conversation(tuple(turn_from_json(turn) for turn in turns), system)


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be a {kind.__name__}, not {type(value).__name__}")
    return value


def render(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and its loss mask of the same length.

    The mask is 1 where the model has to predict the id: text, call and end of assistant turns.
    """
    ids, mask = [tokenizer.bos], [0]
    for turn in conversation.merged():
        rendered = render_turn(turn, tokenizer)
        ids += rendered
        mask += turn_mask(turn, len(rendered))
    return ids, mask


def turn_mask(turn: Turn, length: int) -> list[int]:
    """The loss mask of a rendered turn of `length` ids."""
    return [0] + [1] * (length - 1) if turn.role == "assistant" else [0] * length


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation up to and with the assistant_start after which the model writes."""
    return [*render(conversation, tokenizer)[0], tokenizer.assistant_start]


def render_turn(turn: Turn, tokenizer: Tokenizer) -> list[int]:
    """Ids of one turn, with its start and end tokens, to go on from a cached conversation."""
    text = tokenizer.encode(turn.text)
    if turn.role == "user":
        return [tokenizer.user_start, *text, tokenizer.user_end]
    if turn.role == "tool":
        return [tokenizer.tool_result_start, *text, tokenizer.tool_result_end]
    call = [] if turn.call is None else _render_call(turn.call, tokenizer)
    return [tokenizer.assistant_start, *text, *call, tokenizer.assistant_end]


def _render_call(call: ToolCall, tokenizer: Tokenizer) -> list[int]:
    arguments = (
        [tokenizer.tool_arg, *tokenizer.encode(key), tokenizer.tool_val, *tokenizer.encode(value)]
        for key, value in call.arguments.items()
    )
    return [
        tokenizer.tool_call_start,
        *tokenizer.encode(call.name),
        *chain.from_iterable(arguments),
        tokenizer.tool_call_end,
    ]


def parse_assistant(ids: list[int], tokenizer: Tokenizer) -> Turn:
    """The assistant turn in generated ids: all that follows assistant_start, assistant_end included.

    Stray bytes in the turn's text show as U+FFFD, as text is only read. In a call they are an
    error: what would be run has to be exactly what the model wrote.

    Raises:
        MalformedTurn: the ids are not one whole turn in the format.
    """
    if not ids or ids[-1] != tokenizer.assistant_end:
        raise MalformedTurn("no end: the turn was cut off before assistant_end")
    body = ids[:-1]
    start = next((place for place, id_ in enumerate(body) if tokenizer.is_special(id_)), len(body))
    text = tokenizer.decode(body[:start])
    if start == len(body):
        return Turn("assistant", text)
    if body[start] != tokenizer.tool_call_start:
        raise MalformedTurn(f"{tokenizer.decode(body[start : start + 1])} in the text of an assistant turn")
    return Turn("assistant", text, _parse_call(body[start + 1 :], tokenizer))


def _parse_call(ids: list[int], tokenizer: Tokenizer) -> ToolCall:
    """The call in the ids after tool_call_start; nothing may follow its tool_call_end."""
    segments: list[list[int]] = [[]]
    separators: list[int] = []
    for id_ in ids:
        if tokenizer.is_special(id_):
            separators.append(id_)
            segments.append([])
        else:
            segments[-1].append(id_)
    pairs = max(0, len(separators) - 1) // 2
    if separators != [tokenizer.tool_arg, tokenizer.tool_val] * pairs + [tokenizer.tool_call_end]:
        if tokenizer.tool_call_end not in separators:
            raise MalformedTurn("a tool call without its end")
        raise MalformedTurn("a tool call whose special tokens are out of order")
    if segments[-1]:
        raise MalformedTurn("text after a tool call")
    name, *fields = (_exact(segment, tokenizer) for segment in segments[:-1])
    if not name:
        raise MalformedTurn("a tool call without a name")
    arguments: dict[str, str] = {}
    for key, value in zip(fields[::2], fields[1::2], strict=True):
        if not key:
            raise MalformedTurn("an argument without a name")
        if key in arguments:
            raise MalformedTurn(f"the argument {key!r} twice")
        arguments[key] = value
    return ToolCall(name, arguments)


def _exact(ids: list[int], tokenizer: Tokenizer) -> str:
    try:
        return tokenizer.raw(ids).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedTurn("a tool call that is not valid UTF-8") from None
