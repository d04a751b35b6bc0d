"""Grep over a directory: sorted files, hidden and binary ones left out. Standard library only.

The tools import `grep` for literal patterns and run this file's source in the sandbox for regular
expressions, which can take for ever.
"""

import os
import re
from pathlib import Path

FILE_BYTES = 1_000_000
MATCHES = 50
LINE_CHARACTERS = 200
SKIPPED = ("__pycache__", "node_modules")


def grep(root: str, start: str, pattern: str, after: int, before: int) -> str:
    """Lines under root/start that match, as `path:line:text`; context lines as `path-line-text`.

    Groups that don't touch are separated by `--`. Symbolic links are not followed.
    """
    expression = re.compile(pattern)
    shown: list[str] = []
    found = 0
    for path in _files(Path(root), Path(root, start)):
        try:
            raw = path.read_bytes()
        except OSError:
            continue  # not readable: nothing to find there
        if b"\0" in raw[:4096]:
            continue
        lines = raw.decode("utf-8", errors="replace").splitlines()
        hits = [number for number, line in enumerate(lines) if expression.search(line)]
        name, last = path.relative_to(root).as_posix(), -1
        for index, hit in enumerate(hits):
            if found == MATCHES:
                return "\n".join([*shown, f"... more than {MATCHES} matches"])
            found += 1
            first = max(hit - before, last + 1)
            if shown and (after or before) and (last < 0 or first > last + 1):
                shown.append("--")
            end = hit + after if index + 1 == len(hits) else min(hit + after, hits[index + 1] - 1)
            for number in range(first, min(end, len(lines) - 1) + 1):
                mark = ":" if number == hit else "-"
                shown.append(f"{name}{mark}{number + 1}{mark}{lines[number][:LINE_CHARACTERS]}")
                last = number
    return "\n".join(shown) or "no matches found"


def _files(root: Path, start: Path) -> list[Path]:
    if start.is_file():
        return [start]
    found = []
    for directory, folders, names in os.walk(start):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                found.append(path)
    return sorted(path for path in found if path.stat().st_size <= FILE_BYTES)
