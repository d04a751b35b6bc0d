"""The manifest of a checkpoint: what makes a folder of files one that counts.

It names each file with its size and checksum, the step, and a few facts of the run, and is written
last: when all the files are safe, and in one step. So a folder without one is what a kill left
half-written, and a folder whose files differ from it is damaged. On a directory the checksum is
sha256 of what is on the disk; on gs:// it is the crc32c that the server keeps of every object.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanocode_core.store.files import Files

MANIFEST = "manifest.json"
REFUSED = "refused.json"
"""What the manifest of a damaged checkpoint is renamed to."""
FORMAT = 1


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


def seal(files: Files, name: str, saved: Saved) -> None:
    """Write the manifest of the checkpoint in folder `name`, whose files are complete."""
    files.settle(name)
    entries = {path: {"bytes": c.size, c.kind: c.checksum} for path, c in files.inventory(name).items()}
    content = {"format": FORMAT, "step": saved.step, "facts": dict(saved.facts), "files": entries}
    files.write(f"{name}/{MANIFEST}", (json.dumps(content, indent=1) + "\n").encode())


def verify(files: Files, name: str) -> Saved:
    """Read a sealed checkpoint's manifest and compare every file with it.

    Raises:
        Damaged: the manifest is no valid one, or a file is missing, cut short or changed.
    """
    try:
        content = json.loads(files.read(f"{name}/{MANIFEST}"))
        if content["format"] != FORMAT:
            raise Damaged(f"{MANIFEST} has format {content['format']}, not {FORMAT}")
        saved = Saved(int(content["step"]), dict(content["facts"]))
        expected = {path: (entry.pop("bytes"), *entry.popitem()) for path, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if str(saved.step) != name or not expected:
        raise Damaged(f"{MANIFEST} is of another checkpoint")
    found = files.inventory(name)
    problems = []
    for path, (size, kind, checksum) in expected.items():
        content = found.get(path)
        if content is None:
            problems.append(f"{path} is missing")
        elif content.size != size:
            problems.append(f"{path} has {content.size} bytes instead of {size}")
        elif (content.kind, content.checksum) != (kind, checksum):
            problems.append(f"{path} has changed (its {kind} differs)")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Damaged(problems[0] + more)
    return saved


def refuse(files: Files, name: str) -> None:
    """Let a damaged checkpoint no longer count; its files stay."""
    files.write(f"{name}/{REFUSED}", files.read(f"{name}/{MANIFEST}"))
    files.delete(f"{name}/{MANIFEST}")


def remove(files: Files, name: str) -> None:
    """Remove a checkpoint. Its manifest goes first: what a kill leaves of it does not count."""
    files.delete(f"{name}/{MANIFEST}")
    files.clear(name)
