"""The scripted teacher's drafts: what a good agent does, and in some drafts one planted flaw.

Which draft has which flaw is a hash of the task, so an interrupted run plays the same again. A first
draft is flawed with probability FLAWED, its revision with REVISED, a later one never. A wrong
old_string, which the agent sees and recovers from, is kept: a recovery is worth learning.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from nanocode_core.constitution.families import FAMILIES, Past, Voice
from nanocode_core.constitution.families.family import create, edit, read
from nanocode_core.constitution.families.voice import capitalise
from nanocode_core.constitution.soul import Rules, lowercase_prose
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import Turn

FLAWED = 0.35
REVISED = 0.08
RECOVERED = 0.02

_PRAISE = (
    "great question! ",
    "certainly! ",
    "absolutely! ",
    "of course! ",
    "what a great idea. ",
    "i'd be happy to help. ",
)
_OFFERS = (
    " let me know if you need anything else.",
    " feel free to ask for more.",
    " hope this helps.",
    " is there anything else?",
    " happy to help with more.",
)
_QUESTIONS = (" want me to add a test too?", " shall i clean up the rest?", " should i run it now?")
_CLAIMS = (" i ran it and it works.", " all tests pass.", " i tested it and it's fine.")
_RAMBLE = (
    " that was a nice little task. let me tell you how it went. first i thought about it for a while, then i looked at"
    " all the lines one by one, and after that i thought about it again, just to be sure. there are many ways to do"
    " this, and each has its own charm. in the end i took the simple way, because simple is good. i could say more."
)
_GUESSES = ("it's {n}.", "i think it's {n}.", "that should be {n}.")

ANYWHERE = ("capitals", "praise", "apology")
AT_THE_END = ("offer", "long", "question", "claim", "extra")


def draft(task: Task, turns: Sequence[Turn], rules: Rules, attempt: int) -> Turn:
    """The scripted agent's next turn in its attempt number `attempt` (from 0)."""
    voice = Voice(rules)
    past = Past(task, turns, voice)
    try:
        good = FAMILIES[task.family].play(task, past)
    except (LookupError, StopIteration):  # nothing in the results to go on with
        good = past.say("stuck")
    last = turns[-1].text
    if turns[-1].role == "tool" and last.startswith("error: old_string not found"):
        call = turns[-2].call
        path = call.arguments["file_path"] if call else ""
        good = past.say("retry", read(path), path=path)
    kind = planted(task, attempt)
    return good if kind is None else _spoil(kind, task, past, good, rules)


def planted(task: Task, attempt: int) -> str | None:
    """Which flaw attempt number `attempt` at this task has; None for most."""
    edits = [call for call in task.solution if call.name == "Edit" and "old_string" in call.arguments]
    share, pick = _unit(task, f"flaw {attempt}"), _unit(task, f"kind {attempt}")
    if attempt == 0 and edits and FLAWED <= share < FLAWED + RECOVERED:
        return "wrong_old"
    if share >= {0: FLAWED, 1: REVISED}.get(attempt, 0.0):
        return None
    ran = any(call.name == "Bash" for call in task.solution)
    kinds = [kind for kind in (*ANYWHERE, *AT_THE_END) if not (ran and kind == "claim")]
    if edits:
        kinds += ["unread", "repeat"]
    if not edits and task.solution and not task.family.startswith("write"):
        kinds += ["guess", "guess"]
    return kinds[int(pick * len(kinds))]


def _spoil(kind: str, task: Task, past: Past, good: Turn, rules: Rules) -> Turn:
    """The good turn, with the flaw if this is the turn for it."""
    index = sum(turn.role == "assistant" for turn in past.turns)
    final = good.call is None
    early = _unit(task, "early") < 0.5

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(_unit(task, kind) * len(choices))]

    if kind in ANYWHERE and (index == 0 if early else final):
        text = {
            "capitals": _in_capitals(good.text),
            "praise": one_of(_PRAISE) + good.text,
            "apology": "i apologize for the wait. " + good.text,
        }[kind]
        return replace(good, text=text if rules.lowercase else capitalise(text))
    if final and kind in ("offer", "question", "claim", "long"):
        more = {"offer": one_of(_OFFERS), "question": one_of(_QUESTIONS), "claim": one_of(_CLAIMS), "long": _RAMBLE}[
            kind
        ]
        text = good.text + more
        return replace(good, text=text if rules.lowercase else capitalise(text))
    if final and kind == "extra" and not any(_makes(turn, "notes.md") for turn in past.turns):
        return Turn("assistant", "i'll leave some notes too.", create("notes.md", "# notes\n"))
    if kind == "guess" and index == 0:
        return Turn("assistant", one_of(_GUESSES).format(n=1 + int(_unit(task, "number") * 99)))
    changes = [call for call in task.solution if "old_string" in call.arguments]
    if kind == "unread" and index == 0:
        return Turn("assistant", "changing it.", changes[0])
    if kind == "repeat" and 0 < index < 3 and past.turns[1].call is not None:
        return Turn("assistant", "once more.", past.turns[1].call)
    if kind == "wrong_old" and good.call is not None and good.call.name == "Edit" and not past.results("Edit"):
        arguments = good.call.arguments
        return replace(good, call=edit(arguments["file_path"], arguments["old_string"] + ";", arguments["new_string"]))
    return good


def _in_capitals(text: str) -> str:
    """The text with a capitalised start, which the name of a file at its start does not count as."""
    shown = capitalise(text)
    return f"Alright, {text}" if lowercase_prose(shown) else shown


def _makes(turn: Turn, path: str) -> bool:
    return turn.call is not None and turn.call.arguments.get("file_path") == path


def _unit(task: Task, salt: str) -> float:
    """A number in [0, 1) that depends on the task and the salt only."""
    return int.from_bytes(hashlib.sha256(f"{task.id}/{task.request}/{salt}".encode()).digest()[:4], "big") / 2**32
