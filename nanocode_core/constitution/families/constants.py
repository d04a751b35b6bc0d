"""Families about constants: look one up, change one, and what to do when things are not as asked."""

import random
import re

from nanocode_core.constitution.families.family import Family, Past, edit, grep, make, read
from nanocode_core.constitution.families.words import NOUNS, constant_name, distinct, file_name, number
from nanocode_core.constitution.task import Task, UserAction
from nanocode_core.tokenizer.conversation import Turn


def module(rng: random.Random, *values: tuple[str, int], more: int = 2) -> str:
    """A module that sets these constants and up to `more` others, in random order."""
    pairs = dict(values)
    while len(pairs) < len(values) + more:
        pairs.setdefault(constant_name(rng), number(rng))
    lines = [f"{name} = {value}" for name, value in pairs.items()]
    rng.shuffle(lines)
    return "\n".join(lines) + "\n"


def _two_numbers(rng: random.Random) -> tuple[int, int]:
    old = number(rng)
    return old, rng.choice([value for value in range(1, 100) if value != old])


def _set_constant(rng: random.Random) -> Task:
    name, (old, new), (path, other) = constant_name(rng), _two_numbers(rng), distinct(rng, file_name, 2)
    files = {path: module(rng, (name, old), more=rng.randrange(3)), other: module(rng, more=rng.randrange(1, 3))}
    return make(
        "set_constant",
        rng,
        (
            "set {name!c} to {value}",
            "change {name!c} to {value}",
            "please set {name!c} to {value}.",
            "{name!c} should be {value}",
            "make {name!c} {value}, please",
            "can you change {name!c} to {value}?",
            "i want {name!c} to be {value}",
            "put {name!c} at {value}",
        ),
        files,
        [{"kind": "assigns", "path": path, "name": name, "value": new}, {"kind": "unchanged", "except": [path]}],
        [edit(path, f"{name} = {old}", f"{name} = {new}")],
        f"{name} is {new} now.",
        name=name,
        value=new,
    )


def _play_set_constant(task: Task, past: Past) -> Turn:
    name, value = task.facts["name"], task.facts["value"]
    if not past.results("Grep"):
        return past.say("search", grep(name), name=name)
    hit = next(hit for hit in past.hits() if name in hit.text.split())
    if not past.done("Edit"):
        return past.say("change", edit(hit.path, hit.text, f"{name} = {value}"))
    return past.say("set", name=name, value=value, path=hit.path)


def _read_value(rng: random.Random) -> Task:
    name, value, (path, other) = constant_name(rng), number(rng), distinct(rng, file_name, 2)
    return make(
        "read_value",
        rng,
        (
            "what is {name!c} in {path!c}?",
            "which value does {name!c} have in {path!c}?",
            "tell me {name!c} from {path!c}",
            "look up {name!c} in {path!c}",
            "what does {path!c} set {name!c} to?",
            "read {path!c} and tell me {name!c}",
            "{name!c} in {path!c}, what is it?",
        ),
        {path: module(rng, (name, value), more=rng.randrange(1, 4)), other: module(rng, more=1)},
        [{"kind": "answer", "contains": [str(value)]}, {"kind": "unchanged"}],
        [read(path)],
        f"{name} is {value}.",
        name=name,
        path=path,
    )


def _value(line: str) -> str:
    return line.partition("=")[2].strip()


