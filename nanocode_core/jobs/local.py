"""The local launcher: a job is a subprocess of this machine, its output followed line by line."""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from nanocode_core.errors import UserError
from nanocode_core.jobs import tether
from nanocode_core.jobs.launcher import JobFailed, JobPreempted
from nanocode_core.jobs.spec import BAD_INPUT, DONE, OUTAGE, PREEMPTED, JobSpec

GRACE_SECONDS = 15.0
"""From SIGTERM to SIGKILL, as on a spot TPU."""


class LocalLauncher:
    """Runs one job at a time in a subprocess that ends with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, spec: JobSpec, line: Callable[[str], None]) -> None:
        """Build the artifact of `spec`; every line the job prints goes to `line`.

        Raises:
            UserError: the job refused its input (its own one-line message).
            JobPreempted, JobFailed: it ended early, or with a bug.
        """
        with tempfile.TemporaryDirectory(prefix="nanocode-") as scratch:
            path = Path(scratch, "spec.json")
            path.write_text(spec.model_dump_json())
            process = tether.popen(
                ["-m", "nanocode_core.jobs.worker", str(path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            with self._lock:
                self._process = process
            last = ""
            try:
                assert process.stdout is not None
                for text in process.stdout:
                    text = text.rstrip("\n")
                    if text.startswith("error: "):
                        last = text.removeprefix("error: ")
                    line(text)
                code = process.wait()
            except BaseException:
                self.cancel()
                raise
            finally:
                with self._lock:
                    self._process = None
        if code == DONE:
            return
        if code in (BAD_INPUT, OUTAGE):
            raise UserError(last or f"the {spec.stage} job refused its input; see its log")
        if code in (PREEMPTED, -signal.SIGTERM):
            raise JobPreempted(f"the {spec.stage} job was preempted; run again to go on from its last save")
        reason = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise JobFailed(f"the {spec.stage} job {reason}; its log is above; run again to go on from its last save")

    def cancel(self) -> None:
        """Stop the job: SIGTERM to its process group, SIGKILL after the grace time."""
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
