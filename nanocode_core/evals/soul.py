"""How far an agent's words and deeds in played tasks follow the rules of its constitution."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from nanocode_core.constitution.soul import Flaw, Rules, banned, flaws, lowercase_prose, prose
from nanocode_core.evals.agentic import Outcome
from nanocode_core.evals.rates import DIGITS, share
from nanocode_core.tokenizer import Conversation, from_json


def adherence(outcomes: Sequence[Outcome], rules: Rules) -> dict[str, Any]:
    """The figures of played tasks.

    lowercase_rate: agent turns in lowercase, of those with prose.
    banned_rate: agent turns with a phrase that is never to be said, of all.
    clean_rate: conversations without any flaw.
    flaws_per_turn, flaws: everything the rules find, over all agent turns and by kind.
    """
    conversations = [from_json(outcome["conversation"]) for outcome in outcomes]
    texts = [text for conversation in conversations for text in _said(conversation)]
    found: list[list[Flaw]] = [flaws(conversation, rules) for conversation in conversations]
    kinds = Counter(kind(flaw.reason) for flawed in found for flaw in flawed)
    return {
        "agent_turns": len(texts),
        "lowercase_rate": share(lowercase_prose(text) for text in texts if re.search(r"\w", prose(text))),
        "banned_rate": share(bool(banned(text, rules.never_say)) for text in texts),
        "clean_rate": share(not flawed for flawed in found),
        "flaws_per_turn": round(kinds.total() / len(texts), DIGITS) if texts else None,
        "flaws": dict(sorted(kinds.items())),
    }


def kind(reason: str) -> str:
    """A flaw's reason without the file names and numbers of the single case."""
    return re.sub(
        r"^edits .* without", "edits a file without", re.sub(r"call \d+ times", "call again and again", reason)
    )


def _said(conversation: Conversation) -> Iterator[str]:
    return (turn.text for turn in conversation.turns if turn.role == "assistant")
