"""Families about small programs: write one, run one, change what it prints, repair one that crashes."""

import random
import re

from nanocode_core.constitution.families.family import Family, Past, bash, create, edit, grep, make, read
from nanocode_core.constitution.families.words import MODULES, NOUNS, distinct, file_name, noun, number, phrase
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import Turn


def _prints(path: str, text: str) -> str:
    """Source of a check: running the file prints exactly that."""
    return (
        "import contextlib, io\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n"
        f"    exec(open({path!r}).read(), {{'__name__': '__main__'}})\nassert out.getvalue().strip() == {text!r}\n"
    )


def _write_file(rng: random.Random) -> Task:
    path, text = file_name(rng), phrase(rng)
    return make(
        "write_file",
        rng,
        (
            'create {path!c} that prints "{text}"',
            'write a file {path!c} that prints "{text}"',
            'make a new file {path!c}. it prints "{text}"',
            'i need a script {path!c} which prints "{text}"',
            'please write {path!c}, it should print "{text}"',
            'add a file {path!c} that says "{text}"',
            'new file {path!c}: print "{text}"',
        ),
        {},
        [{"kind": "python", "code": _prints(path, text)}, {"kind": "unchanged", "except": [path]}],
        [create(path, f'print("{text}")\n')],
        f"{path} is written.",
        path=path,
        text=text,
    )


def _play_write_file(task: Task, past: Past) -> Turn:
    path = task.facts["path"]
    if not past.done("Edit"):
        return past.say("write", create(path, f'print("{task.facts["text"]}")\n'), path=path)
    return past.say("written", path=path)


def _run_file(rng: random.Random) -> Task:
    path = file_name(rng)
    if rng.random() < 0.5:
        first, second = number(rng), number(rng)
        output, lines = str(first + second), [f"print({first} + {second})"]
    else:
        output = phrase(rng)
        word, rest = output.split(" ", 1)
        name = noun(rng)
        lines = [f'{name} = "{word}"', f'print({name} + " {rest}")']
    return make(
        "run_file",
        rng,
        (
            "run {path!c}",
            "run {path!c} and tell me what it prints",
            "what does {path!c} print?",
            "please run {path!c}",
            "execute {path!c} and show me the output",
            "what comes out of {path!c}?",
            "try {path!c} and tell me what it says",
        ),
        {path: "\n".join(lines) + "\n"},
        [{"kind": "answer", "contains": [output]}, {"kind": "called", "tool": "Bash"}, {"kind": "unchanged"}],
        [bash(f"python {path}")],
        f"it prints: {output}",
        path=path,
    )


def _play_run_file(task: Task, past: Past) -> Turn:
    path = task.facts["path"]
    if not past.results("Bash"):
        return past.say("run", bash(f"python {path}"), path=path)
    return past.say("output", output=past.results("Bash")[-1])


def _change_text(rng: random.Random) -> Task:
    path, (old, new) = file_name(rng), distinct(rng, phrase, 2)
    before = [f"{name} = {number(rng)}" for name in rng.sample(NOUNS, rng.randrange(3))]
    return make(
        "change_text",
        rng,
        (
            'change the text in {path!c} to "{text}"',
            '{path!c} should print "{text}"',
            'make {path!c} print "{text}" instead',
            'let {path!c} say "{text}"',
            'replace the text that {path!c} prints with "{text}"',
            'in {path!c}, print "{text}" instead',
        ),
        {path: "\n".join([*before, f'print("{old}")']) + "\n"},
        [
            {"kind": "file", "path": path, "contains": [f'print("{new}")'], "lacks": [old]},
            {"kind": "unchanged", "except": [path]},
        ],
        [edit(path, f'print("{old}")', f'print("{new}")')],
        f"{path} prints the new text now.",
        path=path,
        text=new,
    )


