"""A trace of a few steady steps, for xprof or TensorBoard: <directory>/plugins/profile/<time>/*.xplane.pb.

The first steps of a start compile and warm up, so the trace begins after them. In xprof the steps
carry their batch's number, from 0.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import jax

WARM_UP = 3
"""Steps of a start before the trace."""
STEPS = 3
"""Steps in the trace."""


class Profile:
    """Traces steps first + WARM_UP ... + STEPS of a start, or the last ones of a shorter run.

    Use it as a context manager around the steps: what is running is ended with them.
    """

    def __init__(self, directory: Path | None, first: int, last: int, log: Callable[[str], None]) -> None:
        """For a start that does the steps first ... last - 1.

        Args:
            directory: where the trace goes; None: no trace is taken.
        """
        self._directory, self._log = directory, log
        self._end = min(first + WARM_UP + STEPS, last)
        self._begin = max(first, self._end - STEPS)
        self._running = False

    def step(self, index: int) -> AbstractContextManager[object]:
        """Call before step `index` (from 0), and run the step inside the context."""
        if self._directory is None or not self._begin <= index < self._end:
            return nullcontext()
        if not self._running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would be an event: a hundred times the size
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=index)

    def is_last(self, index: int) -> bool:
        """Whether the trace ends with step `index`; call `stop` when the device has done it."""
        return self._running and index + 1 >= self._end

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the trace and write it, if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            steps = f"steps {self._begin + 1} to {self._end}"
            self._log(f"a trace of {steps} is in {self._directory}; look at it with xprof or TensorBoard")
