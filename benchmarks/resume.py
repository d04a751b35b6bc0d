"""Kill a training run at a random moment, start it again, and compare its end with that of an undisturbed run.

Three times: on one device, on four CPU devices (parameters and optimizer state cut over two of them),
and in two processes of which one is killed. A kill is SIGKILL at a random moment: in one trial of four
anywhere between start and end, imports and compilation included, in the others while it trains and
saves (every five steps).
Compared byte by byte: the model's file, every array of parameters and optimizer state in the last
checkpoint, and the metrics without their clocks. Of two processes the survivor has to end by itself,
with the exit code of a preempted job.

    python benchmarks/resume.py --kills 20 --steps 200
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

CASES = {"one_device": (1, 1), "four_devices": (1, 4), "two_processes": (2, 1)}
"""Processes, and devices of each."""
HEARTBEAT_SECONDS, MEETING_SECONDS = 5, 60
"""How soon a lost process is missed here, and one that does not come; a job waits longer (training/distributed.py)."""
VOCABULARY, SEQUENCE, ROWS = 512, 64, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each case")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cases", default=",".join(CASES), help="a selection, by commas")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fsdp", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps, arguments.fsdp)
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nanocode-resume-") as scratch:
        found = {name: case(Path(scratch), name, arguments) for name in arguments.cases.split(",")}
    passed = all(result["identical"] == arguments.kills for result in found.values())
    print(json.dumps({"steps": arguments.steps, **found, "passed": passed, "seconds": round(time.monotonic() - start)}))
    return 0 if passed else 1


def case(scratch: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One undisturbed run and the killed ones."""
    processes, _ = CASES[name]
    begin = partial(launch, name, arguments.steps)
    finish(begin(scratch / f"{name}-warm"))  # compiles; the others read the cache
    start = time.monotonic()
    running = begin(scratch / f"{name}-whole")
    trains(scratch / f"{name}-whole", running)
    before = time.monotonic() - start
    finish(running)
    life = time.monotonic() - start
    expected = end(scratch / f"{name}-whole")
    chance = random.Random(f"{arguments.seed} {name}")
    identical, repeated = 0, 0
    steps: list[int] = []
    survivors: list[int] = []
    longest = 0.0
    while len(steps) < arguments.kills:
        place = scratch / name
        running = begin(place)
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0, life))
        else:
            trains(place, running)
            time.sleep(chance.uniform(0, life - before))
        victim = chance.randrange(processes)
        if any(process.poll() is not None for process in running):
            finish(running)  # it was over before: another moment
            shutil.rmtree(place)
            continue
        running[victim].kill()
        start = time.monotonic()
        for process in running:
            process.communicate(timeout=180)
        longest = max(longest, time.monotonic() - start)
        survivors += [process.returncode for process in running[:victim] + running[victim + 1 :]]
        steps.append(lines_of(place)[-1]["step"] if lines_of(place) else 0)
        printed = finish(begin(place))
        repeated += "going on from the checkpoint" in printed
        found = end(place)
        same = [part for part in expected if found[part] == expected[part]]
        identical += len(same) == len(expected)
        print(
            f"{name} {len(steps)}/{arguments.kills}: killed in step {steps[-1] + 1}, identical: {', '.join(same)}",
            flush=True,
        )
        shutil.rmtree(place)
    result = {
        "kills": arguments.kills,
        "identical": identical,
        "went_on_from_a_checkpoint": repeated,
        "killed_in_step": sorted(step + 1 for step in steps),
        "undisturbed_seconds": round(life, 1),
    }
    return result | (
        {"survivors_exit_codes": sorted(set(survivors)), "survivors_seconds_at_most": round(longest, 1)}
        if processes > 1
        else {}
    )


def launch(name: str, steps: int, place: Path) -> list["subprocess.Popen[str]"]:
    """Start the processes of a run."""
    processes, devices = CASES[name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--child", str(place), "--steps", str(steps)]
    if devices > 1:
        command += ["--fsdp", "2"]
    started = []
    for index in range(processes):
        own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if processes > 1:
            own |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, env={**os.environ, **own}, text=True, **pipes))
    return started


def trains(place: Path, running: list["subprocess.Popen[str]"]) -> None:
    """Wait for the first metrics line, or for the end of a process."""
    while not lines_of(place) and all(process.poll() is None for process in running):
        time.sleep(0.01)


def finish(running: list["subprocess.Popen[str]"]) -> str:
    """Wait for the regular end; what was printed."""
    printed = [process.communicate(timeout=600)[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("\n".join([*printed, "a run failed"]))
    return printed[0]


def child(place: Path, steps: int, fsdp: int | None) -> None:
    """One process of a run: train a small model below `place`."""
    import numpy as np

    from nanocode_core.config import load_config
    from nanocode_core.jobs.job import Job
    from nanocode_core.model.gpt import GPT
    from nanocode_core.model.shape import Shape
    from nanocode_core.model.weights import save_model
    from nanocode_core.store import Store
    from nanocode_core.training import distributed
    from nanocode_core.training.loop import Plan, train
    from nanocode_core.training.objectives import next_token, whole_rows
    from nanocode_core.training.optimizer import build_optimizer
    from nanocode_core.training.setup import prepare_jax

    distributed.HEARTBEAT_SECONDS, distributed.MEETING_SECONDS = HEARTBEAT_SECONDS, MEETING_SECONDS
    run = {"store": str(place / "store"), "cache": str(place.parent / "cache")}
    changes = {"run": run, "checkpoints": {"steps": 5, "keep": 2}, "parallel": {"fsdp": fsdp}}
    config = load_config("smoke", overrides=changes)
    shape = Shape(3, 96, 4, 4, 4, VOCABULARY, SEQUENCE, 1e4, 15.0, "float32")
    with distributed.company():
        prepare_jax(config)
        primary = distributed.processes().primary
        out = place / "out" if primary else Path(tempfile.mkdtemp())
        out.mkdir(parents=True, exist_ok=True)
        job = Job("pretrain", "0" * 16, config, {}, place / "work", out, Store(config.run.store), primary)

        def batch(step: int) -> dict[str, Any]:
            return whole_rows(np.random.default_rng(step).integers(0, VOCABULARY, (ROWS, SEQUENCE + 1)))

        optimizer = partial(build_optimizer, config.training.optimizer, steps, shape.width)
        model = train(job, GPT(shape, 0), optimizer, Plan(steps, batch, next_token, ROWS * SEQUENCE))
        save_model(model, out)
        if not primary:
            shutil.rmtree(out)


def end(place: Path) -> dict[str, Any]:
    """What is compared: digests of the model and of the last state, and the metrics without clocks."""
    import numpy as np
    import orbax.checkpoint as ocp

    from nanocode_core.training.metrics import CLOCKS

    last = max((p for p in (place / "work/checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(last).item_metadata.tree
        plain = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        state = reader.restore(last, args=ocp.args.PyTreeRestore(restore_args=plain))
    arrays = {name: (str(x.dtype), x.shape, hashlib.sha256(x.tobytes()).hexdigest()) for name, x in state.items()}
    return {
        "model": hashlib.sha256((place / "out/model.safetensors").read_bytes()).hexdigest(),
        "parameters": {name: value for name, value in arrays.items() if name.startswith(".params")},
        "optimizer": {name: value for name, value in arrays.items() if not name.startswith(".params")},
        "metrics": [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines_of(place)],
    }


def lines_of(place: Path) -> list[dict[str, Any]]:
    """The whole lines of the metrics."""
    path = place / "out/logs/metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    sys.exit(main())
