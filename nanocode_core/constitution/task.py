"""A task: files, a request, a check as data, and a solution that proves the check.

A task is plain JSON, whoever wrote it: a programmed family or a language model. `checks.py` says
what kinds of check there are. `user` scripts a user who does not just watch: he rejects a call or
answers a question.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from nanocode_core.tokenizer.conversation import ToolCall

Check = dict[str, Any]


@dataclass(frozen=True)
class UserAction:
    """What the user does once: on "end" he answers the agent's last word, on a tool's name he rejects its first call.

    Either way he then says `say`.
    """

    on: str
    say: str


@dataclass(frozen=True)
class Task:
    """One thing to do in a small project.

    Attributes:
        id: unique in a data set; the family's name and a number.
        files: path to content, the project as the agent finds it.
        check: all of these must hold at the end.
        solution: calls that solve it, and `answer`, what an agent may say at the end.
        facts: values that the family's own player works with; empty for a task of a language model.
    """

    id: str
    family: str
    request: str
    files: dict[str, str]
    check: tuple[Check, ...]
    solution: tuple[ToolCall, ...]
    answer: str
    user: tuple[UserAction, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` is its inverse."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Any) -> "Task":
        """The task in a dict of `to_json`; `user` and `facts` may be left out.

        Raises:
            ValueError: a field is missing or is not what it should be.
        """
        try:
            task = cls(
                id=str(value["id"]),
                family=str(value["family"]),
                request=value["request"],
                files=dict(value["files"]),
                check=tuple(dict(check) for check in value["check"]),
                solution=tuple(ToolCall(call["name"], dict(call["arguments"])) for call in value["solution"]),
                answer=value["answer"],
                user=tuple(UserAction(str(action["on"]), str(action["say"])) for action in value.get("user", ())),
                facts={str(k): str(v) for k, v in value.get("facts", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a task: {error!r}") from None
        texts = [task.request, task.answer, *task.files, *task.files.values()]
        arguments = [text for call in task.solution for text in call.arguments.values()]
        if not all(isinstance(text, str) for text in [*texts, *arguments]):
            raise ValueError("not a task: request, answer, files and arguments are text")
        if not task.request.strip() or not task.check:
            raise ValueError("not a task: it needs a request and a check")
        return task

    def key(self) -> str:
        """Hash of the normalised request and files: equal for tasks that ask the same of the same project."""
        normal = [_normalise(self.request), sorted((p, _normalise(t)) for p, t in self.files.items())]
        return hashlib.sha256(json.dumps(normal).encode()).hexdigest()


def _normalise(text: str) -> str:
    """Lowercase words and signs, single spaces, no quotes or backticks."""
    return " ".join(re.sub(r"[`'\".,!?]", " ", text.lower()).split())
