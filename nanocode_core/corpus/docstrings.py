"""Prose out of Python: the docstrings of a module as one document, and what counts as readable."""

import ast
import gc
import re
import warnings
from collections.abc import Iterator

MIN_CHARACTERS = 200
MAX_CHARACTERS = 100_000
MAX_LINE = 2_000
"""Longer lines are data, not prose or code that a person wrote."""

_LETTERS = 0.6
"""Share of letters in prose, white space aside; tables of numbers and ASCII art have fewer."""

_MAX_SOURCE = 300_000
_QUOTED = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
_QUOTED_SHARE = 0.05
"""A module with less text between triple quotes is not parsed: parsing takes most of the time."""

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str, module: str) -> str | None:
    """The docstrings of a module, its classes and their methods, each under the object's name.

    A text that occurs again within the module is left out. None where there is little to find, or
    where the source is not valid Python of this version (templates, tests of the parser).
    """
    quoted = sum(match.end() - match.start() for match in _QUOTED.finditer(source))
    if len(source) > _MAX_SOURCE or quoted < max(MIN_CHARACTERS, _QUOTED_SHARE * len(source)):
        return None
    tree = _parse(source)
    if tree is None:
        return None
    seen: set[str] = set()
    parts = [f"# {module}"]
    for name, text in _documented(tree):
        if text not in seen:
            seen.add(text)
            parts += [f"## {name}", text] if name else [text]
    return "\n\n".join(parts) + "\n" if seen else None


def _parse(source: str) -> ast.Module | None:
    """The syntax tree. The collector is paused: a tree is a hundred thousand objects and no garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    finally:
        if collecting:
            gc.enable()


def _documented(node: _Definition, name: str = "") -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a definition, "" for the module, and of those in its body."""
    text = ast.get_docstring(node)
    if text and text.strip():
        yield name, text.strip()
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}" if name else child.name)


def is_code(text: str) -> bool:
    """Whether a module is of a size, and of lines, that a person writes and reads."""
    return MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and _longest_line(text) <= MAX_LINE


def is_prose(text: str) -> bool:
    """Whether a text is of a size to learn from and mostly words."""
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or _longest_line(text) > MAX_LINE:
        return False
    dense = "".join(text.split())
    return sum(map(str.isalpha, dense)) >= _LETTERS * len(dense)


def _longest_line(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)
