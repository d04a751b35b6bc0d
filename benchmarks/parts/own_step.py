"""Times our train step on random tokens: a child process of train_cpu.py and train_gpu.py.

The step is the one that training runs (forward, backward, optimizer; micro-batches as training
chooses them), made from a preset and `--set` overrides as `nanocode speedrun` does. Prints a line of
JSON a step, {"step": seconds, "processor": [user, system seconds]}, and a summary last. The parent
sets JAX_COMPILATION_CACHE_DIR.
"""

import argparse
import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from nanocode_core.config import Config, load_config
from nanocode_core.model.backend import Backend
from nanocode_core.model.flops import count_parameters, flops_per_token
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.objectives import HostBatch, next_token, packed_rows, whole_rows
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.program import Program
from nanocode_core.training.setup import keep_freed_memory

STEPS = 1_000
"""Length of the run that the step is taken from; it only moves the learning rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="section.field=value")
    parser.add_argument("--rows", type=int, required=True, help="sequences in the batch")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after the first two")
    parser.add_argument("--packed", action="store_true", help="rows of several segments, a third of the tokens learned")
    arguments = parser.parse_args()
    keep_freed_memory()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    config = load_config(arguments.preset, arguments.sets)
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    program = make_program(config, shape)
    host = random_batch(shape, arguments.rows, arguments.packed)
    with ThreadPoolExecutor(1) as thread:  # as the training loop does
        compiling = thread.submit(program.compile, host)
        state = program.initial(nnx.jit(lambda: GPT(shape, config.seed, program.backend))())
        step = compiling.result()
    batch = program.place(host)
    times, losses = [], []
    for _ in range(2 + arguments.steps):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF)
        processor = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
        print(json.dumps({"step": times[-1], "processor": processor}), flush=True)
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    summary = {
        "losses": losses,
        "tokens_per_step": host["inputs"].size,
        "parameters": count_parameters(shape)["total"],
        "flops_per_token": flops_per_token(shape),
        "dtype": config.model.compute,
        "device": device.device_kind,
        "attention": program.backend.attention.__name__,
        "version": f"jax {jax.__version__}",
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "peak_device_gb": memory["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in memory else None,
    }
    print(json.dumps(summary))


def make_program(config: Config, shape: Shape) -> Program:
    """The train step of pretraining under `config` on one device."""
    backend = Backend.of(remat=config.model.remat)
    optimizer = build_optimizer(config.training.optimizer, STEPS, shape.width, backend)
    return Program(shape, optimizer, next_token, backend, config.training.micro_sequences)


def random_batch(shape: Shape, rows: int, packed: bool) -> HostBatch:
    """Rows as pretraining has them, or `packed` as fine-tuning has them."""
    random = np.random.default_rng(0)
    tokens: Any = random.integers(0, shape.vocabulary, (rows, shape.sequence + 1))
    if not packed:
        return whole_rows(tokens)
    segments = np.sort(random.integers(1, 4, tokens.shape), axis=1)
    positions = np.broadcast_to(np.arange(shape.sequence + 1), tokens.shape)
    return packed_rows(tokens, random.random(tokens.shape) < 1 / 3, segments, positions)


if __name__ == "__main__":
    main()
