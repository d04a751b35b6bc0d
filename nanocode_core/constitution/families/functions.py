"""Families about functions: find, rename, document, add, repair, and no longer call them."""

import random

from nanocode_core.constitution.families.family import Family, Past, edit, grep, make, read
from nanocode_core.constitution.families.words import (
    ADJECTIVES,
    distinct,
    file_name,
    function_name,
    noun,
    number,
)
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import ToolCall, Turn

_PARAMETERS = ("x", "n", "a", "value", "size", "item")
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}


def _function(rng: random.Random, name: str) -> str:
    """A function of one parameter and two lines."""
    parameter = rng.choice(_PARAMETERS)
    return f"def {name}({parameter}):\n    return {parameter} {rng.choice('+-*')} {number(rng)}"


def _module(rng: random.Random, *names: str, last: str = "") -> str:
    """A module with these functions in order, and perhaps a last line."""
    parts = [_function(rng, name) for name in names]
    return "\n\n\n".join([*parts, last] if last else parts) + "\n"


def _with_other(rng: random.Random, name: str) -> list[str]:
    """The function's name, and half of the time another one before or after it."""
    names = [name]
    if rng.random() < 0.5:
        names.insert(rng.randrange(2), next(n for n in distinct(rng, function_name, 2) if n != name))
    return names


def _find_definition(rng: random.Random) -> Task:
    name, user = distinct(rng, function_name, 2)
    path, other = distinct(rng, file_name, 2)
    text = _module(rng, *_with_other(rng, name))
    line = str(text[: text.index(f"def {name}(")].count("\n") + 1)
    files = {path: text, other: _module(rng, user, last=f"print({name}({number(rng)}))")}
    return make(
        "find_definition",
        rng,
        (
            "where is {name!c} defined?",
            "find the definition of {name!c}",
            "which file defines {name!c}?",
            "in which file and line is {name!c}?",
            "where do i find {name!c}?",
            "show me where {name!c} is defined",
            "i'm looking for the function {name!c}",
        ),
        files,
        [{"kind": "answer", "contains": [path, line]}, {"kind": "unchanged"}],
        [grep(f"def {name}")],
        f"{path}, line {line}.",
        name=name,
    )


def _play_find_definition(task: Task, past: Past) -> Turn:
    name = task.facts["name"]
    if not past.results("Grep"):
        return past.say("search", grep(f"def {name}"), name=name)
    hit = next(hit for hit in past.hits() if hit.text.startswith(f"def {name}("))
    return past.say("defined", name=name, path=hit.path, line=hit.line)


def _rename_function(rng: random.Random) -> Task:
    old, new = distinct(rng, function_name, 2)
    path = file_name(rng)
    used = rng.random() < 0.5
    call = f"print({old}({number(rng)}))" if used else ""
    solution = [edit(path, f"def {old}(", f"def {new}(")]
    if used:
        solution.append(edit(path, call, call.replace(old, new)))
    return make(
        "rename_function",
        rng,
        (
            "rename {old!c} to {new!c} in {path!c}",
            "in {path!c}, rename {old!c} to {new!c}",
            "{old!c} in {path!c} should be called {new!c}",
            "please rename the function {old!c} in {path!c} to {new!c}",
            "call {old!c} in {path!c} {new!c} instead",
            "change the name of {old!c} to {new!c} in {path!c}",
        ),
        {path: _module(rng, *_with_other(rng, old), last=call)},
        [{"kind": "names", "path": path, "has": [new], "lacks": [old]}, {"kind": "unchanged", "except": [path]}],
        solution,
        f"{old} is {new} now.",
        old=old,
        new=new,
        path=path,
    )


def _play_rename_function(task: Task, past: Past) -> Turn:
    old, new, path = (task.facts[key] for key in ("old", "new", "path"))
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    places = [line for line in past.lines() if f"{old}(" in line]
    done = past.done("Edit")
    if done < len(places):
        # The definition's line changes up to the bracket, a line that calls it as a whole.
        before = f"def {old}(" if places[done].startswith("def ") else places[done]
        return past.say("rename_more" if done else "change", edit(path, before, before.replace(old, new)))
    return past.say("renamed", old=old, new=new, path=path)


def _add_docstring(rng: random.Random) -> Task:
    name, path = function_name(rng), file_name(rng)
    verb, thing = name.split("_")
    text = f"{verb} the {rng.choice(ADJECTIVES)} {thing}" if rng.random() < 0.5 else f"{verb} one {thing}"
    source = _module(rng, *_with_other(rng, name))
    head = next(line for line in source.splitlines() if line.startswith(f"def {name}("))
    return make(
        "add_docstring",
        rng,
        (
            'add the docstring "{text}" to {name!c} in {path!c}',
            '{name!c} in {path!c} needs a docstring: "{text}"',
            'give {name!c} in {path!c} the docstring "{text}"',
            'in {path!c}, document {name!c} with "{text}"',
            'please add a docstring to {name!c} in {path!c}: "{text}"',
            'put the docstring "{text}" into {name!c} in {path!c}',
        ),
        {path: source},
        [
            {"kind": "docstring", "path": path, "function": name, "text": text},
            {"kind": "unchanged", "except": [path]},
        ],
        [_document(path, head, text)],
        f"{name} has its docstring.",
        name=name,
        path=path,
        text=text,
    )


def _document(path: str, head: str, text: str) -> ToolCall:
    return edit(path, head, f'{head}\n    """{text}"""')


def _play_add_docstring(task: Task, past: Past) -> Turn:
    name, path, text = (task.facts[key] for key in ("name", "path", "text"))
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        return past.say("insert", _document(path, past.line(f"def {name}("), text))
    return past.say("docstring", name=name)


