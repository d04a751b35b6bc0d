"""Training throughput on one NVIDIA GPU in bfloat16, ours beside nanochat: tokens per second and MFU.

    python benchmarks/train_gpu.py [--peer CHECKOUT --peer-python PYTHON] [--shapes d12 d20]

Shapes are nanochat's: heads of 128, sequences of 2,048, vocabulary 32,768; a step has 524,288 random
tokens in passes that fit the memory (training's own choice for ours, --peer-rows for the peer).
Each trainer runs with full attention (L) and with sliding windows (SSSL), where nanochat is slow
unless it finds Flash Attention 3. MFU is FLOPs as model/flops.py counts them, over the chip's dense
bfloat16 peak; the peer's FLOPs are its own count, by the same rule. Trainers take turns in child
processes. The last line is JSON. Without a GPU: one line, exit code 2. `--tiny` runs all of it at a
tiny shape on the CPU, to test the benchmark itself; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts.child import Timing, run_child
from parts.workload import Command, Workload, figures, our_step, peer_step, show

from nanocode_core.config.chips import find_chip, utilization

SHAPES = {
    "d12": Workload(12, 768, 6, vocabulary=32_768, rows=256, sequence=2_048),
    "d20": Workload(20, 1_280, 10, vocabulary=32_768, rows=256, sequence=2_048),
}
TINY = Workload(2, 256, 2, vocabulary=512, rows=8, sequence=512)
WINDOWS = ("L", "SSSL")
NO_GPU = 2
"""Exit code, as for any request that can't be met here."""
COLUMNS = ("tokens_per_second", "mfu", "step_seconds", "peak_device_gb", "first_step_cold", "attention", "times_peer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with the peer's packages")
    parser.add_argument("--peer-rows", type=int, default=32, help="sequences in one pass of the peer")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--windows", nargs="+", default=list(WINDOWS), help="window patterns")
    parser.add_argument("--recipe", default="modern")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="override for ours")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a child process, after two others")
    parser.add_argument("--tiny", action="store_true", help="test this benchmark on the CPU")
    arguments = parser.parse_args()
    platform, kind = probe(sys.executable, "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)")
    if platform != "gpu" and not arguments.tiny:
        print(f"no NVIDIA GPU that jax can use (it computes on: {platform}); run this where there is one")
        return NO_GPU
    trainers = "ours and nanochat" if arguments.peer and has_torch(arguments) else "ours alone"
    print(f"{kind}, {trainers}", flush=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as caches:
        for name, work in {"tiny": TINY}.items() if arguments.tiny else [(s, SHAPES[s]) for s in arguments.shapes]:
            for windows in arguments.windows:
                title = f"{name} {windows}"
                commands = both(work, windows, arguments, trainers != "ours alone", Path(caches, f"{name}-{windows}"))
                results[title] = compare(commands, arguments.rounds, kind)
                show(title, results[title], COLUMNS)
    print(json.dumps({"benchmark": "train_gpu", "device": kind, "trainers": trainers, "results": results}))
    return 0


def both(
    work: Workload, windows: str, arguments: argparse.Namespace, with_peer: bool, caches: Path
) -> dict[str, Command]:
    """The children by trainer."""
    platform, device = ("cpu", "cpu") if arguments.tiny else ("cuda", "cuda")
    sets = [*arguments.sets, f"model.window_pattern={windows}"]
    commands = {"ours": our_step(work, "bfloat16", arguments.recipe, arguments.steps, caches, platform, sets)}
    commands["ours"][1]["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    if with_peer:
        passes = max(1, work.rows // arguments.peer_rows)
        peer = (arguments.peer, arguments.peer_python)
        commands["nanochat"] = peer_step(work, "bfloat16", peer, arguments.steps, caches, device, passes, windows)
    return commands


def compare(commands: dict[str, Command], rounds: int, kind: str) -> dict[str, Any]:
    """Rounds of all trainers: figures by trainer, and our ratio to the peer."""
    timings: dict[str, list[Timing]] = {trainer: [] for trainer in commands}
    for _ in range(rounds):
        for trainer, (command, environment) in commands.items():
            timings[trainer].append(run_child(command, environment))
            print(f"  {trainer}: {', '.join(f'{s:.3f}' for s in timings[trainer][-1].seconds)} s", flush=True)
    found, chip = {}, find_chip(kind)
    for trainer, each in timings.items():
        values, facts = figures(each), each[-1].summary
        share = utilization(values["tokens_per_second"] * facts["flops_per_token"], chip) if chip else None
        memory = [timing.summary["peak_device_gb"] or 0.0 for timing in each]
        values |= {"mfu": share and round(share, 4), "flops_per_token": facts["flops_per_token"]}
        found[trainer] = {**values, "peak_device_gb": round(max(memory), 2), "attention": facts["attention"]}
    if "nanochat" in found:
        speeds = {trainer: values["tokens_per_second"] for trainer, values in found.items()}
        found["ours"]["times_peer"] = round(speeds["ours"] / speeds["nanochat"], 3)
    return found


def has_torch(arguments: argparse.Namespace) -> bool:
    """Whether the peer can run on this device; says so where it can't."""
    ready, why = probe(arguments.peer_python, "import torch; print(torch.cuda.is_available(), torch.__version__)")
    if ready == "True" or (arguments.tiny and ready == "False"):
        return True
    print(f"without nanochat: torch is missing in {arguments.peer_python} or sees no GPU ({ready} {why})")
    return False


def probe(python: str, code: str) -> tuple[str, str]:
    """The two words that a snippet prints in a process of its own, so that this one holds no device."""
    found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    first, _, rest = found.stdout.strip().partition(" ")
    return first, rest or found.stderr.strip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
