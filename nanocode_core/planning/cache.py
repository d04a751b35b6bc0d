"""Answers kept as JSON files: a compilation takes minutes, and what it says never changes.

`programs/<hash>.json` holds the outcome of a lowered program; `requests/<key>.json` says which
program a request led to, so that the same request need not even be lowered; `counts/<key>.json`
what was counted. XLA's own persistent cache does not work for a topology without devices. A file
that can't be read is a miss.
"""

import json
import os
from pathlib import Path
from typing import Any


class Cache:
    """The kept outcomes under one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def program(self, program: str) -> dict[str, Any] | None:
        """The outcome of a lowered program, None if it was never compiled here."""
        return self._read("programs", program)

    def keep_program(self, program: str, outcome: dict[str, Any]) -> None:
        """Keep the outcome of a lowered program."""
        self._write("programs", program, outcome)

    def request(self, key: str) -> dict[str, Any] | None:
        """The outcome of the program that a request led to, None if either isn't there."""
        link = self._read("requests", key)
        return self.program(str(link.get("program"))) if link else None

    def keep_request(self, key: str, program: str) -> None:
        """Remember which program a request led to."""
        self._write("requests", key, {"program": program})

    def counts(self, key: str) -> dict[str, Any] | None:
        """What was counted for a key, None if nothing was."""
        return self._read("counts", key)

    def keep_counts(self, key: str, counts: dict[str, Any]) -> None:
        """Keep what was counted for a key."""
        self._write("counts", key, counts)

    def _read(self, kind: str, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads((self._root / kind / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def _write(self, kind: str, name: str, value: dict[str, Any]) -> None:
        path = self._root / kind / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
