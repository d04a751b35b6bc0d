"""Training throughput of the demo shape on this machine: python benchmarks/train_step.py [--seconds 20].

Times the real train step (forward, backward, Muon and Adam, micro-batches as chosen) on random
tokens: pretraining rows, and packed rows with segments of which a third of the tokens is learned.
The last line is JSON; each figure is the median step after the first.
"""

import argparse
import json
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nanocode_core.config import load_config
from nanocode_core.model.flops import count_parameters, flops_per_token
from nanocode_core.model.gpt import GPT, Shape
from nanocode_core.training.loop import TrainState, choose_micro, make_step
from nanocode_core.training.objectives import HostBatch, next_token, packed_rows, whole_rows
from nanocode_core.training.optimizer import build_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seconds", type=float, default=20, help="for each of the two kinds of rows")
    parser.add_argument("--micro", type=int, help="rows computed at once (default: as training chooses)")
    arguments = parser.parse_args()
    config = load_config(arguments.preset)
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    rows = config.training.batch_sequences
    random = np.random.default_rng(0)
    tokens = random.integers(0, shape.vocabulary, (rows, shape.sequence + 1))
    segments = np.sort(random.integers(1, 4, tokens.shape), axis=1)
    mask = random.random(tokens.shape) < 1 / 3
    positions = np.broadcast_to(np.arange(shape.sequence + 1), tokens.shape)
    results = {
        "pretraining": measure(config, shape, whole_rows(tokens), arguments),
        "packed": measure(config, shape, packed_rows(tokens, mask, segments, positions), arguments),
    }
    summary = {
        "benchmark": "train_step",
        "preset": arguments.preset,
        "device": jax.devices()[0].device_kind,
        "parameters": count_parameters(shape)["total"],
        "flops_per_token": flops_per_token(shape),
        "tokens_per_step": rows * shape.sequence,
        **results,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(summary))


def measure(
    config: Any, shape: Shape, batch: HostBatch, arguments: argparse.Namespace
) -> dict[str, float | int | None]:
    graph, params = nnx.split(GPT(shape, seed=0), nnx.Param)
    optimizer = build_optimizer(config.training.optimizer, 1_000, shape.width)
    micro = arguments.micro or choose_micro(batch)
    step = jax.jit(make_step(graph, optimizer, next_token, micro), donate_argnums=0)
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    start = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    first = time.perf_counter() - start
    times: list[float] = []
    while sum(times) < arguments.seconds or len(times) < 3:
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    tokens = batch["inputs"].size
    print(f"{len(times)} steps, best {min(times):.3f} s, median {statistics.median(times):.3f} s", flush=True)
    return {
        "tokens_per_second": round(tokens / statistics.median(times)),
        "best_tokens_per_second": round(tokens / min(times)),
        "gflops": round(tokens / statistics.median(times) * flops_per_token(shape) / 1e9, 1),
        "first_step_seconds": round(first, 2),
        "micro_rows": micro,
    }


if __name__ == "__main__":
    main()
