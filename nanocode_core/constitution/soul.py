"""The constitution as a file: its text for teachers and critics, its checkable rules for scripts.

The rules stand under the heading "what a script can check", one list item a rule, `name: value`.
A user may edit them: a rule that is left out is not enforced, a line that is not known as a rule
counts as text only.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanocode_core.errors import UserError
from nanocode_core.tokenizer.conversation import Conversation, Turn

if TYPE_CHECKING:
    from nanocode_core.config import Config

REJECTED = "rejected by user"
UNSURE = ("not sure", "unsure", "can't tell", "don't know", "which", "do you mean")
PROPER_NOUNS = frozenset({"Python", "Linux", "Unix", "English", "JSON"})


@dataclass(frozen=True)
class Rules:
    """What a script checks; None, or an empty tuple: not enforced."""

    lowercase: bool = False
    sentences: int | None = None
    words: int | None = None
    question: str | None = None
    """May the last turn ask something: "never" or "unsure" (only when it says it is unsure)."""
    read_before_edit: bool = False
    repeats: int | None = None
    """How often in a row the same call may be sent."""
    never_say: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flaw:
    """Something wrong with a conversation, and the index of the turn where it shows."""

    turn: int
    reason: str


@dataclass(frozen=True)
class Soul:
    """A constitution."""

    text: str
    sha256: str
    rules: Rules

    @classmethod
    def of(cls, text: str) -> "Soul":
        """The constitution in a text."""
        return cls(text, hashlib.sha256(text.encode()).hexdigest(), parse_rules(text))

    @classmethod
    def load(cls, path: str | Path) -> "Soul":
        """The constitution in a file.

        Raises:
            UserError: the file is missing, empty or not text.
        """
        remedy = "write who the agent is there, or restore it with: git checkout SOUL.md"
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"soul: {path} does not exist; {remedy}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"soul: {path} can't be read ({error}); {remedy}") from None
        if not text.strip():
            raise UserError(f"soul: {path} is empty; {remedy}")
        return cls.of(text)


def soul_identity(config: "Config") -> dict[str, Any]:
    """What the constitution adds to a stage's identity: the hash of its content."""
    return {"soul.sha256": Soul.load(config.soul).sha256}


def parse_rules(text: str) -> Rules:
    """The rules under the heading that holds "script can check"; never fails."""
    section = re.search(r"^#+[^\n]*script can check[^\n]*\n(.*?)(?=^#|\Z)", text, re.M | re.S | re.I)
    items = re.split(r"^\s*[-*] ", section.group(1), flags=re.M)[1:] if section else []
    given: dict[str, str] = {}
    for item in items:
        # An item ends at an empty line: prose after the list belongs to no rule.
        name, colon, value = re.split(r"\n\s*\n", item)[0].partition(":")
        if colon:
            given[" ".join(name.lower().split())] = " ".join(value.split())
    question = given.get("question in the last turn", "").lower()
    return Rules(
        lowercase=_yes(given.get("lowercase prose")),
        sentences=_number(given.get("sentences in a turn, at most")),
        words=_number(given.get("words in a turn, at most")),
        question="unsure" if "unsure" in question else "never" if question in ("no", "never") else None,
        read_before_edit=_yes(given.get("read before edit")),
        repeats=_number(given.get("same call again, at most")),
        never_say=tuple(
            p.strip().lower() for p in re.findall(r'["“]([^"”]+)["”]', given.get("never say", "")) if p.strip()
        ),
    )


def _yes(value: str | None) -> bool:
    return value is not None and value.lower().rstrip(".") in ("yes", "true", "on")


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,6}", value) else None


