"""The chat in a terminal: what an `AgentSession` tells, shown; what it asks, asked.

On a terminal lines are edited with prompt_toolkit and shown with rich; without one (a pipe, a file)
the same session reads and writes plain lines. The tools stay inside `root`, and Bash runs in the
sandbox also after a yes. Ctrl-C while the model writes or a call runs ends that; at the prompt it
clears the line. Ctrl-D quits.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from rich.console import Console
from rich.text import Text

from nanocode_core.agent.dialogue import stop_ids
from nanocode_core.agent.sandbox import Sandbox
from nanocode_core.agent.session import (
    AgentSession,
    Approval,
    CallEnded,
    CallWritten,
    Event,
    Generate,
    Noted,
    TextWritten,
    TurnMalformed,
)
from nanocode_core.agent.show import printable, show_call, show_raw, show_result
from nanocode_core.agent.tools import Tools, validate_call
from nanocode_core.config import Config
from nanocode_core.config.model import Run
from nanocode_core.tokenizer import Tokenizer, ToolCall

PROMPT = "> "
HELP = """\
/help    this list
/clear   start a new conversation
/show    the whole conversation as the model reads it, special tokens included
/quit    leave (also Ctrl-D)
Ctrl-C stops the model or the call that is running.
Before a Bash or Edit call you are asked: y runs it, n rejects it, a allows that tool from now on."""
INTERRUPTED = 130


@dataclass
class Switch:
    """Ctrl-C, told apart by what is going on: a tool is interrupted, a turn is asked to end."""

    pressed: bool = False
    raising: bool = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take SIGINT over; without effect outside the main thread, which gets no signals."""
        self.pressed = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """While in here Ctrl-C raises KeyboardInterrupt."""
        self.raising = True
        try:
            yield
        finally:
            self.raising = False

    def _press(self, signum: int, frame: FrameType | None) -> None:
        if self.raising:
            raise KeyboardInterrupt
        self.pressed = True


