"""What a run shows in the Prefect UI besides its states: tables, progress bars, the report.

Everything here is best effort. Writes go through one daemon thread; a server that is slow or gone
costs a few seconds and a line in the log, never the run.
"""

import contextvars
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.pipeline import Outcome, headline

_PROGRESS = re.compile(r"^(?P<stage>[\w-]+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>[^(]+) \(")
_EVERY_SECONDS = 10.0
_LONGEST_MARKDOWN = 400_000


class Board:
    """Artifacts of one flow run. `complain` gets one line the first time that a write fails."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._complained = False
        self._writes: queue.Queue[Callable[[], Any]] = queue.Queue()
        self._bars: dict[str, UUID] = {}
        self._moved: dict[str, float] = {}
        threading.Thread(target=self._work, name="board", daemon=True).start()

    def progress(self, line: str) -> None:
        """Move the progress bar of a stage, if `line` is a progress line of its job."""
        match = _PROGRESS.match(line)
        if match is None:
            return
        stage, done, total = match["stage"], int(match["done"]), int(match["total"])
        now = time.monotonic()
        if done < total and now - self._moved.get(stage, -_EVERY_SECONDS) < _EVERY_SECONDS:
            return
        self._moved[stage] = now
        self._put(lambda: self._move(stage, 100 * done / max(1, total)))

    def stages(self, outcomes: Iterable[Outcome]) -> None:
        """The table of stages."""
        table = [
            {
                "stage": outcome.stage,
                "state": "reused" if outcome.reused else "built",
                "minutes": round(outcome.minutes, 2),
                "headline": headline(outcome.metrics),
                "artifact": outcome.fingerprint,
            }
            for outcome in outcomes
        ]
        self._put(lambda: create_table_artifact(table=table, key="stages", description="What this run did"))

    def evaluation(self, metrics: Mapping[str, Any], model: str) -> None:
        """The figures of an evaluation as a table; `model` is the fingerprint of the dpo artifact."""
        table = [{"figure": name, "value": value} for name, value in metrics.items()]
        title = f"Evaluation of dpo {model}"
        self._put(lambda: create_table_artifact(table=table, key="evaluation", description=title))

    def report(self, page: str) -> None:
        """A link to the report, and its Markdown twin to read in the UI."""
        link = page if "://" in page else Path(page).resolve().as_uri()
        self._put(lambda: create_link_artifact(link=link, link_text=page, key="report", description="The report"))
        text = Path(page).with_suffix(".md")
        if "://" not in page and text.is_file():
            markdown = text.read_text()[:_LONGEST_MARKDOWN]
            self._put(lambda: create_markdown_artifact(markdown=markdown, key="report-text"))

    def flush(self, seconds: float = 15.0) -> None:
        """Wait for what is still to be written, but not longer than `seconds`."""
        written = threading.Event()
        self._put(written.set)
        if not written.wait(seconds):
            self._fail("the server does not answer")

    def _move(self, stage: str, percent: float) -> None:
        bar = self._bars.get(stage)
        if bar is not None:
            update_progress_artifact(artifact_id=bar, progress=percent)
            return
        created = create_progress_artifact(progress=percent, key=f"progress-{stage}", description=f"{stage}: progress")
        assert isinstance(created, UUID)
        self._bars[stage] = created

    def _put(self, write: Callable[[], Any]) -> None:
        # The caller's context says which flow and task run an artifact belongs to.
        context = contextvars.copy_context()
        self._writes.put(lambda: context.run(write))

    def _work(self) -> None:
        while True:
            write = self._writes.get()
            try:
                write()
            except Exception as error:  # whatever the client raises: the run must go on
                self._fail(f"{type(error).__name__}: {error}".splitlines()[0])

    def _fail(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"artifacts of this run may be missing in the Prefect UI ({reason})")
