"""Where a result came from: code, versions, machine, minutes. Recorded, never part of an identity."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import nanocode_core
from nanocode_core.config import PROJECT

COMMIT = "NANOCODE_COMMIT"
"""The environment variable that names the commit where there is no checkout: docker/Dockerfile sets it."""

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "tokenizers", "prefect", "numpy", "pyarrow")


class Stopwatch:
    """Seconds of work over all starts of a job: added up in a file, so that a kill loses little."""

    def __init__(self, path: Path, every: float = 5.0) -> None:
        self._path, self._every = path, every
        earlier = _read_clock(path)
        self._before: float = earlier.get("seconds", 0.0)
        self.starts: int = earlier.get("starts", 0) + 1
        self.first_start: float = earlier.get("first_start", time.time())
        self._begin = time.monotonic()
        self._end = threading.Event()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, all starts together."""
        return self._before + time.monotonic() - self._begin

    def __enter__(self) -> "Stopwatch":
        self._write()
        threading.Thread(target=self._tick, name="stopwatch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()

    def _tick(self) -> None:
        while not self._end.wait(self._every):
            try:
                self._write()
            except OSError:
                return  # the work itself meets the same disk and reports it

    def _write(self) -> None:
        partial = self._path.with_suffix(".tmp")
        partial.write_text(
            json.dumps({"seconds": self.seconds, "starts": self.starts, "first_start": self.first_start})
        )
        os.replace(partial, self._path)


def provenance(watch: Stopwatch) -> dict[str, Any]:
    """The provenance of a job that just ended."""
    return {
        "nanocode": nanocode_core.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": machine(),
        "started": watch.first_start,
        "finished": time.time(),
        "minutes": round(watch.seconds / 60, 3),
        "starts": watch.starts,
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and, in a process that uses jax, the accelerator of this machine."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {"system": platform.system(), "processor": name, "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
    if jax := sys.modules.get("jax"):  # a job that never computed has no accelerator to name
        devices = jax.devices()
        found |= {"accelerator": devices[0].device_kind, "chips": len(devices)}
    return found


def _read_clock(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that an image was built from (NANOCODE_COMMIT), else that of this checkout.

    With "+" where files differ from it; None where neither is known.
    """
    if built := os.environ.get(COMMIT):
        return built
    try:
        head = subprocess.run(
            ["git", "-C", str(PROJECT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "-C", str(PROJECT), "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None