def _append_function(rng: random.Random) -> Task:
    old, new = distinct(rng, function_name, 2)
    path, value = file_name(rng), number(rng)
    source = _module(rng, old)
    return make(
        "append_function",
        rng,
        (
            "add a function {name!c} to {path!c} that returns {value}",
            "in {path!c}, add {name!c}, which returns {value}",
            "{path!c} needs a function {name!c} that returns {value}",
            "write a function {name!c} in {path!c}. it returns {value}",
            "please add {name!c} to {path!c}, it should return {value}",
            "append a function {name!c} returning {value} to {path!c}",
        ),
        {path: source},
        [
            {"kind": "names", "path": path, "has": [old, new]},
            {"kind": "python", "code": _calls(path, new, "", str(value))},
            {"kind": "unchanged", "except": [path]},
        ],
        [_append(path, source.splitlines()[-1], new, str(value))],
        f"{new} is in {path} now.",
        name=new,
        path=path,
        value=value,
    )


def _append(path: str, last: str, name: str, value: str) -> ToolCall:
    return edit(path, last, f"{last}\n\n\ndef {name}():\n    return {value}")


def _calls(path: str, name: str, arguments: str, result: str) -> str:
    """Source of a check: the function in the file, called so, returns that."""
    return f"space = {{}}\nexec(open({path!r}).read(), space)\nassert space[{name!r}]({arguments}) == {result}\n"


def _play_append_function(task: Task, past: Past) -> Turn:
    name, path, value = (task.facts[key] for key in ("name", "path", "value"))
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        return past.say("insert", _append(path, past.lines()[-1], name, value))
    return past.say("added", name=name, path=path, value=value)


def _fix_operator(rng: random.Random) -> Task:
    verb = rng.choice(list(_SIGNS))
    sign = _SIGNS[verb]
    wrong = rng.choice([other for other in _SIGNS.values() if other != sign])
    path, name = file_name(rng), f"{rng.choice(ADJECTIVES)}_{noun(rng)}"
    first, second = rng.choice((("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")))
    parts = [f"def {name}({first}, {second}):\n    return {first} {wrong} {second}"]
    if rng.random() < 0.5:
        parts.insert(rng.randrange(2), _function(rng, function_name(rng)))
    values = rng.randrange(5, 50), rng.randrange(3, 50)
    result = {"+": values[0] + values[1], "-": values[0] - values[1], "*": values[0] * values[1]}[sign]
    return make(
        "fix_operator",
        rng,
        (
            "{name!c} in {path!c} should {verb} its arguments. fix it",
            "fix {name!c} in {path!c}, it should {verb}",
            "there's a bug in {path!c}: {name!c} has to {verb} {first} and {second}",
            "{name!c} in {path!c} is wrong, it should {verb}",
            "{path!c} has a bug, {name!c} doesn't {verb}. please fix",
            "make {name!c} in {path!c} {verb} the two numbers",
        ),
        {path: "\n\n\n".join(parts) + "\n"},
        [
            {"kind": "python", "code": _calls(path, name, f"{values[0]}, {values[1]}", str(result))},
            {"kind": "unchanged", "except": [path]},
        ],
        [edit(path, f"return {first} {wrong} {second}", f"return {first} {sign} {second}")],
        f"fixed, {name} uses {sign} now.",
        name=name,
        path=path,
        verb=verb,
        first=first,
        second=second,
    )


def _play_fix_operator(task: Task, past: Past) -> Turn:
    name, path, first, second = (task.facts[key] for key in ("name", "path", "first", "second"))
    sign = _SIGNS[task.facts["verb"]]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        line = past.lines()[past.lines().index(past.line(f"def {name}(")) + 1].strip()
        return past.say("fix", edit(path, line, f"return {first} {sign} {second}"))
    return past.say("fixed_operator", name=name, sign=sign)


def _comment_out(rng: random.Random) -> Task:
    name, path, value = function_name(rng), file_name(rng), number(rng)
    call = f"{name}({value})"
    return make(
        "comment_out",
        rng,
        (
            "comment out the call of {name!c} in {path!c}",
            "in {path!c}, comment out the line that calls {name!c}",
            "{path!c} shouldn't call {name!c} any more, comment it out",
            "please comment out the {name!c} call in {path!c}",
            "make the call of {name!c} in {path!c} a comment",
            "turn the {name!c} call in {path!c} into a comment",
        ),
        {path: _module(rng, *_with_other(rng, name), last=call)},
        [
            {"kind": "file", "path": path, "contains": [f"# {call}", f"def {name}("], "lacks": [f"\n{call}"]},
            {"kind": "unchanged", "except": [path]},
        ],
        [edit(path, call, f"# {call}")],
        "done, that line is a comment now.",
        name=name,
        path=path,
    )


def _play_comment_out(task: Task, past: Past) -> Turn:
    name, path = task.facts["name"], task.facts["path"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        call = next(line for line in past.lines() if line.startswith(f"{name}("))
        return past.say("change", edit(path, call, f"# {call}"))
    return past.say("commented", path=path)


FAMILIES = (
    Family(
        "find_definition", "say in which file and line a function is defined", _find_definition, _play_find_definition
    ),
    Family(
        "rename_function", "rename a function in a given file, its uses too", _rename_function, _play_rename_function
    ),
    Family("add_docstring", "add a given docstring to a function", _add_docstring, _play_add_docstring),
    Family("append_function", "add a function that returns a given number", _append_function, _play_append_function),
    Family("fix_operator", "a function computes with the wrong operator", _fix_operator, _play_fix_operator),
    Family("comment_out", "make a comment of the line that calls a function", _comment_out, _play_comment_out),
)
