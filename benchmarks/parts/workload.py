"""A training step to be timed, as the command of a child process: ours (own_step.py) or nanochat's."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.child import Timing

HERE = Path(__file__).parent

Command = tuple[list[str], dict[str, str]]
"""Arguments and environment."""


@dataclass(frozen=True)
class Workload:
    """A model and the rows of one optimizer step."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    rows: int
    sequence: int = 512
    packed: bool = False


def our_step(
    work: Workload, kind: str, recipe: str, steps: int, caches: Path, platform: str, sets: Sequence[str] = ()
) -> Command:
    """The child that times our step; `kind` is the type it computes in, `sets` are further overrides."""
    values = {
        "recipe": recipe,
        "model.depth": work.layers,
        "model.width": work.width,
        "model.heads": work.heads,
        "model.sequence": work.sequence,
        "model.compute": kind,
        "tokenizer.vocabulary": work.vocabulary,
    }
    command = [sys.executable, str(HERE / "own_step.py"), "--rows", str(work.rows), "--steps", str(steps)]
    for item in [*(f"{field}={value}" for field, value in values.items()), *sets]:
        command += ["--set", item]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(caches / f"jax-{recipe}"), "JAX_PLATFORMS": platform}
    return [*command, *(["--packed"] if work.packed else [])], environment


def peer_step(
    work: Workload,
    kind: str,
    peer: tuple[Path, str],
    steps: int,
    caches: Path,
    device: str = "cpu",
    passes: int = 1,
    windows: str = "L",
) -> Command:
    """The child that times nanochat's step: `peer` is its checkout and Python, `passes` cut the rows of a step."""
    checkout, python = peer
    model = {"layers": work.layers, "heads": work.heads, "width": work.width}
    model |= {"sequence": work.sequence, "vocabulary": work.vocabulary}
    command = [python, str(HERE.parent / "nanochat" / "step.py"), "--peer", str(checkout.resolve()), "--device", device]
    command += ["--shape", json.dumps(model), "--rows", str(work.rows // passes), "--accumulate", str(passes)]
    command += ["--steps", str(steps), "--window-pattern", windows]
    environment = {
        "NANOCHAT_DTYPE": kind,
        "NANOCHAT_BASE_DIR": str(caches / "nanochat"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }
    return command, environment


def figures(rounds: Sequence[Timing]) -> dict[str, Any]:
    """What the rounds of one trainer say; the first one began with empty compile caches."""
    seconds = [s for timing in rounds for s in timing.seconds]
    middle, facts = statistics.median(seconds), rounds[-1].summary
    return {
        "tokens_per_second": round(facts["tokens_per_step"] / middle),
        "step_seconds": round(middle, 3),
        "least_seconds": round(min(seconds), 3),
        "processor_seconds": round(statistics.median(s for timing in rounds for s in timing.processor), 3),
        "gflops": round(facts["tokens_per_step"] * facts["flops_per_token"] / middle / 1e9, 1),
        "peak_rss_gb": round(max(timing.summary["peak_rss_gb"] for timing in rounds), 3),
        "first_step_cold": round(rounds[0].first, 1),
        "first_step_warm": round(statistics.median(t.first for t in rounds[1:]), 1) if len(rounds) > 1 else None,
        "steps": len(seconds),
        "parameters": facts["parameters"],
        "version": facts["version"],
    }


def show(title: str, trainers: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print a table: a line a trainer."""
    print(f"\n| {title} | " + " | ".join(column.replace("_", " ") for column in columns) + " |")
    print("|" + "---|" * (1 + len(columns)))
    for trainer, values in trainers.items():
        print(f"| {trainer} | " + " | ".join(str(values.get(column, "")) for column in columns) + " |")
    print(flush=True)
