"""Ahead-of-time compilation for TPU slices: python benchmarks/aot.py [--cache DIR] [--only TEXT].

Compiles the real pretraining step of d12, d20 and d24, both recipes, for v6e-8 and v6e-32 as training
would run it there, and d24 with 8 sequences of 4,096 at once on v6e-8 and with 2 on v5e-16. No TPU is
needed and none is used: what is measured is the peak HBM of a device as the compiler assigned it, and
the compiler's time on this machine, by the clock and of its processors. Checks: everything fits, and no
optimizer array above 1 MB is replicated at d24. Outcomes are kept, so a run that was stopped goes on
where it was. Without libtpu (`make tpu`) nothing is measured. The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanocode_core.config import Config, load_config
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import find_accelerator
from nanocode_core.planning.compiler import Compiler, CompilerCrash, how_to_get_it
from nanocode_core.planning.protocol import Ask, Mesh, compiler_is_here, versions

REPLICATED_LIMIT = 1_000_000
"""Bytes; smaller arrays (counters, scalars, norms of the second moment) may be on every device."""


@dataclass(frozen=True)
class Case:
    """One program; sequences at once and remat policy are those that training chooses where they are None."""

    preset: str
    recipe: str
    accelerator: str
    micro: int | None = None
    remat: str | None = None

    def __str__(self) -> str:
        return f"{self.preset} {self.recipe} {self.accelerator}"

    def config(self) -> Config:
        """Preset and recipe with what the case sets."""
        sets = {"recipe": self.recipe, "training.micro_sequences": self.micro, "model.remat": self.remat}
        return load_config(self.preset, [f"{field}={value}" for field, value in sets.items() if value is not None])


RECIPES = ("nanocode", "modern")
CASES = (
    *(Case("d24", recipe, "v6e-8") for recipe in RECIPES),
    # As full as it can be with fewer arrays kept, and on the smallest chip.
    *(Case("d24", recipe, "v6e-8", 8, "attention") for recipe in RECIPES),
    *(Case("d24", recipe, "v5e-16", 2) for recipe in RECIPES),
    *(Case("d24", recipe, "v6e-32") for recipe in RECIPES),
    *(Case(p, recipe, a) for p in ("d20", "d12") for a in ("v6e-8", "v6e-32") for recipe in RECIPES),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="directory for the outcomes (default: as `nanocode plan`)")
    parser.add_argument("--only", default="", help="only cases whose name holds this, for example 'd24 modern'")
    arguments = parser.parse_args()
    if not compiler_is_here():
        print(json.dumps({"benchmark": "aot", "skipped": how_to_get_it()}))
        return
    os.nice(10)
    cache = arguments.cache or Path(load_config("d24").run.cache) / "plan"
    results = []
    with Compiler(cache) as compiler:
        for case in CASES:
            if arguments.only in str(case):
                results.append(measure(compiler, case))
                print(describe(results[-1]), flush=True)
    checks = check(results)
    print(json.dumps({"benchmark": "aot", "versions": versions(), "checks": checks, "cases": results}))
    if not all(checks.values()):
        sys.exit(1)


def measure(compiler: Compiler, case: Case) -> dict[str, Any]:
    config, accelerator = case.config(), find_accelerator(case.accelerator)
    start = time.monotonic()
    try:
        facts = compiler.facts(config, accelerator)
        ask = Ask(config, accelerator, Mesh(*facts.mesh), facts.batch_sequences, facts.micro)
        outcome = compiler.compile(ask)
    except (UserError, CompilerCrash) as error:
        return {"case": str(case), "fits": False, "problem": str(error)}
    return {
        "case": str(case),
        "mesh": str(ask.mesh),
        "remat": facts.remat,
        "sequences_at_once": ask.micro,
        "sequence": facts.sequence,
        "fits": outcome.fits,
        "peak_gib": round(outcome.peak / 2**30, 2),
        "limit_gib": round(outcome.limit / 2**30, 2),
        "largest_replicated_optimizer_array": outcome.state["largest_replicated"],
        "compile_seconds": outcome.compile_seconds,
        "compile_cpu_seconds": outcome.compile_cpu_seconds,
        "kept": outcome.cached,
        "wall_seconds": round(time.monotonic() - start, 1),
        "problem": outcome.problem,
    }


def describe(result: dict[str, Any]) -> str:
    if "mesh" not in result:
        return f"{result['case']:24} {result['problem']}"
    return (
        f"{result['case']:24} {result['mesh']:10} remat {result['remat']:10} "
        f"{result['sequences_at_once']:3} x {result['sequence']:,} at once: "
        f"{result['peak_gib']:6.2f} of {result['limit_gib']:.2f} GiB{'' if result['fits'] else ' DOES NOT FIT'}, "
        f"compiled in {result['compile_seconds']:.0f} s ({result['compile_cpu_seconds']:.0f} s of processor)"
        f"{', kept' if result['kept'] else ''}"
    )


def check(results: list[dict[str, Any]]) -> dict[str, bool]:
    """What must hold, of the cases that were measured."""
    large = [r for r in results if r["case"].startswith("d24 ") and "mesh" in r]
    checks = {"everything_fits": all(r["fits"] for r in results)}
    eight = [r for r in large if r["case"].endswith(" v6e-8") and r["sequences_at_once"] == 8]
    if eight:
        checks["d24_fits_v6e_8_with_8_sequences_at_once"] = all(r["fits"] for r in eight)
    if large:
        most = max(r["largest_replicated_optimizer_array"] for r in large)
        checks["d24_optimizer_state_is_not_replicated"] = most <= REPLICATED_LIMIT
    return checks


if __name__ == "__main__":
    main()
