"""One step on one device and on several: the same numbers, wherever the arrays lie."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanocode_core.config import load_config
from nanocode_core.errors import UserError
from nanocode_core.model.backend import Backend
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.objectives import next_token, packed_rows, whole_rows
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.program import Program
from nanocode_core.training.sharding import Parallelism, choose_parallelism, make_mesh

ROWS, PLACES, STEPS = 8, 160, 3


def small(recipe: str, backend: Backend, plain: bool = False) -> Program:
    """A small model's program. `plain`: with SGD, since Muon lifts rounding errors of a tiny model's near-singular
    gradients (1e-7 on the weights moves the third gradient norm by some percent, on one device too).
    """
    sets = [f"recipe={recipe}", "model.depth=4", "model.width=128", "model.sequence=512", "model.window_pattern=SL"]
    config = load_config("smoke", [*sets, "training.optimizer.warmup_steps=0"])
    shape = Shape.of(config.model, 96)
    optimizer = build_optimizer(config.training.optimizer, 20, shape.width, backend)
    return Program(shape, optax.sgd(0.5) if plain else optimizer, next_token, backend)


def batches(packed: bool) -> list:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 96, (STEPS, ROWS, PLACES + 1))
    if not packed:
        return [whole_rows(rows) for rows in tokens]
    segments = np.repeat([[1] * 60 + [2] * 90 + [0] * 11], ROWS, 0)
    positions = np.repeat([[*range(60), *range(90), *range(11)]], ROWS, 0)
    mask = random.random((ROWS, PLACES + 1)) < 0.5
    return [packed_rows(rows, mask, segments, positions) for rows in tokens]


def losses(program: Program, packed: bool) -> list[list[float]]:
    state = program.initial(GPT(program.shape, 0, program.backend))
    out = []
    for batch in batches(packed):
        state, metrics = program.step(state, program.place(batch))
        out.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    assert program.step._cache_size() == 1, "compiled again"
    return out


# What is run on 8 CPU devices, in a process of its own: recipe, packed rows, mesh, remat.
CASES = [
    ("modern", False, Parallelism(8), "none"),
    ("modern", False, Parallelism(2, 4), "full"),
    ("modern", True, Parallelism(2, 2, 2), "attention"),
    ("nanocode", False, Parallelism(4), "none"),
    ("nanocode", True, Parallelism(3), "none"),  # which do not divide the rows
]


def updated(program: Program) -> Any:
    """The parameters after one optimizer step with random gradients."""
    random = np.random.default_rng(1)
    state = program.initial(GPT(program.shape, 0, program.backend))
    gradients = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), state.params)
    updates, _ = jax.jit(program.optimizer.update)(gradients, state.optimizer, state.params)
    return jax.device_get(updates)


def main() -> None:
    for recipe, packed, axes, remat in CASES:
        mesh = make_mesh(axes, jax.devices()[: axes.data * axes.fsdp * axes.tensor])
        backend = dataclasses.replace(Backend.of("cpu", mesh, remat), scan=True)
        both = zip(*(jax.tree.leaves(updated(small(recipe, b))) for b in (backend, Backend.of("cpu"))), strict=True)
        apart = max(float(np.abs(one - two).max() / np.abs(two).max()) for one, two in both)
        print(json.dumps([losses(small(recipe, backend, plain=True), packed), apart]), flush=True)


def test_devices_do_not_change_the_numbers() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    alone: dict = {}
    for (recipe, packed, _, _), (numbers, apart) in zip(CASES, found, strict=True):
        if (recipe, packed) not in alone:
            alone[recipe, packed] = losses(small(recipe, Backend.of("cpu"), plain=True), packed)
        assert np.allclose(numbers, alone[recipe, packed], rtol=1e-5, atol=0)
        assert apart < 1e-4


@pytest.mark.parametrize("recipe", ["nanocode", "modern"])
def test_a_step_keeps_the_types_of_its_state(recipe: str) -> None:
    """Else the first steps would be compiled anew, and a resumed run would be another program."""
    program = small(recipe, Backend.of("cpu"))
    before = jax.eval_shape(lambda: program.initial(GPT(program.shape, 0, program.backend)))
    after, _ = jax.eval_shape(program.run, before, batches(False)[0])
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype, one.weak_type) == (two.shape, two.dtype, two.weak_type)
        assert not one.weak_type


def test_the_state_is_cut_only_where_a_device_has_no_room() -> None:
    gib = 2**30
    assert choose_parallelism(8, 135_000_000, 32 * gib) == Parallelism(8)
    assert choose_parallelism(8, 1_300_000_000, 32 * gib) == Parallelism(1, 8)
    assert choose_parallelism(8, 1_300_000_000, None) == Parallelism(8)
    assert choose_parallelism(8, 1, 32 * gib, fsdp=2, tensor=2) == Parallelism(2, 2, 2)
    for wrong in ({"fsdp": 3}, {"tensor": 3}, {"fsdp": 4, "tensor": 4}):
        with pytest.raises(UserError, match="must divide the number of devices"):
            choose_parallelism(8, 1, None, **wrong)


if __name__ == "__main__":
    main()
