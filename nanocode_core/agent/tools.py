"""The agent's four tools: Read, Edit, Grep, Bash.

A tool takes a call that a model wrote and returns text. Whatever the call holds, nothing raises and
nothing outside `root` is touched: what can't be done comes back as `error: ...`, one line that the
model can act on. Read and Edit show numbered lines (number right-aligned in five columns, an arrow,
the line), Grep shows `path:line:text`, Bash what the command printed. Results are bounded in size.
"""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanocode_core.agent import search
from nanocode_core.agent.sandbox import Sandbox

if TYPE_CHECKING:
    from nanocode_core.tokenizer.conversation import ToolCall

FILE_BYTES = 1_000_000
READ_LINES = 400
LINE_CHARACTERS = 1_000
EDIT_CONTEXT = 2
BASH_CHARACTERS = 8_000
GREP_SECONDS = 5.0


@dataclass(frozen=True)
class Argument:
    """One argument of a tool; all values are text, numbers in decimal."""

    meaning: str
    required: bool = False
    number: bool = False


TOOLS: Mapping[str, Mapping[str, Argument]] = {
    "Read": {
        "file_path": Argument("file to read, relative to the project", required=True),
        "offset": Argument("first line to show, from 1", number=True),
        "limit": Argument("how many lines to show", number=True),
    },
    "Edit": {
        "file_path": Argument("file to change, relative to the project", required=True),
        "old_string": Argument("text to replace, found exactly once in the file; leave out for a new file"),
        "new_string": Argument("text to put there", required=True),
    },
    "Grep": {
        "pattern": Argument("regular expression to look for", required=True),
        "path": Argument("file or directory to look in; the whole project if left out"),
        "-A": Argument("lines to show after a match", number=True),
        "-B": Argument("lines to show before a match", number=True),
    },
    "Bash": {"command": Argument("shell command to run in the project", required=True)},
}


def validate_call(call: "ToolCall") -> str | None:
    """None for a call with a known name and proper arguments, else what is wrong with it."""
    schema = TOOLS.get(call.name)
    if schema is None:
        return f"unknown tool {call.name!r}; there are {', '.join(TOOLS)}"
    for name in call.arguments:
        if name not in schema:
            return f"{call.name} has no argument {name!r}"
    for name, argument in schema.items():
        value = call.arguments.get(name)
        if value is None:
            if argument.required:
                return f"{call.name} needs {name}"
        elif argument.number and not re.fullmatch(r"[0-9]{1,6}", value):
            return f"{name} must be a number"
        elif argument.required and not value.strip() and name != "new_string":
            return f"{name} is empty"
    return None


class ToolError(Exception):
    """What the tool says instead of a result."""


