"""Conversations as the page shows them: turns with their text, and calls as code or as a diff.

Reads the plain dictionaries of transcripts ({"system", "turns": [{"role", "text", "call"}]}) and
takes anything: what a model wrote need not be well formed, and a report must show it all the same.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FOLD_AFTER = 24
"""Lines of a tool result or call beyond which the page folds it away."""


@dataclass(frozen=True)
class DiffLine:
    """One line of a diff; `sign` is "+", "-" or " "."""

    sign: str
    text: str


@dataclass(frozen=True)
class CallView:
    """A tool call: a title (name and the short arguments), then code or a diff below it."""

    name: str
    title: str
    code: str = ""
    diff: tuple[DiffLine, ...] = ()

    @property
    def diff_text(self) -> str:
        """The diff as text, each line with its sign in front."""
        return "\n".join(line.sign + line.text for line in self.diff)

    @property
    def folded(self) -> bool:
        """Whether it is too long to show at once."""
        return self.code.count("\n") + len(self.diff) > FOLD_AFTER


@dataclass(frozen=True)
class TurnView:
    """One turn; `role` is "user", "assistant" or "tool". `fault`: why what was written is no proper turn."""

    role: str
    text: str
    call: CallView | None = None
    fault: str = ""

    @property
    def lines(self) -> int:
        """Lines of the text."""
        return self.text.count("\n") + 1

    @property
    def folded(self) -> bool:
        """Whether the text is too long to show at once."""
        return self.role == "tool" and self.lines > FOLD_AFTER

    @property
    def is_error(self) -> bool:
        """Whether it is a tool result that reports an error."""
        return self.role == "tool" and self.text.startswith(("error:", "rejected"))


def turns_of(conversation: Any, faults: Any = None) -> tuple[TurnView, ...]:
    """The turns of a conversation in plain dictionaries; whatever isn't a turn is left out.

    `faults` maps places in the conversation (as text) to what is wrong there.
    """
    turns = conversation.get("turns") if isinstance(conversation, Mapping) else conversation
    if not isinstance(turns, list | tuple):
        return ()
    wrong = faults if isinstance(faults, Mapping) else {}
    return tuple(
        _turn(turn, _text(wrong.get(str(place)))) for place, turn in enumerate(turns) if isinstance(turn, Mapping)
    )


def _turn(turn: Mapping[str, Any], fault: str) -> TurnView:
    role = str(turn.get("role", ""))
    call = turn.get("call")
    return TurnView(
        role=role if role in ("user", "assistant", "tool") else "tool",
        text=_text(turn.get("text")),
        call=call_view(call) if isinstance(call, Mapping) else None,
        fault=fault,
    )


def call_view(call: Mapping[str, Any]) -> CallView:
    """A call ({"name", "arguments"}) as a title and code; an Edit as a diff."""
    name = _text(call.get("name"))
    raw = call.get("arguments")
    arguments = {_text(k): _text(v) for k, v in raw.items()} if isinstance(raw, Mapping) else {}
    if name == "Bash" and set(arguments) == {"command"}:
        return CallView(name, "", code="$ " + arguments["command"])
    if name == "Edit" and "new_string" in arguments and set(arguments) <= {"file_path", "old_string", "new_string"}:
        diff = diff_lines(arguments.get("old_string", ""), arguments["new_string"])
        return CallView(name, arguments.get("file_path", ""), diff=diff)
    short = [value if key in ("file_path", "pattern") else f"{key} {value}" for key, value in arguments.items()]
    if all("\n" not in part for part in short) and len("".join(short)) <= 120:
        return CallView(name, "  ".join(short))
    return CallView(name, "", code="\n".join(f"{key}: {value}" for key, value in arguments.items()))


def diff_lines(old: str, new: str) -> tuple[DiffLine, ...]:
    """The lines of `old` and `new` as one diff with all of the context."""
    before, after = old.splitlines(), new.splitlines()
    out: list[DiffLine] = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            out += [DiffLine(" ", line) for line in before[i:j]]
        else:
            out += [DiffLine("-", line) for line in before[i:j]]
            out += [DiffLine("+", line) for line in after[k:m]]
    return tuple(out)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
