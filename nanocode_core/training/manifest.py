"""The manifest of a checkpoint: what makes a directory of files one that counts.

It names each file with its size and sha256, the step, and a few facts of the run, and is written
last: on the disk are then all the files, and only then, by one rename, the manifest. So a directory
without one is what a kill left half-written, and a directory whose files differ from it is damaged.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.store.local import replacing, sync

MANIFEST = "manifest.json"
FORMAT = 1
READERS = 4
"""Files hashed side by side when a checkpoint is verified."""


class Damaged(Exception):
    """A checkpoint differs from its manifest; the message says where."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint.

    Attributes:
        step: steps done.
        facts: what the loop noted beside the state (see `loop.train`); JSON values.
    """

    step: int
    facts: Mapping[str, Any]


def seal(directory: Path, saved: Saved) -> None:
    """Force all files below `directory` to the disk, then write its manifest."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        sync(path)
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    for folder in (*(p for p in directory.rglob("*") if p.is_dir()), directory, directory.parent):
        sync(folder)
    content = {"format": FORMAT, "step": saved.step, "facts": dict(saved.facts), "files": files}
    with replacing(directory / MANIFEST) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def is_sealed(directory: Path) -> bool:
    """Whether there is a manifest, right or wrong."""
    return (directory / MANIFEST).exists()


def verify(directory: Path) -> Saved:
    """Read a sealed checkpoint's manifest and compare every file with it.

    Raises:
        Damaged: the manifest is no valid one, or a file is missing, cut short or changed.
    """
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
        if content["format"] != FORMAT:
            raise Damaged(f"{MANIFEST} has format {content['format']}, not {FORMAT}")
        saved = Saved(int(content["step"]), dict(content["facts"]))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if str(saved.step) != directory.name or not expected:
        raise Damaged(f"{MANIFEST} is of another checkpoint")

    def check(name: str) -> str | None:
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        size, digest = expected[name]
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        return None if _sha256(path) == digest else f"{name} has changed (its sha256 differs)"

    with ThreadPoolExecutor(READERS) as pool:
        problems = [problem for problem in pool.map(check, expected) if problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Damaged(problems[0] + more)
    return saved


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
