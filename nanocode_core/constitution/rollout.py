"""One rollout: an agent's turns, its calls really executed in a scratch directory, the task's check at the end.

`Episode` is the environment. Whoever plays the agent (a teacher, or the trained model in the
evaluation) hands it turns; it runs the calls, lets the scripted user answer or reject, and knows
when it is over.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.agent.tools import Tools
from nanocode_core.constitution import checks
from nanocode_core.constitution.task import Task
from nanocode_core.tokenizer.conversation import Conversation, Turn

REJECTED = "rejected by user"


class Episode:
    """A task being worked on in the directory `root`, which is emptied first.

    Attributes:
        turns: the conversation so far; begins with the user's request.
        done: the agent has said its last word.
    """

    def __init__(self, task: Task, root: Path, sandbox: Sandbox, bash_seconds: float = 10.0) -> None:
        self.task = task
        self.root = root
        self.turns: list[Turn] = [Turn("user", task.request)]
        self.done = False
        self._actions = list(task.user)
        self._sandbox = sandbox
        lay_out(task, root)
        self._tools = Tools(root, sandbox, bash_seconds)

    @property
    def conversation(self) -> Conversation:
        """The turns so far."""
        return Conversation(tuple(self.turns))

    def step(self, turn: Turn) -> None:
        """Take the agent's next turn, and add what the tools or the user answer."""
        self.turns.append(turn)
        on = "end" if turn.call is None else turn.call.name
        action = next((action for action in self._actions if action.on == on), None)
        if action is not None:
            self._actions.remove(action)
            if turn.call is not None:
                self.turns.append(Turn("tool", REJECTED))
            self.turns.append(Turn("user", action.say))
        elif turn.call is None:
            self.done = True
        else:
            self.turns.append(Turn("tool", self._tools.run(turn.call)))

    def failures(self) -> list[str]:
        """What the task's check finds wrong; empty if the task is solved."""
        return checks.failures(self.task, self.root, self.turns, self._sandbox)


def lay_out(task: Task, root: Path) -> None:
    """Make `root` hold the files of the task and nothing else.

    Raises:
        ValueError: a path of the task leads out of `root`.
    """
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    for name, text in task.files.items():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"the file {name} of task {task.id} is outside the project")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def solution_turns(task: Task, results: Sequence[str]) -> list[Turn]:
    """The conversation of a task's own solution, given the results of its calls."""
    turns = [Turn("user", task.request)]
    for call, result in zip(task.solution, results, strict=True):
        turns += [Turn("assistant", "", call), Turn("tool", result)]
    return [*turns, Turn("assistant", task.answer)]


def verify(task: Task, root: Path, sandbox: Sandbox) -> list[str]:
    """What is wrong with a task: its check must fail on the untouched files and hold after its solution."""
    lay_out(task, root)
    if not checks.failures(task, root, [Turn("user", task.request)], sandbox):
        return ["its check passes before anything is done"]
    tools = Tools(root, sandbox)
    results = [tools.run(call) for call in task.solution]
    errors = [result.splitlines()[0] for result in results if result.startswith("error:")]
    if errors:
        return [f"its solution fails: {errors[0]}"]
    return checks.failures(task, root, solution_turns(task, results), sandbox)
