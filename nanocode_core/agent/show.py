"""How the chat shows calls and results: plain values in, rich text out.

An Edit is a diff, a Bash call its command after a dollar sign, Read and Grep one line each. What a
model or a program wrote can hold anything, terminal escapes included: control characters are shown
as pictures and never reach the terminal.
"""

import difflib
from collections.abc import Mapping

from rich.text import Text

from nanocode_core.tokenizer import ToolCall

RESULT_LINES = 12
LINE_CHARACTERS = 200
MARK = "● "
MARGIN = "  "

_PICTURES: Mapping[int, str | int] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),  # C1: some terminals take them for escapes
    **dict.fromkeys([0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069], "\ufffd"),  # bidi
}


def printable(text: str) -> str:
    """The text with its control characters made visible; line ends and tabs stay."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def show_call(call: ToolCall) -> Text:
    """A call as the user judges it: nothing that would be executed is left out."""
    arguments = {printable(key): printable(value) for key, value in call.arguments.items()}
    match call.name, arguments:
        case "Bash", {"command": command, **rest} if not rest:
            return _title("$", command.replace("\n", f"\n{MARGIN}  "))
        case "Edit", {"file_path": path, "new_string": new, **rest} if set(rest) <= {"old_string"}:
            old = rest.get("old_string", "")
            return _title("Edit", path if old else f"{path} (new file)").append_text(_diff(old, new))
        case "Read", {"file_path": path, **rest}:
            return _title("Read", path + _options(rest))
        case "Grep", {"pattern": pattern, **rest}:
            where = rest.pop("path", "")
            return _title("Grep", f'"{pattern}"' + (f" in {where}" if where else "") + _options(rest))
        case _:
            return _title(printable(call.name), _options(arguments).strip())


def show_result(result: str, lines: int = RESULT_LINES) -> Text:
    """A tool's result, shortened: the first `lines` lines and how many follow."""
    style = "red" if result.startswith(("error:", "rejected")) else "dim"
    rows = printable(result).split("\n")
    kept = rows if len(rows) <= lines + 1 else [*rows[:lines], f"... {len(rows) - lines} more lines"]
    return Text("\n".join(MARGIN + _short(row) for row in kept), style=style)


def show_raw(text: str) -> Text:
    """A conversation with its special tokens, one turn a line at least."""
    for end in ("<|bos|>", "<|user_end|>", "<|assistant_end|>", "<|tool_result_end|>"):
        text = text.replace(end, end + "\n")
    shown = Text(printable(text).rstrip("\n"))
    shown.highlight_regex(r"<\|\w+\|>", "cyan")
    return shown


def _title(name: str, rest: str) -> Text:
    return Text.assemble((MARK, "cyan"), (name, "bold"), " ", rest)


def _options(arguments: Mapping[str, str]) -> str:
    return "".join(f" {key}={value}" for key, value in arguments.items())


def _diff(old: str, new: str) -> Text:
    """The change of an Edit, line by line; all of the new text, up to two unchanged lines around changes."""
    styles = {"+": "green", "-": "red", "@": "cyan"}
    out = Text()
    for row in list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=2, lineterm=""))[3:]:
        shown = "..." if row[:1] == "@" else f"{row[:1]} {row[1:]}"
        out.append(f"\n{MARGIN}{shown}", style=styles.get(row[:1], ""))
    return out


def _short(row: str) -> str:
    return row if len(row) <= LINE_CHARACTERS else row[:LINE_CHARACTERS] + " ..."
