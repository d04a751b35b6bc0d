"""What must hold of any rollout, whoever wrote it: structure first, then the constitution's rules.

`flaws` is total: whatever a teacher sends, it returns findings and never raises.
"""

import re
from collections.abc import Sequence

from nanocode_core.agent.tools import validate_call
from nanocode_core.constitution import soul
from nanocode_core.constitution.soul import Flaw, Rules
from nanocode_core.tokenizer.conversation import Conversation, Turn

REJECTED = "rejected by user"
LEAKED = re.compile(r"<\|[a-z_]+\|>|</?tool_call>|^ {0,4}\d+→|\"arguments\"\s*:|\[tool result\]", re.M)
PREFIX = re.compile(r"^ {0,4}\d{1,5}→", re.M)


def flaws(conversation: Conversation, rules: Rules) -> list[Flaw]:
    """Everything wrong with a conversation, in the order of its turns."""
    turns = conversation.turns
    found = [*_order(turns), *_calls(turns), *_rejections(turns), *_leaks(turns)]
    return sorted([*found, *soul.flaws(conversation, rules)], key=lambda flaw: flaw.turn)


def _order(turns: Sequence[Turn]) -> list[Flaw]:
    """User first, every call with its result, an assistant's last word at the end."""
    found = []
    if not turns or turns[0].role != "user":
        found.append(Flaw(0, "does not begin with the user"))
    for index, turn in enumerate(turns):
        before = turns[index - 1] if index else None
        called = before is not None and before.call is not None
        if called != (turn.role == "tool"):
            found.append(Flaw(index, "a call without its result" if called else "a result without a call"))
        if turn.role == "assistant" and (before is None or before.role == "assistant"):
            found.append(Flaw(index, "an assistant turn that nobody asked for"))
        if turn.role == "assistant" and turn.call is None and not turn.text.strip():
            found.append(Flaw(index, "says nothing"))
    if not turns or turns[-1].role != "assistant" or turns[-1].call is not None:
        found.append(Flaw(max(0, len(turns) - 1), "has no last word"))
    return found


def _calls(turns: Sequence[Turn]) -> list[Flaw]:
    """Known tools with proper arguments; edits that copy a line without its number."""
    found = []
    for index, turn in enumerate(turns):
        if turn.call is None:
            continue
        problem = validate_call(turn.call)
        if problem:
            found.append(Flaw(index, problem))
        if turn.call.name == "Edit" and any(PREFIX.search(value) for value in turn.call.arguments.values()):
            found.append(Flaw(index, "edits with line numbers in the text"))
    return found


def _rejections(turns: Sequence[Turn]) -> list[Flaw]:
    """A rejection is followed by the user's word, and the rejected call is not sent again."""
    found = []
    rejected = []
    for index, turn in enumerate(turns):
        if turn.role == "tool" and turn.text == REJECTED:
            rejected.append(turns[index - 1].call)
            if index + 1 < len(turns) and turns[index + 1].role != "user":
                found.append(Flaw(index + 1, "goes on after a rejection without the user"))
        elif turn.call is not None and turn.call in rejected:
            found.append(Flaw(index, "sends a rejected call again"))
    return found


def _leaks(turns: Sequence[Turn]) -> list[Flaw]:
    """Format text in the prose, or special tokens in a call."""
    return [
        Flaw(index, "format text in the prose")
        for index, turn in enumerate(turns)
        if turn.role == "assistant"
        and (LEAKED.search(turn.text) or (turn.call and any("<|" in value for value in turn.call.arguments.values())))
    ]
