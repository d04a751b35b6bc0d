"""Child processes of the benchmarks: each prints JSON lines, one a timed step, and its summary last.

`run_child` times a trainer's steps from those lines; `run_json` takes only the last one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNTIMED = 2
"""Steps at the start that aren't counted: they compile and warm up."""


@dataclass(frozen=True)
class Timing:
    """One child's steps.

    Attributes:
        first: seconds from the start of the process to the end of its first step.
        seconds: of each step after the first two.
        processor: CPU seconds (user and system, all threads) of the same.
        summary: what the child printed last.
    """

    first: float
    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    summary: Mapping[str, Any]


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> Timing:
    """Run a child that times steps."""
    start = time.perf_counter()
    first, steps = 0.0, []
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(command, environment, errors)
        assert process.stdout is not None
        last: dict[str, Any] = {}
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            last = json.loads(line)
            if "step" in last:
                first = first or time.perf_counter() - start
                steps.append(last)
        _end(process, errors)
    timed = steps[UNTIMED:]
    return Timing(first, tuple(s["step"] for s in timed), tuple(sum(s["processor"]) for s in timed), last)


def run_json(command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> dict[str, Any]:
    """Run a child to its end; the JSON object in the last line that holds one. Its output goes to `log` too."""
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(command, environment, errors)
        assert process.stdout is not None
        for line in process.stdout:
            if log is not None:
                with log.open("a") as file:
                    file.write(line)
            if line.startswith("{") and line.rstrip().endswith("}"):
                try:
                    last = json.loads(line)
                except json.JSONDecodeError:  # a program's own output may look like it
                    continue
        _end(process, errors)
    return last


def _start(command: Sequence[str], environment: Mapping[str, str], errors: Any) -> "subprocess.Popen[str]":
    merged = {**os.environ, **environment}
    return subprocess.Popen(list(command), env=merged, stdout=subprocess.PIPE, stderr=errors, text=True)


def _end(process: "subprocess.Popen[str]", errors: Any) -> None:
    """Wait; end the benchmark with the child's last words where it failed."""
    if code := process.wait():
        errors.seek(0)
        sys.exit(f"{errors.read()[-2000:]}\n{process.args!r}: exit code {code}")