class Tools:
    """The tools of one project directory.

    Args:
        root: the project; paths in calls are relative to it.
        sandbox: runs Bash commands and regular expressions.
        seconds: time limit of one Bash command.
    """

    def __init__(self, root: Path, sandbox: Sandbox, seconds: float = 10.0) -> None:
        self.root = root.resolve()
        self._sandbox = sandbox
        self._seconds = seconds

    def run(self, call: "ToolCall") -> str:
        """Execute a call; returns its result, or "error: ..." for anything that can't be done."""
        try:
            problem = validate_call(call)
            if problem:
                raise ToolError(problem)
            match call.name:
                case "Read":
                    return self._read(call.arguments)
                case "Edit":
                    return self._edit(call.arguments)
                case "Grep":
                    return self._grep(call.arguments)
                case _:
                    return self._bash(call.arguments)
        except ToolError as error:
            return f"error: {error}"
        except OSError as error:
            return f"error: {error.strerror or error}".replace(f"{self.root}/", "")
        except UnicodeError:
            return "error: the call holds characters that can't be written"

    def _read(self, arguments: Mapping[str, str]) -> str:
        name = arguments["file_path"]
        lines = split_lines(self._text(self._resolve(name), name))
        if not lines:
            return "(empty file)"
        first = max(1, int(arguments.get("offset", "1")))
        if first > len(lines):
            raise ToolError(f"{name} has only {len(lines)} lines")
        limit = min(int(arguments.get("limit", READ_LINES)), READ_LINES)
        shown = numbered(lines, first, first + limit - 1)
        if "limit" not in arguments and first + limit <= len(lines):
            shown += f"\n... {len(lines) - first - limit + 1} more lines"
        return shown

    def _edit(self, arguments: Mapping[str, str]) -> str:
        name, old, new = arguments["file_path"], arguments.get("old_string", ""), arguments["new_string"]
        path = self._resolve(name)
        if len(new) > FILE_BYTES:
            raise ToolError("new_string is too large")
        if not old:
            if path.exists():
                raise ToolError(f"{name} already exists; give old_string to change it")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise ToolError(f"{name} can't be made: a part of its path is a file") from None
            _write(path, new)
            return numbered(split_lines(new), 1, READ_LINES) or "(empty file)"
        text = self._text(path, name)
        # Models write \n; a file with Windows line ends keeps them.
        windows = "\r\n" in text and text.count("\r\n") == text.count("\n")
        if windows:
            text, old, new = (value.replace("\r\n", "\n") for value in (text, old, new))
        count = _occurrences(text, old)
        if count == 0:
            raise ToolError(f"old_string not found in {name}")
        if count > 1:
            raise ToolError(f"old_string is {count} times in {name}; add lines around it")
        if old == new:
            raise ToolError("old_string and new_string are the same")
        start = text.index(old)
        changed = text[:start] + new + text[start + len(old) :]
        _write(path, changed.replace("\n", "\r\n") if windows else changed)
        first = changed[:start].count("\n") + 1
        last = first + max(0, len(split_lines(new)) - 1)
        return numbered(split_lines(changed), first - EDIT_CONTEXT, last + EDIT_CONTEXT) or "(empty file)"

    def _grep(self, arguments: Mapping[str, str]) -> str:
        pattern, name = arguments["pattern"], arguments.get("path") or "."
        start = self._resolve(name)
        if not start.exists():
            raise ToolError(f"no such file: {name}")
        after, before = (min(int(arguments.get(flag, "0")), 20) for flag in ("-A", "-B"))
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ToolError(f"bad pattern: {error}") from None
        place = start.relative_to(self.root).as_posix()
        if not re.search(r"[*+?{(|]", pattern.replace("\\(", "")):
            return search.grep(str(self.root), place, pattern, after, before)
        # With repetition or alternation a search can take exponential time: it gets a time limit.
        call = f"print(grep({str(self.root)!r}, {place!r}, {pattern!r}, {after}, {before}), end='')"
        source = Path(search.__file__).read_text(encoding="utf-8")
        done = self._sandbox.python(f"{source}\n{call}", self.root, GREP_SECONDS)
        if done.timed_out:
            raise ToolError(f"the search took longer than {GREP_SECONDS:.0f} seconds")
        if done.exit_code:
            raise ToolError("the search failed")
        return done.output

    def _bash(self, arguments: Mapping[str, str]) -> str:
        if "\0" in arguments["command"]:
            raise ToolError("the command holds a zero character")
        done = self._sandbox.run(arguments["command"], self.root, self._seconds)
        # Programs print absolute paths; the project's own place is nobody's business.
        output = done.output.replace(f"{self.root}/", "").replace(str(self.root), ".").rstrip()
        if done.cut or len(output) > BASH_CHARACTERS:
            half = BASH_CHARACTERS // 2
            output = f"{output[:half]}\n... output cut ...\n{output[-half:]}"
        if done.timed_out:
            return f"error: timed out after {self._seconds:g} seconds\n{output}".rstrip()
        if done.exit_code:
            return f"error: exit code {done.exit_code}\n{output}".rstrip()
        return output or "(no output)"

    def _resolve(self, name: str) -> Path:
        """The real path of a name inside the project, symbolic links followed."""
        if "\0" in name or len(name) > 1000:
            raise ToolError("that is not a file name")
        if name.startswith("~"):
            raise ToolError(f"{name} is outside the project")
        try:
            path = Path(self.root, name).resolve()
        except (OSError, RuntimeError):
            raise ToolError(f"{name} can't be resolved") from None
        if not path.is_relative_to(self.root):
            raise ToolError(f"{name} is outside the project")
        return path

    def _text(self, path: Path, name: str) -> str:
        """The text of a regular file of moderate size, its line ends as they are."""
        if not path.exists():
            raise ToolError(f"no such file: {name}")
        if path.is_dir():
            raise ToolError(f"{name} is a directory")
        # `path` is resolved: O_NOFOLLOW refuses a link that was put there since; no pipe can block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ToolError(f"{name} is not a regular file")
            if status.st_size > FILE_BYTES:
                raise ToolError(f"{name} is too large ({status.st_size} bytes)")
            raw = file.read()
        if b"\0" in raw:
            raise ToolError(f"{name} is a binary file")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ToolError(f"{name} is not utf-8 text") from None


def split_lines(text: str) -> list[str]:
    """Lines as an editor counts them: only a line feed ends one, the last needs none."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def numbered(lines: list[str], first: int, last: int) -> str:
    """Lines first..last (from 1, both included, clipped), each with its number and an arrow."""
    first = max(1, first)
    return "\n".join(
        f"{number:>5}→{line[:LINE_CHARACTERS]}" for number, line in enumerate(lines[first - 1 : last], start=first)
    )


def _occurrences(text: str, part: str) -> int:
    """How often `part` stands in `text`, overlaps counted: each is a place an edit could mean."""
    count, start = 0, text.find(part)
    while start >= 0:
        count, start = count + 1, text.find(part, start + 1)
    return count


def _write(path: Path, text: str) -> None:
    """Replace a file's content in one step, keeping its mode."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    descriptor, partial = tempfile.mkstemp(prefix=".nanocode-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8"))
        os.chmod(partial, mode)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
