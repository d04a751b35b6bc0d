"""What a training run says about itself: one metrics line a step, and clocks over windows of some seconds.

The losses are read one step behind, so that the device never waits for Python. Fields in `CLOCKS`
depend on the machine and the moment; all others are the same however often a run was killed.
Step time runs from the end of one step to the end of the next, without pauses (measurements, saves).

    tokens_per_second, mfu           over the window (how MFU is counted: model/flops.py)
    step_seconds_p50, _p90, _p99     over the window's steps
    input_wait                       share of the window's step time spent waiting for a batch
    checkpoint_stall_seconds         time the window's saves kept the loop
    memory_gib                       peak of the fullest local device, or of this process on a CPU
    compile_seconds                  first step of a start: tracing, and compiling or reading from the cache, before it
    goodput                          at the end: see goodput.py
"""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
from jax import Array

from nanocode_core.model.flops import model_flops_utilization
from nanocode_core.training.health import Health

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

PROGRESS_SECONDS = 5.0
"""Throughput is taken, and progress shown, over windows of at least so much time."""

CLOCKS = frozenset(
    {
        "time",
        "tokens_per_second",
        "mfu",
        "step_seconds_p50",
        "step_seconds_p90",
        "step_seconds_p99",
        "input_wait",
        "checkpoint_stall_seconds",
        "memory_gib",
        "compile_seconds",
        "goodput",
        "productive_seconds",
        "wall_seconds",
        "starts",
    }
)
"""Fields of metrics lines that differ from run to run."""


@dataclass
class _Window:
    """What was measured since the last line with clocks."""

    steps: list[float] = field(default_factory=list)
    waited: float = 0.0
    stalled: float = 0.0


class Reporter:
    """Reads each step's metrics, watches over them, and writes the lines."""

    def __init__(
        self,
        job: "Job",
        steps: int,
        first: int,
        tokens_per_step: int,
        flops: int,
        health: Health,
        productive: float,
        compiled: float,
    ) -> None:
        """For the steps from `first` on, of which the next one begins now.

        Args:
            flops: of training, for each token.
            health: told every loss.
            productive: seconds that the steps up to `first` took.
            compiled: seconds that making the compiled step took.
        """
        self._job, self._steps, self._first = job, steps, first
        self._tokens, self._flops = tokens_per_step, flops
        self._health = health
        self.productive = productive
        """Seconds of all steps read so far that count: without waiting for input."""
        self._pending: deque[tuple[int, Mapping[str, Array]]] = deque()
        self._window = _Window()
        self._compiled = compiled
        self._paused, self._waited = 0.0, 0.0  # since the last step was read
        self._mark = time.perf_counter()

    def push(self, done: int, metrics: Mapping[str, Array], waited: float) -> None:
        """Take the metrics of the step that is on its way, and read those of the one before.

        Args:
            done: steps done with it.
            waited: seconds that its batch was waited for.
        """
        self._pending.append((done, metrics))
        self._waited += waited
        if len(self._pending) > 1:
            self._read(*self._pending.popleft())

    def drain(self) -> None:
        """Read what is pending: on return all steps so far are done, and found healthy."""
        while self._pending:
            self._read(*self._pending.popleft())

    @contextmanager
    def paused(self, stall: bool = False) -> Iterator[None]:
        """Time inside is no step time; with `stall` it counts as the stall of a save."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._paused += seconds
            self._window.stalled += seconds if stall else 0.0

    def _read(self, done: int, metrics: Mapping[str, Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}  # waits for the step
        now = time.perf_counter()
        seconds, waited = now - self._mark - self._paused, self._waited
        self._mark, self._paused, self._waited = now, 0.0, 0.0
        is_first = done == self._first + 1
        self.productive += max(0.0, seconds - waited)
        self._health.check(done, values)
        if is_first:
            # The first step is slower, for its memory is new: the windows start after it.
            self._job.metric(step=done, **values, compile_seconds=round(self._compiled, 3))
            note = f"loss {values['loss']:.4f}, compiled in {self._compiled:.1f} s"
            self._job.progress(done, self._steps, "steps", note)
            return
        self._window.steps.append(seconds)
        self._window.waited += waited
        if sum(self._window.steps) < PROGRESS_SECONDS and done < self._steps:
            self._job.metric(step=done, **values)
            return
        clocks = self._clocks(self._window)
        self._job.metric(step=done, **values, **clocks)
        note = f"loss {values['loss']:.4f}, {clocks['tokens_per_second']:,.0f} tokens/s"
        if clocks["input_wait"] >= 0.01:
            note += f", {100 * clocks['input_wait']:.0f}% waiting for input"
        self._job.progress(done, self._steps, "steps", note)
        self._window = _Window()

    def _clocks(self, window: _Window) -> dict[str, float]:
        total = max(sum(window.steps), 1e-9)
        speed = len(window.steps) * self._tokens / total
        utilization = model_flops_utilization(speed * self._flops)
        return {
            "tokens_per_second": round(speed, 1),
            **({} if utilization is None else {"mfu": utilization}),
            **{f"step_seconds_p{p}": round(percentile(window.steps, p), 6) for p in (50, 90, 99)},
            "input_wait": round(window.waited / total, 6),
            "checkpoint_stall_seconds": round(window.stalled, 6),
            "memory_gib": round(peak_memory() / 2**30, 3),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least `percent` of a hundred do not exceed (nearest rank)."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(rank) - 1)]


def peak_memory() -> int:
    """Bytes: the most that a local device has had in use, or this process where devices do not tell."""
    peaks = [_device_peak(device) for device in jax.local_devices()]
    if any(peaks):
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_peak(device: Any) -> int:
    stats = device.memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0))
