"""A small GPT whose every weight matters: outputs and head are not the zeros of a fresh one."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape

SHAPE = Shape(
    depth=2,
    width=32,
    heads=4,
    kv_heads=2,
    mlp_ratio=4,
    vocabulary=97,
    sequence=64,
    rope_theta=10_000.0,
    softcap=15.0,
    compute="float32",
)


def random_model(**changes: object) -> GPT:
    shape = dataclasses.replace(SHAPE, **changes)
    graph, params = nnx.split(GPT(shape, seed=0), nnx.Param)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.3 * random.normal(size=x.shape), jnp.float32), params)
    return nnx.merge(graph, params)


@nnx.jit
def _forward(model: GPT, tokens: jax.Array) -> jax.Array:
    return model(tokens)


@pytest.fixture(scope="session")
def logits_of() -> Callable[[GPT, list[int]], np.ndarray]:
    """All logits [T, V] of at most 64 tokens, by the full forward pass; one shape, so that it compiles once."""

    def run(model: GPT, ids: list[int]) -> np.ndarray:
        row = np.zeros((1, 64), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(_forward(model, row))[0, : len(ids)]

    return run


@pytest.fixture(scope="session")
def model() -> GPT:
    return random_model()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPT]:
    return random_model