def _play_read_value(task: Task, past: Past) -> Turn:
    name, path = task.facts["name"], task.facts["path"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    return past.say("value", name=name, path=path, value=_value(past.line(f"{name} = ")))


def _missing_file(rng: random.Random) -> Task:
    name, value = constant_name(rng), number(rng)
    missing, path, other = distinct(rng, file_name, 3)
    there = rng.random() < 0.7
    files = {path: module(rng, *([(name, value)] if there else []), more=rng.randrange(1, 3))}
    files[other] = module(rng, more=1)
    answer = {"contains": [str(value), path]} if there else {"any": [["no", "not", "nowhere", "can't"]]}
    return make(
        "missing_file",
        rng,
        (
            "what is {name!c} in {missing!c}?",
            "look up {name!c} in {missing!c}",
            "tell me {name!c} from {missing!c}",
            "what does {missing!c} set {name!c} to?",
            "read {missing!c} and tell me {name!c}",
            "which value does {name!c} have in {missing!c}?",
        ),
        files,
        [{"kind": "answer", **answer}, {"kind": "called", "tool": "Grep"}, {"kind": "unchanged"}],
        [grep(name)],
        f"there's no {missing}, but {name} is {value} in {path}." if there else f"i can't find {name}.",
        name=name,
        missing=missing,
    )


def _play_missing_file(task: Task, past: Past) -> Turn:
    name, missing = task.facts["name"], task.facts["missing"]
    if not past.results("Read"):
        return past.say("read", read(missing), path=missing)
    if not past.results("Grep"):
        return past.say("no_file", grep(name), path=missing, name=name)
    if not past.hits():
        return past.say("nowhere", missing=missing, name=name)
    hit = next(hit for hit in past.hits() if name in hit.text.split())
    return past.say("elsewhere", missing=missing, name=name, path=hit.path, value=_value(hit.text))


_LEAVE = ("no, leave it as it is", "no, don't change it", "stop, leave it alone", "i changed my mind, leave it")


def _rejected_edit(rng: random.Random) -> Task:
    name, path, (old, new) = constant_name(rng), file_name(rng), _two_numbers(rng)
    other = rng.choice([value for value in range(1, 100) if value not in (old, new)])
    leave = rng.random() < 0.35
    say = (
        rng.choice(_LEAVE)
        if leave
        else rng.choice(
            (
                f"no, make it {other}",
                f"wait, {other} instead",
                f"not {new}, i want {other}",
                f"no, {other} is better",
                f"use {other}",
            )
        )
    )
    wanted = {"kind": "unchanged"} if leave else {"kind": "assigns", "path": path, "name": name, "value": other}
    return make(
        "rejected_edit",
        rng,
        (
            "set {name!c} to {value} in {path!c}",
            "change {name!c} in {path!c} to {value}",
            "in {path!c}, make {name!c} {value}",
            "{name!c} in {path!c} should be {value}",
            "please set {name!c} in {path!c} to {value}",
            "can you put {name!c} at {value} in {path!c}?",
        ),
        {path: module(rng, (name, old), more=rng.randrange(1, 3))},
        [wanted, {"kind": "unchanged", "except": [path]}, {"kind": "called", "tool": "Read"}, {"kind": "answer"}],
        [read(path)] if leave else [read(path), edit(path, f"{name} = {old}", f"{name} = {other}")],
        f"ok, i left {path} as it was." if leave else f"{name} is {other} now.",
        [UserAction("Edit", say)],
        name=name,
        path=path,
        value=new,
    )


def _play_rejected_edit(task: Task, past: Past) -> Turn:
    name, path = task.facts["name"], task.facts["path"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    line = past.line(f"{name} = ")
    if not past.rejected:
        return past.say("change", edit(path, line, f"{name} = {task.facts['value']}"))
    numbers = re.findall(r"\d+", past.said())
    if not numbers:
        return past.say("left", path=path)
    if not past.done("Edit"):
        return past.say("other_value", edit(path, line, f"{name} = {numbers[-1]}"), value=numbers[-1])
    return past.say("set", name=name, value=numbers[-1], path=path)


def _ask_first(rng: random.Random) -> Task:
    path, (old, new) = file_name(rng), _two_numbers(rng)
    topic, first, second = rng.sample(NOUNS, 3)
    names = [f"{topic}_{first}".upper(), f"{topic}_{second}".upper()]
    two = rng.random() < 0.65
    wanted = rng.choice(names) if two else names[0]
    values = [(wanted, old), *((name, number(rng)) for name in names if two and name != wanted)]
    unlike = [name for name in distinct(rng, constant_name, 3) if not name.startswith(topic.upper())]
    others = [(name, number(rng)) for name in unlike[: 1 if two else 2]]
    replies = (wanted, f"{wanted} please", f"i mean {wanted}", f"{wanted}, thanks")
    return make(
        "ask_first",
        rng,
        (
            "set the {topic} value to {value} in {path!c}",
            "change the {topic} number in {path!c} to {value}",
            "the {topic} constant in {path!c} should be {value}",
            "in {path!c}, set the {topic} one to {value}",
            "please make the {topic} setting in {path!c} {value}",
            "put the {topic} constant of {path!c} at {value}",
        ),
        {path: module(rng, *values, *others, more=0)},
        [
            {"kind": "assigns", "path": path, "name": wanted, "value": new},
            *({"kind": "assigns", "path": path, "name": name, "value": value} for name, value in values[1:]),
            {"kind": "unchanged", "except": [path]},
            {"kind": "called", "tool": "Read"},
        ],
        [read(path), edit(path, f"{wanted} = {old}", f"{wanted} = {new}")],
        f"{wanted} is {new} now.",
        [UserAction("end", rng.choice(replies))] if two else [],
        topic=topic,
        path=path,
        value=new,
    )


def _play_ask_first(task: Task, past: Past) -> Turn:
    path, value = task.facts["path"], task.facts["value"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    names = [line.split(" = ")[0] for line in past.lines() if line.startswith(task.facts["topic"].upper() + "_")]
    asked = sum(turn.role == "user" for turn in past.turns) > 1
    if len(names) > 1 and not asked:
        return past.say("which", first=names[0], second=names[1])
    name = next((name for name in names if asked and name in past.said()), names[0])
    if not past.done("Edit"):
        change = edit(path, past.line(f"{name} = "), f"{name} = {value}")
        return past.say("other_name", change, new=name) if asked else past.say("change", change)
    return past.say("set", name=name, value=value, path=path)


FAMILIES = (
    Family("set_constant", "change the value of a constant whose file is not given", _set_constant, _play_set_constant),
    Family("read_value", "say which value a constant has in a given file", _read_value, _play_read_value),
    Family("missing_file", "a value is asked for from a file that does not exist", _missing_file, _play_missing_file),
    Family(
        "rejected_edit", "the user rejects an edit and says what he wants instead", _rejected_edit, _play_rejected_edit
    ),
    Family(
        "ask_first", "a request that may mean two constants; the user answers one question", _ask_first, _play_ask_first
    ),
)
