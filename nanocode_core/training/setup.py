"""What every training job does first, and what it keeps beside its checkpoints."""

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from nanocode_core.config import Config
from nanocode_core.store import Files
from nanocode_core.training.distributed import join, share

if TYPE_CHECKING:
    from nanocode_core.jobs.job import Job

PROGRAMS = "cache/xla"
"""Folder of a remote store for compiled programs."""


def prepare_jax(config: Config) -> None:
    """Meet the job's other processes, and keep compiled programs for the next start, wherever that will be."""
    keep_freed_memory()
    join()
    settings = {"jax_compilation_cache_dir": programs(config), "jax_persistent_cache_min_compile_time_secs": 0.5}
    for name, value in settings.items():
        jax.config.update(name, value)


def programs(config: Config) -> str:
    """Where compiled programs lie: in a store on gs://, which the next machine has too, else in run.cache."""
    files = Files(config.run.store)
    if files.root.startswith("gs://"):
        return f"{files.root}/{PROGRAMS}"
    directory = Path(config.run.cache) / "jax"
    directory.mkdir(parents=True, exist_ok=True)
    return str(directory)


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, for its next allocation; to be called before jax computes.

    On a CPU, XLA allocates the buffers of a step anew each time; as glibc has it by default, they go back
    to the kernel after the step, and every page of them is faulted in and zeroed again in the next one
    (LOG.md). Returns whether it took effect (glibc only).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    arenas, trim, mapped = -8, -1, -3  # M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    # One pool for all threads, which keeps half a GiB at its end; larger blocks are still mapped one by one.
    return all([mallopt(arenas, 1), mallopt(trim, 512 * 2**20), mallopt(mapped, 256 * 2**20)])


def remembered(job: "Job", name: str, compute: Callable[[], Any]) -> Any:
    """The JSON value `name` of an earlier start of this job, or compute and keep it.

    For what is measured before training: after a kill it need not be measured again.
    """
    path = job.work / f"{name}.json"
    kept = share(lambda: json.loads(path.read_text()) if path.exists() else None)
    if kept is not None:
        return kept
    value = compute()
    if job.primary:
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(value))
        os.replace(partial, path)
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a content file of an artifact."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def throughput(job: "Job") -> dict[str, float]:
    """Headline figures from the metrics: the last loss, the median of tokens per second and of MFU, goodput."""
    if not job.primary:
        return {}
    lines = [json.loads(line) for line in job.metrics_path.read_text().splitlines()]
    found = {"loss": next(line["loss"] for line in reversed(lines) if "loss" in line)}
    for name in ("tokens_per_second", "mfu"):
        values = sorted(line[name] for line in lines if name in line)
        if values:
            found[name] = values[len(values) // 2]
    found["goodput"] = next(line["goodput"] for line in reversed(lines) if "goodput" in line)
    return found
