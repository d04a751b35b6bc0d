"""The whole demo run on this machine: minutes, peak memory of all its processes, and the second run.

`python benchmarks/speedrun.py [--preset demo] [--store DIR]` runs `nanocode speedrun` twice on a fresh
store (a temporary one, removed afterwards, unless named). The last line of stdout is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil


class Peak:
    """The largest memory (PSS where the kernel tells it, so shared pages count once) of a process tree."""

    def __init__(self, root: int) -> None:
        self.bytes = 0
        self._root = psutil.Process(root)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> float:
        """The peak in GiB."""
        self._end.set()
        self._thread.join()
        return self.bytes / 2**30

    def _sample(self) -> None:
        while not self._end.wait(0.5):
            total = 0
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in processes:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", 0) or memory.rss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.bytes = max(self.bytes, total)


def run(preset: str, store: Path) -> tuple[dict[str, Any], float, float]:
    """One speedrun: its summary, its seconds, its peak memory in GiB."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "cli.main", "speedrun", "--preset", preset, "--store", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    code = process.wait()
    gib = peak.stop()
    if code:
        sys.exit(f"the speedrun ended with exit code {code}")
    return json.loads(last), time.monotonic() - begin, gib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch, "store")
        first, first_seconds, gib = run(options.preset, store)
        second, second_seconds, _ = run(options.preset, store)
    figures = {
        "preset": options.preset,
        "first_minutes": round(first_seconds / 60, 2),
        "second_seconds": round(second_seconds, 1),
        "peak_gib": round(gib, 2),
        "all_reused": all(stage["state"] == "reused" for stage in second["stages"].values()),
        "stages": {name: stage["minutes"] for name, stage in first["stages"].items()},
        "evaluation": first["stages"]["eval"]["metrics"],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