def _play_change_text(task: Task, past: Past) -> Turn:
    path = task.facts["path"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        return past.say("change", edit(path, past.line("print("), f'print("{task.facts["text"]}")'))
    return past.say("message", path=path)


def _add_import(rng: random.Random) -> Task:
    path, module = file_name(rng), rng.choice(MODULES)
    other = [f"import {rng.choice([m for m in MODULES if m != module])}"] if rng.random() < 0.4 else []
    body = [f"{name} = {number(rng)}" for name in rng.sample(NOUNS, rng.randrange(1, 4))]
    lines = [*other, *body]
    return make(
        "add_import",
        rng,
        (
            "import {module!c} in {path!c}",
            "add import {module} to {path!c}",
            "{path!c} needs to import {module!c}",
            "please import {module!c} at the top of {path!c}",
            "add an import of {module!c} to {path!c}",
            "in {path!c}, import {module!c} at the top",
        ),
        {path: "\n".join(lines) + "\n"},
        [
            {"kind": "names", "path": path, "has": [f"import {module}", *other]},
            {"kind": "file", "path": path, "contains": body},
            {"kind": "unchanged", "except": [path]},
        ],
        [edit(path, lines[0], f"import {module}\n{lines[0]}")],
        f"{path} imports {module} now.",
        path=path,
        module=module,
    )


def _play_add_import(task: Task, past: Past) -> Turn:
    path, module = task.facts["path"], task.facts["module"]
    if not past.results("Read"):
        return past.say("read", read(path), path=path)
    if not past.done("Edit"):
        first = past.lines()[0]
        return past.say("insert", edit(path, first, f"import {module}\n{first}"))
    return past.say("imported", path=path, module=module)


def misspell(rng: random.Random, word: str) -> str:
    """Two neighbouring letters swapped, or one doubled: never the word itself or another one of ours."""
    while True:
        place = rng.randrange(1, len(word) - 1)
        swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        wrong = swapped if rng.random() < 0.7 else word[: place + 1] + word[place:]
        if wrong != word and wrong not in NOUNS:
            return wrong


def _fix_typo(rng: random.Random) -> Task:
    path, other = distinct(rng, file_name, 2)
    right = rng.choice([noun for noun in NOUNS if len(noun) > 4])
    wrong = misspell(rng, right)
    text = phrase(rng).rsplit(" ", 1)[0]
    line = rng.choice((f'print("{text} {wrong}")', f'title = "{text} {wrong}"', f"# the {wrong} of the {text}"))
    before = [f"{name} = {number(rng)}" for name in rng.sample(NOUNS, rng.randrange(3))]
    return make(
        "fix_typo",
        rng,
        (
            'fix the typo "{wrong}", it should be "{right}"',
            'there is a typo somewhere: "{wrong}" instead of "{right}"',
            'somewhere it says "{wrong}". make it "{right}"',
            '"{wrong}" should be "{right}", please fix it',
            'i misspelled "{right}" as "{wrong}" somewhere. fix it',
            'find "{wrong}" and correct it to "{right}"',
        ),
        {path: "\n".join([*before, line]) + "\n", other: f'print("{phrase(rng)}")\n'},
        [
            {"kind": "file", "path": path, "contains": [line.replace(wrong, right)], "lacks": [wrong]},
            {"kind": "unchanged", "except": [path]},
        ],
        [edit(path, line, line.replace(wrong, right))],
        f"fixed the typo in {path}.",
        wrong=wrong,
        right=right,
    )


def _play_fix_typo(task: Task, past: Past) -> Turn:
    wrong, right = task.facts["wrong"], task.facts["right"]
    if not past.results("Grep"):
        return past.say("search", grep(wrong), name=wrong)
    hit = past.hits()[0]
    if not past.done("Edit"):
        return past.say("change", edit(hit.path, hit.text, hit.text.replace(wrong, right)))
    return past.say("typo", path=hit.path, right=right)


def _fix_crash(rng: random.Random) -> Task:
    path, value, more = file_name(rng), number(rng), number(rng)
    right = rng.choice([noun for noun in NOUNS if len(noun) > 4])
    wrong = misspell(rng, right)
    line = f"print({wrong} + {more})"
    output = str(value + more)
    return make(
        "fix_crash",
        rng,
        (
            "run {path!c} and fix it if it fails",
            "{path!c} crashes. run it and fix it",
            "{path!c} doesn't run, please fix it",
            "something is wrong with {path!c}. run it and repair it",
            "run {path!c}. if there's an error, fix it",
            "make {path!c} run",
        ),
        {path: f"{right} = {value}\n{line}\n"},
        [
            {"kind": "python", "code": _prints(path, output)},
            {"kind": "answer", "contains": [output]},
            {"kind": "called", "tool": "Bash"},
            {"kind": "unchanged", "except": [path]},
        ],
        [read(path), edit(path, line, line.replace(wrong, right)), bash(f"python {path}")],
        f"works now, {wrong} is {right}. it prints: {output}",
        path=path,
        right=right,
    )


def _play_fix_crash(task: Task, past: Past) -> Turn:
    path, right = task.facts["path"], task.facts["right"]
    runs = past.results("Bash")
    if not runs:
        return past.say("run", bash(f"python {path}"), path=path)
    error = re.search(r"name '(\w+)' is not defined", runs[0])
    wrong = error.group(1) if error else ""
    if not past.results("Read"):
        return past.say("crash", read(path), path=path)
    if not past.done("Edit"):
        line = past.line(wrong)
        return past.say("fix", edit(path, line, line.replace(wrong, right)))
    if runs[-1].startswith("error:"):
        return past.say("run_again", bash(f"python {path}"))
    return past.say("fixed_crash", wrong=wrong, right=right, output=runs[-1])


FAMILIES = (
    Family("write_file", "write a new file that prints a given text", _write_file, _play_write_file),
    Family("run_file", "run a program and say what it prints", _run_file, _play_run_file),
    Family("change_text", "change the text that a program prints", _change_text, _play_change_text),
    Family("add_import", "import a module at the top of a file", _add_import, _play_add_import),
    Family("fix_typo", "correct a misspelled word whose file is not given", _fix_typo, _play_fix_typo),
    Family("fix_crash", "run a program, repair its misspelled name, run it again", _fix_crash, _play_fix_crash),
)