def prose(text: str) -> str:
    """`text` without what is written the way code is: code, quotations, names and paths become `x`."""
    text = re.sub(r"```.*?(```|\Z)", " x ", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", " x ", text)
    text = re.sub(r'"[^"\n]*"|“[^”\n]*”|(?<!\w)\'[^\'\n]*\'(?!\w)', " x ", text)
    return re.sub(r"\S+", _plain, text)


def _plain(match: re.Match[str]) -> str:
    """One word as prose: `x` for an identifier, a path, a number or CamelCase, its punctuation kept."""
    word = match.group()
    core = word.strip(".,!?;:()\"'")
    coded = re.search(r"[_/\\=()\[\]<>{}]|\d|[a-z][A-Z]|\w[.:]\w", core)
    return word.replace(core, "x") if coded else word


def lowercase_prose(text: str) -> bool:
    """Whether the prose of a turn is lowercase: no capital starts a sentence, no capital I.

    Code, quotations, names and paths don't count, nor do words of several capitals (constants,
    abbreviations); a capitalised word inside a sentence may be a proper noun.
    """
    bare = prose(text)
    if re.search(r"\bI\b", bare):
        return False
    starts = re.findall(r"(?:^|[.!?:]\s+|\n\s*)[^\w\s]*([A-Z]\w*)", bare)
    return all(word in PROPER_NOUNS or (len(word) > 1 and word.isupper()) for word in starts)


def sentences(text: str) -> int:
    """How many sentences the prose of a text has."""
    return len([part for part in re.split(r"[.!?]+(?:\s+|$)|\n+", prose(text)) if re.search(r"\w", part)])


def asks(text: str) -> bool:
    """Whether the prose of a text holds a question."""
    return "?" in prose(text)


def banned(text: str, phrases: Sequence[str]) -> list[str]:
    """Which of the phrases stand in a text, case and kind of apostrophe ignored."""
    plain = " ".join(text.lower().replace("’", "'").split())
    return [p for p in phrases if re.search(rf"(?<!\w){re.escape(p.replace('’', chr(39)))}(?!\w)", plain)]


def turn_flaws(text: str, rules: Rules) -> list[str]:
    """What the rules find wrong with the text of one assistant turn."""
    found = [f"says {phrase!r}" for phrase in banned(text, rules.never_say)]
    if rules.lowercase and not lowercase_prose(text):
        found.append("prose is not lowercase")
    if rules.sentences is not None and sentences(text) > rules.sentences:
        found.append(f"more than {rules.sentences} sentences")
    if rules.words is not None and len(text.split()) > rules.words:
        found.append(f"more than {rules.words} words")
    return found


def flaws(conversation: Conversation, rules: Rules) -> list[Flaw]:
    """What the rules find wrong with a conversation, in the order of its turns."""
    turns = conversation.turns
    found = [
        Flaw(index, reason)
        for index, turn in enumerate(turns)
        if turn.role == "assistant"
        for reason in turn_flaws(turn.text, rules)
    ]
    if rules.read_before_edit:
        found += _unread_edits(turns)
    if rules.repeats is not None:
        found += _repeats(turns, rules.repeats)
    found += _last_question(turns, rules)
    return sorted(found, key=lambda flaw: flaw.turn)


def violations(conversation: Conversation, soul: Soul) -> list[str]:
    """What the rules of a constitution find wrong with a conversation."""
    return [flaw.reason for flaw in flaws(conversation, soul.rules)]


def _last_question(turns: Sequence[Turn], rules: Rules) -> list[Flaw]:
    """A question that ends the conversation. After a rejection the agent may ask what is wanted."""
    last = len(turns) - 1
    if rules.question is None or last < 0 or turns[last].role != "assistant" or turns[last].call is not None:
        return []
    text = turns[last].text
    rejected = last > 0 and turns[last - 1].text == REJECTED
    if not asks(text) or (rules.question == "unsure" and (rejected or any(w in text.lower() for w in UNSURE))):
        return []
    return [Flaw(last, "ends with a question")]


def _unread_edits(turns: Sequence[Turn]) -> list[Flaw]:
    """Edits of a file that no earlier result has shown: by Read, in a Grep hit, or by an Edit that made it."""
    found, known = [], set[str]()
    for index, turn in enumerate(turns):
        if turn.call is None:
            continue
        name = turn.call.arguments.get("file_path", "").removeprefix("./")
        result = turns[index + 1].text if index + 1 < len(turns) and turns[index + 1].role == "tool" else ""
        if turn.call.name == "Edit":
            if turn.call.arguments.get("old_string") and name not in known:
                found.append(Flaw(index, f"edits {name} without reading it"))
            elif not result.startswith("error:") and result != REJECTED:
                known.add(name)
        elif turn.call.name == "Read" and not result.startswith("error:"):
            known.add(name)
        elif turn.call.name == "Grep":
            known.update(re.findall(r"^([^:\n]+):\d+:", result, re.M))
    return found


def _repeats(turns: Sequence[Turn], most: int) -> list[Flaw]:
    """Calls that are sent more than `most` times in a row."""
    found, last, count = [], None, 0
    for index, turn in enumerate(turns):
        if turn.call is None:
            continue
        count = count + 1 if turn.call == last else 1
        last = turn.call
        if count > most:
            found.append(Flaw(index, f"sends the same call {count} times in a row"))
    return found
