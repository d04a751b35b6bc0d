"""Checks as data: what must hold in the scratch directory and the conversation when the agent is done.

    {"kind": "file", "path", "contains": [..], "lacks": [..]}   text of a file
    {"kind": "python", "code"}                  runs in the sandbox in the scratch directory, must exit with 0
    {"kind": "assigns", "path", "name", "value"}            a module-level assignment of a literal
    {"kind": "names", "path", "has": [..], "lacks": [..]}   identifiers in the parsed file
    {"kind": "docstring", "path", "function", "text"}
    {"kind": "unchanged", "except": [..]}       no other file changed, came or went
    {"kind": "answer", "contains": [..], "any": [[..], ..]} the last assistant turn, case ignored
    {"kind": "called", "tool"}                  the tool ran, and was not rejected
    {"kind": "calls", "at_most"}                number of calls

What can be decided by parsing runs in this process; nothing of a task is executed outside the sandbox.
"""

import ast
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import Turn

REJECTED = "rejected by user"
PYTHON_SECONDS = 5.0


def failures(task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> list[str]:
    """What the checks of `task` find wrong; empty if it is solved. A check that is malformed fails."""
    found = []
    for check in task.check:
        judge = _KINDS.get(str(check.get("kind")))
        try:
            problem = (
                f"unknown check {check.get('kind')!r}" if judge is None else judge(check, task, root, turns, sandbox)
            )
        except (KeyError, TypeError, ValueError, AttributeError, OSError, SyntaxError, RecursionError) as error:
            problem = f"check {check.get('kind')} failed: {type(error).__name__}: {error}".replace(f"{root}/", "")
        if problem:
            found.append(problem)
    return found


def _text(root: Path, name: str) -> str:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{name} is outside the project")
    return path.read_text(encoding="utf-8")


def _file(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    text = _text(root, check["path"])
    missing = [part for part in check.get("contains", []) if part not in text]
    left = [part for part in check.get("lacks", []) if part in text]
    return "; ".join(
        [f"{check['path']} lacks {part!r}" for part in missing]
        + [f"{check['path']} still has {part!r}" for part in left]
    )


def _python(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    done = sandbox.python(check["code"], root, PYTHON_SECONDS)
    if done.timed_out:
        return "the check took too long"
    return "" if done.exit_code == 0 else (done.output.strip().splitlines() or ["the check failed"])[-1]


def _assigns(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    name, wanted = check["name"], check["value"]
    for node in ast.parse(_text(root, check["path"])).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [name]:
            value = ast.literal_eval(node.value)
            return "" if value == wanted and type(value) is type(wanted) else f"{name} is {value!r}, not {wanted!r}"
    return f"{name} is not set in {check['path']}"


def _names(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    used: set[str] = set()
    for node in ast.walk(ast.parse(_text(root, check["path"]))):
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                used.add(name)
            case ast.Import(names=names):
                used.update(f"import {alias.name}" for alias in names)
            case ast.ImportFrom(module=module, names=names):
                used.update(f"from {module} import {alias.name}" for alias in names)
    wrong = [f"no {name} in {check['path']}" for name in check.get("has", []) if name not in used]
    return "; ".join(wrong + [f"{name} is still in {check['path']}" for name in check.get("lacks", []) if name in used])


def _docstring(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    for node in ast.walk(ast.parse(_text(root, check["path"]))):
        if isinstance(node, ast.FunctionDef) and node.name == check["function"]:
            found = (ast.get_docstring(node) or "").strip().rstrip(".")
            wanted = check["text"].strip().rstrip(".")
            return "" if found == wanted else f"the docstring of {node.name} is {found!r}"
    return f"no function {check['function']} in {check['path']}"


def _unchanged(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    allowed = set(check.get("except", []))
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    for name in sorted((present | set(task.files)) - allowed):
        if name not in present:
            return f"{name} is gone"
        if name not in task.files:
            return f"{name} was made unasked"
        if (root / name).read_bytes() != task.files[name].encode():
            return f"{name} was changed unasked"
    return ""


def _answer(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    last = turns[-1] if turns else None
    if last is None or last.role != "assistant" or last.call is not None or not last.text.strip():
        return "there is no final answer"
    text = last.text.lower()
    lacking = [part for part in check.get("contains", []) if not _stands(part.lower(), text)]
    for choices in check.get("any", []):
        if not any(_stands(part.lower(), text) for part in choices):
            lacking.append(" or ".join(choices))
    return "; ".join(f"the answer lacks {part!r}" for part in lacking)


def _stands(part: str, text: str) -> bool:
    """Whether `part` stands in `text` as a whole: 4 does not stand in 42."""
    return re.search(rf"(?<![\w]){re.escape(part)}(?![\w])", text) is not None


def _called(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    for turn, result in pairwise(turns):
        if turn.call is not None and turn.call.name == check["tool"] and result.text != REJECTED:
            return ""
    return f"{check['tool']} was not used"


def _calls(check: dict[str, Any], task: Task, root: Path, turns: Sequence[Turn], sandbox: Sandbox) -> str:
    count = sum(turn.call is not None for turn in turns)
    return "" if count <= check["at_most"] else f"{count} calls, at most {check['at_most']} were needed"


_Judge = Callable[[dict[str, Any], Task, Path, Sequence[Turn], Sandbox], str]
_KINDS: dict[str, _Judge] = {
    "file": _file,
    "python": _python,
    "assigns": _assigns,
    "names": _names,
    "docstring": _docstring,
    "unchanged": _unchanged,
    "answer": _answer,
    "called": _called,
    "calls": _calls,
}
