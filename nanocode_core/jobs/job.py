"""What a build function sees: its config, its inputs, its work directory, and how to report.

`work` is private and survives a kill: save there, and on the next start go on from what is there.
`out` becomes the artifact when the build function returns; files under `out/logs/` hold clock times
and are not part of the content digest. Everything else in `out` must come out the same, byte for
byte, however often the job was killed on the way.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanocode_core.config import Config
from nanocode_core.store import Artifact, Store
from nanocode_core.store.local import replacing

PROGRESS = "progress.txt"
"""File in the work directory: the newest progress line, for who can't read the log."""


@dataclass
class Job:
    """One artifact being built.

    Attributes:
        inputs: the verified artifacts this one is made of, by stage name; `.path` is local.
        work: directory for saves; may hold those of an earlier, killed start.
        out: directory whose files will be the artifact.
        primary: whether this process logs and writes metrics; of a job's several processes one does.
        identity: what the fingerprint was made of, besides the inputs.
        keep: makes what is in `work` and `out` now safe from the loss of this machine; it raises where it can't.
    """

    stage: str
    fingerprint: str
    config: Config
    inputs: dict[str, Artifact]
    work: Path
    out: Path
    store: Store
    primary: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None
    _shown: float = field(default=-1e9, init=False)
    _first: tuple[float, int] | None = field(default=None, init=False)

    @property
    def checkpoints(self) -> str:
        """The directory or URL of a training job's checkpoints; one place for all processes of the job."""
        url = self.store.work_url(self.stage, self.fingerprint)
        return str(self.work / "checkpoints") if url is None else f"{url}/checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The metrics, one JSON object a line."""
        return self.out / "logs" / "metrics.jsonl"

    def log(self, text: str) -> None:
        """Print one line, which ends up in the run's log."""
        if self.primary:
            print(f"{self.stage}: {text}", flush=True)

    def metric(self, **values: Any) -> None:
        """Append one line to the metrics. Give `step` where there is one: a resume cuts back to it."""
        if not self.primary:
            return
        self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        with self.metrics_path.open("a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def metrics_bytes(self) -> int:
        """The size of the metrics so far, which are on the disk when this returns."""
        if not self.metrics_path.exists():
            return 0
        with self.metrics_path.open("rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def rewind_metrics(self, step: int, size: int | None = None) -> None:
        """Go back to what the metrics were after `step` steps.

        With the `metrics_bytes` of that moment they are cut there. Without, or where they are shorter
        (somebody removed them), lines whose `step` is beyond `step` are dropped, and a last line cut
        short by a kill.
        """
        if not self.primary or not self.metrics_path.exists():
            return
        if size is not None and size <= self.metrics_path.stat().st_size:
            os.truncate(self.metrics_path, size)
            return
        kept = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if value.get("step", 0) <= step:
                kept.append(line)
        partial = self.metrics_path.with_suffix(".tmp")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self.metrics_path)

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Print a progress line, at most one in five seconds, always the last one; it is kept in `work` too."""
        if not self.primary:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if done < total and now - self._shown < 5:
            return
        self._shown = now
        since, start = self._first
        left = (now - since) / max(1, done - start) * (total - done) if done > start else None
        clock = f", {left // 60:.0f}:{left % 60:02.0f} left" if left is not None and done < total else ""
        text = f"{done}/{total} {unit} ({100 * done // max(1, total)}%{clock}){'  ' + note if note else ''}"
        with replacing(self.work / PROGRESS) as path:  # before the log, so that it is never newer
            path.write_text(f"{self.stage}: {text}")
        self.log(text)
