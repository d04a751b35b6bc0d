"""Training throughput on this machine's CPU, ours beside the torch trainer nanochat: tokens per second.

    python benchmarks/train_cpu.py [--peer CHECKOUT --peer-python PYTHON] [--rounds 3]

Same shape and batch (32 rows of 512 random tokens in one step), both as their trainers run them:
forward, backward, optimizer. Trainers take turns, each time in a child process of its own, so that
both see the machine's moods; a figure is the median step of all rounds. On a busy machine look at
`processor_seconds`, the CPU time of a step, and at `least_seconds`. The first round starts with empty
compile caches: `first_step_cold` and `first_step_warm` are the seconds from the start of a process to
the end of its first step. The last line is JSON.

nanochat computes full attention here (window pattern L), as its CPU script does: on a CPU its
sliding windows are slower. Shapes `demo` and `demo_packed` are those of our demo, `d12` is one row of
that preset, for the time to its first step; ours alone.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts.child import Timing, run_child
from parts.workload import Workload, figures, our_step, peer_step, show

SHAPES = {
    "d6": Workload(6, 384, 6, vocabulary=8_192, rows=32),
    "d4": Workload(4, 256, 4, vocabulary=8_192, rows=32),
    "demo": Workload(4, 192, 3, vocabulary=4_096, rows=8),
    "demo_packed": Workload(4, 192, 3, vocabulary=4_096, rows=8, packed=True),
    "d12": Workload(12, 768, 3, vocabulary=32_768, rows=1, sequence=1_024),
    "tiny": Workload(2, 64, 1, vocabulary=512, rows=4),
}
ALONE = ("demo", "demo_packed", "d12")
TYPES = ("float32", "bfloat16")
COLUMNS = (
    "tokens_per_second",
    "step_seconds",
    "processor_seconds",
    "peak_rss_gb",
    "first_step_cold",
    "first_step_warm",
    "times_peer",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with the peer's packages")
    parser.add_argument("--shapes", nargs="+", default=["d6", "d4"], choices=SHAPES)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--recipes", nargs="+", default=["modern", "nanocode"])
    parser.add_argument("--set", action="append", default=[], dest="sets", help="override for ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a child process, after two others")
    arguments = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores", flush=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as caches:
        for name in arguments.shapes:
            for kind in arguments.types:
                title = f"{name} {kind}"
                results[title] = compare(name, kind, arguments, Path(caches, title.replace(" ", "-")))
                show(title, results[title], COLUMNS)
    summary = {"benchmark": "train_cpu", "processor": processor(), "cores": os.cpu_count(), "results": results}
    print(json.dumps(summary))


def compare(name: str, kind: str, arguments: argparse.Namespace, caches: Path) -> dict[str, Any]:
    """Rounds of all trainers on one shape in one type: figures by trainer, and our ratios to the peer."""
    work, steps = SHAPES[name], arguments.steps
    commands = {
        f"ours {recipe}": our_step(work, kind, recipe, steps, caches, "cpu", arguments.sets)
        for recipe in arguments.recipes
    }
    if arguments.peer and name not in ALONE:
        commands["nanochat"] = peer_step(work, kind, (arguments.peer, arguments.peer_python), steps, caches)
    timings: dict[str, list[Timing]] = {trainer: [] for trainer in commands}
    for _ in range(arguments.rounds):
        for trainer, (command, environment) in commands.items():
            timings[trainer].append(run_child(command, environment))
            print(f"  {trainer}: {', '.join(f'{s:.2f}' for s in timings[trainer][-1].seconds)} s", flush=True)
    found = {trainer: figures(rounds) for trainer, rounds in timings.items()}
    if "nanochat" not in found:
        return found
    peer = found["nanochat"]
    for recipe in arguments.recipes:
        own = found[f"ours {recipe}"]
        own["times_peer"] = round(own["tokens_per_second"] / peer["tokens_per_second"], 3)
        own["times_peer_by_processor"] = round(peer["processor_seconds"] / own["processor_seconds"], 3)
        own["memory_of_peer"] = round(own["peak_rss_gb"] / peer["peak_rss_gb"], 3)
    return found


def processor() -> str:
    """The name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    main()
