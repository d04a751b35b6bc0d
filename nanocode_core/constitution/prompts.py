"""What is asked of a teacher: four kinds of request, each with the constitution and a JSON schema.

The system message holds all that stays the same (so an endpoint can cache it), the user message one
JSON object. A language model reads them as they stand; the scripted teacher parses the same messages.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanocode_core.agent.tools import TOOLS
from nanocode_core.constitution.families import Family
from nanocode_core.constitution.soul import Soul
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import Turn, turn_to_json

TEXT = {"type": "string"}


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _call_of(name: str) -> dict[str, Any]:
    arguments = {key: {**TEXT, "description": value.meaning} for key, value in TOOLS[name].items()}
    required = [key for key, value in TOOLS[name].items() if value.required]
    inner = {"type": "object", "properties": arguments, "required": required, "additionalProperties": False}
    return _object(name={"const": name}, arguments=inner)


CALL = {"anyOf": [_call_of(name) for name in TOOLS]}
TURN = _object(text=TEXT, call={"anyOf": [*CALL["anyOf"], {"type": "null"}]})
CRITIQUE = _object(
    rating={"type": "integer", "minimum": 1, "maximum": 10},
    reasons={"type": "array", "items": TEXT},
    first_bad_turn={"type": "integer", "minimum": 0},
)
TASK = _object(
    request=TEXT,
    files={"type": "array", "items": _object(path=TEXT, text=TEXT)},
    check={"type": "array", "items": {"type": "object"}},
    solution={"type": "array", "items": CALL},
    answer=TEXT,
    user={"type": "array", "items": _object(on={"enum": ["end", *TOOLS]}, say=TEXT)},
    facts={"type": "object", "additionalProperties": TEXT},
)
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "tasks": _object(tasks={"type": "array", "items": TASK}),
    "turn": TURN,
    "critique": CRITIQUE,
}

_TOOLS_TEXT = "\n".join(
    f"- {name}: "
    + "; ".join(f"{key}{'' if a.required else ' (optional)'}: {a.meaning}" for key, a in arguments.items())
    for name, arguments in TOOLS.items()
)

_INSTRUCTIONS = {
    "tasks": """You write tasks that train and test a very small coding agent.
A task is a tiny Python project (0 to 3 files of 1 to 12 short lines), a request as a user would type it, a check and a
solution. Vary the wording, the names and the layout; keep every value short, and let all that the agent has to write be
in the request or in the files. Checks are JSON objects of these kinds, and all of them must fail together on the
untouched files and hold after the solution:
{"kind": "file", "path", "contains": [..], "lacks": [..]}; {"kind": "python", "code"} (run in the project, ends with 0);
{"kind": "assigns", "path", "name", "value"}; {"kind": "names", "path", "has": [..], "lacks": [..]};
{"kind": "docstring", "path", "function", "text"}; {"kind": "unchanged", "except": [..]};
{"kind": "answer", "contains": [..], "any": [[..]]} (the agent's last words); {"kind": "called", "tool"};
{"kind": "calls", "at_most"}. `solution` lists the calls, `answer` is what the agent may say at the end. `user` scripts
a user who rejects the first call of a tool, or answers at the "end", and then says something; mostly it is empty, as is
`facts`. The user message names the family of tasks, how many to write, the number of the first, and two examples.""",
    "turn": """You play the agent that the constitution describes, one turn at a time.
The user message holds the task with its check and solution (yours to know, the agent must find out with its tools), the
conversation so far, and what was wrong with earlier attempts. Write the agent's next turn: a short text, and one tool
call or null. A turn without a call ends the conversation, or asks the user. Tool results are real: wait for them, and
report only what they say. Read shows `number→line`; an edit's old_string is the bare text and must be unique.""",
    "critique": """You judge whether a conversation shows the agent that the constitution describes.
The user message holds the task and the whole conversation; turns are numbered from 0. Rate it from 1 to 10: 10 is what
the constitution asks for, below 9 means it must not be trained on. Give a reason for every point lost, short and
concrete, and the number of the first turn that has to change (0 if none).""",
}


@dataclass(frozen=True)
class Request:
    """One question to a teacher; `schema` is the kind and names the JSON schema of the answer."""

    schema: str
    system: str
    user: str
    temperature: float

    @property
    def messages(self) -> list[dict[str, str]]:
        """Chat messages."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]

    @property
    def response_format(self) -> dict[str, Any]:
        """The response_format of the chat completion."""
        return {"type": "json_schema", "json_schema": {"name": self.schema, "schema": SCHEMAS[self.schema]}}


class Prompts:
    """Writes requests under one constitution."""

    def __init__(self, soul: Soul, draft_temperature: float, critique_temperature: float) -> None:
        constitution = f"<constitution>\n{soul.text}\n</constitution>\n\nThe agent's tools:\n{_TOOLS_TEXT}"
        self._systems = {kind: f"{text}\n\n{constitution}" for kind, text in _INSTRUCTIONS.items()}
        self._draft, self._critique = draft_temperature, critique_temperature

    def tasks(self, family: Family, seed: int, first: int, count: int) -> Request:
        """Write tasks first ... first + count - 1 of a family."""
        # Examples come from negative numbers: never equal to a task of the programmed family.
        examples = [_task_json(family.task(seed, -1 - number)) for number in range(2)]
        what = {"family": family.name, "about": family.about, "seed": seed, "first": first, "count": count}
        return self._request("tasks", {**what, "examples": examples}, self._draft)

    def turn(self, task: Task, turns: Sequence[Turn], attempt: int, feedback: Sequence[str]) -> Request:
        """Write the next assistant turn of attempt number `attempt`."""
        what = {"task": task.to_json(), "attempt": attempt, "feedback": list(feedback)}
        return self._request("turn", {**what, "conversation": [turn_to_json(t) for t in turns]}, self._draft)

    def critique(self, task: Task, turns: Sequence[Turn]) -> Request:
        """Judge a conversation."""
        what = {"task": task.to_json(), "conversation": [turn_to_json(turn) for turn in turns]}
        return self._request("critique", what, self._critique)

    def _request(self, kind: str, what: dict[str, Any], temperature: float) -> Request:
        return Request(kind, self._systems[kind], json.dumps(what, ensure_ascii=False), temperature)


def _task_json(task: Task) -> dict[str, Any]:
    """A task the way a teacher writes it: files as a list, which a schema can describe."""
    value = task.to_json()
    value["files"] = [{"path": path, "text": text} for path, text in task.files.items()]
    return {key: value[key] for key in TASK["properties"]}


def tasks_to_json(tasks: Sequence[Task]) -> dict[str, Any]:
    """The answer to a `tasks` request."""
    return {"tasks": [_task_json(task) for task in tasks]}


def task_from_json(value: Any, family: str, number: int) -> Task:
    """One task of the answer to a `tasks` request.

    Raises:
        ValueError: it is not a task.
    """
    if not isinstance(value, dict) or not isinstance(value.get("files"), list):
        raise ValueError("not a task: files is a list")
    try:
        files = {str(file["path"]): file["text"] for file in value["files"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a task: a file lacks {error}") from None
    return Task.from_json({**value, "files": files, "family": family, "id": f"{family}-{number:06d}"})