class Terminal:
    """Reads lines and shows events; the same code with and without a terminal."""

    def __init__(self, history: History):
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # bytes or characters of another encoding are no reason to end
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._lines: PromptSession[str] | None = PromptSession(history=history) if self.interactive else None
        self._answers: PromptSession[str] | None = PromptSession() if self.interactive else None
        self._open_line = False

    def line(self) -> str:
        """The next line of the user. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C."""
        if self._lines is not None:
            return self._lines.prompt(PROMPT)
        line = self._plain_line()
        self.say(Text(PROMPT + printable(line)))
        return line

    def approve(self, call: ToolCall) -> Approval:
        """Ask whether to run a call that is already shown; no answer is a no."""
        question = f"  run it? [y]es, [n]o, [a]lways {printable(call.name)}: "
        answers = {"y": Approval.YES, "n": Approval.NO, "a": Approval.ALWAYS}
        while True:
            if self._answers is not None:
                answer = self._answers.prompt(question)
            else:
                self._console.print(Text(question), end="")
                answer = self._plain_line()
                self._console.print(Text(printable(answer)))
            if answer.strip().lower()[:1] in answers:
                return answers[answer.strip().lower()[:1]]

    def event(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case TextWritten(text):
                self._console.print(Text(printable(text)), end="")
                self._open_line = not text.endswith("\n")
            case CallWritten(call):
                self.say(show_call(call))
            case CallEnded(_, result):
                self.say(show_result(result))
            case TurnMalformed(reply):
                self.say(Text(f"(not a whole turn: {reply.fault})", style="red"))
                self.say(show_raw(reply.raw))
            case Noted(text):
                self.note(text)

    def note(self, text: str) -> None:
        """A line about the session."""
        self.say(Text(f"({printable(text)})", style="yellow"))

    def say(self, text: Text) -> None:
        """Whole lines, below whatever was streamed."""
        self.end_line()
        self._console.print(text)

    def end_line(self) -> None:
        """Close a line that was streamed without its end."""
        if self._open_line:
            self._console.print()
        self._open_line = False

    def loading(self) -> None:
        """Say that the model is being loaded, on a terminal only."""
        if self.interactive:
            self.note("loading the model")

    def _plain_line(self) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


@dataclass(frozen=True)
class _Interruptible:
    """Tools whose calls Ctrl-C ends."""

    tools: Tools
    switch: Switch

    def run(self, call: ToolCall) -> str:
        with self.switch.interrupting():
            return self.tools.run(call)


def run_chat(
    model_dir: Path, tokenizer_dir: Path, root: Path, cache: Path | None = None, temperature: float = 0.0
) -> int:
    """Chat until the user quits; the exit code.

    Args:
        model_dir: folder with model.safetensors and model.json.
        tokenizer_dir: folder with tokenizer.json.
        root: the project; the tools stay inside it.
        cache: folder for the history of typed lines; default: the one of the config.

    Raises:
        UserError: a file of the model or the tokenizer is missing or is not what it should be.
    """
    cache = cache or Path(Config().run.cache)
    history, remark = _history(cache)
    terminal = Terminal(history)
    terminal.loading()
    _keep_programs(cache)
    switch = Switch()
    with Sandbox() as sandbox:
        session = _session(model_dir, tokenizer_dir, root, sandbox, terminal, switch, terminal.approve, temperature)
        terminal.say(Text(f"nanocode in {root}; /help shows the commands", style="bold"))
        for text in (remark, _warning(sandbox)):
            if text:
                terminal.note(text)
        while True:
            try:
                line = terminal.line().strip()
            except KeyboardInterrupt:
                terminal.note("Ctrl-D or /quit leaves")
                continue
            except EOFError:
                return 0
            if line == "/quit":
                return 0
            _take(line, session, terminal, switch)


def run_once(
    prompt: str,
    model_dir: Path,
    tokenizer_dir: Path,
    root: Path,
    yes_in_sandbox: bool = False,
    temperature: float = 0.0,
) -> int:
    """Answer one message and print the conversation; the exit code.

    Calls that need a yes run with `yes_in_sandbox`; else the user is asked, where there is one at a
    terminal, and otherwise they are rejected.

    Raises:
        UserError: as `run_chat`.
    """
    terminal = Terminal(InMemoryHistory())
    switch = Switch()
    _keep_programs(Path(Config().run.cache))

    def approve(call: ToolCall) -> Approval:
        if yes_in_sandbox:
            return Approval.YES
        if terminal.interactive:
            return terminal.approve(call)
        terminal.note(f"{call.name} needs a yes and nobody is there to ask; --yes-in-sandbox would run it")
        return Approval.NO

    with Sandbox() as sandbox:
        session = _session(model_dir, tokenizer_dir, root, sandbox, terminal, switch, approve, temperature)
        if yes_in_sandbox and (warning := _warning(sandbox)):
            terminal.note(warning)
        terminal.say(Text(PROMPT + printable(prompt)))
        with switch.watching():
            session.ask(prompt)
        terminal.end_line()
    return INTERRUPTED if switch.pressed else 0


def _session(
    model_dir: Path,
    tokenizer_dir: Path,
    root: Path,
    sandbox: Sandbox,
    terminal: Terminal,
    switch: Switch,
    approve: Callable[[ToolCall], Approval],
    temperature: float,
) -> AgentSession:
    tokenizer = Tokenizer.load(tokenizer_dir)
    generate, context = _load(model_dir, tokenizer, temperature)

    def ask(call: ToolCall) -> Approval:
        with switch.interrupting():
            return approve(call)

    return AgentSession(
        generate,
        tokenizer,
        _Interruptible(Tools(root, sandbox, seconds=120.0), switch),
        validate_call,
        ask,
        terminal.event,
        context,
        stopping=lambda: switch.pressed,
    )


def _load(model_dir: Path, tokenizer: Tokenizer, temperature: float) -> tuple[Generate, int]:
    """The model as a generate function, and how many positions it may use."""
    from nanocode_core.agent.writer import Writer  # jax: only when there is something to load

    writer = Writer.load(model_dir, stop_ids(tokenizer), temperature)
    return writer.stream, writer.context


def _keep_programs(cache: Path) -> None:
    """Keep compiled programs below the cache folder, where it can be written: the next start is quicker."""
    if os.access(cache, os.W_OK | os.X_OK):
        from nanocode_core.training.setup import prepare_jax

        prepare_jax(Config(run=Run(cache=str(cache))))


def _take(line: str, session: AgentSession, terminal: Terminal, switch: Switch) -> None:
    """Handle one line: a command, or a message to the model."""
    match line:
        case "":
            return
        case "/help":
            terminal.say(Text(HELP))
        case "/clear":
            session.clear()
            terminal.note("a new conversation")
        case "/show":
            terminal.say(show_raw(session.dialogue.tokenizer.decode(session.dialogue.ids)))
        case command if command.startswith("/") and " " not in command and command.count("/") == 1:
            terminal.note(f"unknown command {command}; /help shows the commands")
        case message:
            with switch.watching():
                session.ask(message)
            terminal.end_line()


def _warning(sandbox: Sandbox) -> str:
    """What the sandbox can't guarantee here; empty where it can all."""
    held = sandbox.isolation
    return "" if held.network and held.processes and held.files else f"sandbox on this machine: {held}"


def _history(cache: Path) -> tuple[History, str]:
    """The history file in the cache folder, readable by its owner only; without one a remark why."""
    path = cache / "agent_history"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        return InMemoryHistory(), f"what you type is not kept: {path}: {error.strerror}"
    return FileHistory(str(path)), ""
