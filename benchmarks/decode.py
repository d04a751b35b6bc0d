"""Generation throughput of the demo shape: python benchmarks/decode.py. Prompts of 256 tokens, 128 new ones.

Random weights, greedy, one and sixteen slots. The last line is JSON.
"""

import json
import time

import jax
import numpy as np

from nanocode_core.config import load_config
from nanocode_core.model.engine import Engine
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape

PROMPT, NEW, REPEATS = 256, 128, 3


def main() -> None:
    config = load_config("demo")
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    model = GPT(shape, seed=0)
    summary: dict[str, object] = {"benchmark": "decode", "device": jax.devices()[0].device_kind}
    for slots in (1, 16):
        summary[f"batch_{slots}"] = measure(Engine(model, slots), shape.vocabulary)
    print(json.dumps(summary))


def measure(engine: Engine, vocabulary: int) -> dict[str, int]:
    random = np.random.default_rng(0)
    prompts = {slot: random.integers(0, vocabulary, PROMPT).tolist() for slot in range(engine.batch)}
    speeds: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(1 + REPEATS):  # the first one compiles
        for slot in prompts:
            engine.reset(slot)
        start = time.perf_counter()
        engine.extend(prompts)
        jax.block_until_ready(engine.next_logits(0))
        middle = time.perf_counter()
        engine.generate(list(prompts), NEW, stop=set())
        speeds["prefill"].append(engine.batch * PROMPT / (middle - start))
        speeds["decode"].append(engine.batch * NEW / (time.perf_counter() - middle))
    return {f"{name}_tokens_per_second": round(max(values[1:])) for name, values in speeds.items()}


if __name__ == "__main__":
    main()
