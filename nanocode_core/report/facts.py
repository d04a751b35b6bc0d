"""What the report is made of: records, JSON documents and metrics of the stages, read tolerantly.

A file or a figure that is missing is left out and later shows as a dash; one that can't be read as
JSON is as good as missing, since every file was verified against its record before. Errors of the
disk still rise.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nanocode_core.config.chips import Chip, find_chip
from nanocode_core.report.text import number
from nanocode_core.store import Artifact, Record

Json = dict[str, Any]


@dataclass(frozen=True)
class StageFacts:
    """One artifact as the report sees it."""

    name: str
    record: Record
    path: Path

    @cached_property
    def metrics(self) -> Json:
        """The headline metrics of its record."""
        return dict(self.record.metrics)

    @cached_property
    def curve(self) -> tuple[Json, ...]:
        """The lines of its metrics file, in the order written."""
        return tuple(json_lines(self.path / "logs" / "metrics.jsonl"))

    def document(self, name: str) -> Json:
        """A JSON object among its files; empty where it isn't there."""
        value = read_json(self.path / name)
        return value if isinstance(value, dict) else {}

    def figure(self, *names: str) -> float | None:
        """The first of these headline metrics that is a number."""
        return first_number(self.metrics, *names)

    @property
    def minutes(self) -> float | None:
        """Minutes of work, over all starts."""
        return number(self.record.provenance.get("minutes"))

    @property
    def chip(self) -> tuple[Chip, int] | None:
        """The accelerator it ran on and how many chips, where the record tells and the table knows."""
        machine = self.record.provenance.get("machine")
        for place in (self.metrics, machine if isinstance(machine, Mapping) else {}):
            kind = place.get("device_kind") or place.get("accelerator")
            if isinstance(kind, str) and (chip := find_chip(kind)) is not None:
                return chip, int(first_number(place, "devices", "chips") or 1)
        return None

    def series(self, name: str) -> tuple[tuple[float, float], ...]:
        """The points (step, value) of one metric."""
        points = ((number(line.get("step")), number(line.get(name))) for line in self.curve)
        return tuple((step, value) for step, value in points if step is not None and value is not None)

    def names(self, *prefixes: str) -> list[str]:
        """The metrics of the curve whose names begin so, sorted."""
        return sorted({key for line in self.curve for key in line if key.startswith(prefixes)})


Facts = Mapping[str, StageFacts]


def gather(artifacts: Mapping[str, Artifact]) -> dict[str, StageFacts]:
    """The facts of every artifact, in the order given."""
    return {name: StageFacts(name, artifact.record, artifact.path) for name, artifact in artifacts.items()}


def document(facts: Facts, stage: str, name: str) -> Json:
    """A JSON object among the files of a stage; empty where there is no such stage or file."""
    return facts[stage].document(name) if stage in facts else {}


def first_number(values: Mapping[str, Any], *names: str) -> float | None:
    """The first of these entries that is a finite number."""
    for name in names:
        figure = number(values.get(name))
        if figure is not None:
            return figure
    return None


def read_json(path: Path) -> Any:
    """The JSON value in a file; None where there is no such file or no such value."""
    try:
        return json.loads(path.read_text("utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def json_lines(path: Path) -> Iterator[Json]:
    """The JSON objects of a file, one a line; other lines are passed over."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
