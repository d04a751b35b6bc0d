import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from float64_reference import reference_logits

from nanocode_core.model.flops import count_parameters, flops_per_token
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.model.weights import named_arrays


@nnx.jit
def forward(model: GPT, *inputs: np.ndarray) -> jax.Array:
    return model(*inputs)


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4, "softcap": 0.0, "rope_theta": 100_000.0}])
def test_logits_equal_the_float64_reference(make_model: Callable[..., GPT], changes: dict[str, float]) -> None:
    model = make_model(**changes)
    tokens = np.random.default_rng(1).integers(0, 97, 40)
    assert np.abs(np.asarray(forward(model, tokens[None]))[0] - reference_logits(model, tokens)).max() < 1e-4


def test_packed_segments_equal_separate_rows(model: GPT) -> None:
    random = np.random.default_rng(2)
    first, second = random.integers(0, 97, 25), random.integers(0, 97, 39)
    row = np.concatenate([first, second])[None]
    segments = np.array([[1] * 25 + [2] * 39])
    positions = np.array([[*range(25), *range(39)]])
    packed = np.asarray(forward(model, row, segments, positions))[0]
    alone = np.concatenate([np.asarray(forward(model, first[None]))[0], np.asarray(forward(model, second[None]))[0]])
    assert np.abs(packed - alone).max() < 1e-4


def test_later_tokens_do_not_reach_earlier_places(model: GPT) -> None:
    tokens = np.random.default_rng(3).integers(0, 97, (1, 64))
    changed = tokens.copy()
    changed[0, 40] = (changed[0, 40] + 1) % 97
    before, after = np.asarray(forward(model, tokens)), np.asarray(forward(model, changed))
    assert np.array_equal(before[:, :40], after[:, :40])
    assert not np.allclose(before[:, 40], after[:, 40])


def test_a_fresh_model_predicts_all_tokens_alike() -> None:
    shape = Shape(2, 64, 2, 2, 4, 300, 32, 1e4, 15.0, "float32")
    logits = np.asarray(forward(GPT(shape, seed=0), np.arange(32)[None]))
    loss = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean()
    assert loss == pytest.approx(math.log(300), abs=0.01)


def test_initial_weights_have_the_scales_of_the_original() -> None:
    arrays = named_arrays(GPT(Shape(1, 256, 2, 2, 4, 4000, 32, 1e4, 15.0, "float32"), seed=3))
    assert float(arrays["embedding"].std()) == pytest.approx(1, rel=0.01)
    assert float(arrays["head"].std()) == pytest.approx(1e-3, rel=0.01)
    bound = math.sqrt(3 / 256)
    assert float(jnp.abs(arrays["blocks.0.up"]).max()) == pytest.approx(bound, rel=0.01)
    assert float(arrays["blocks.0.query"].std()) == pytest.approx(1 / 16, rel=0.01)
    assert not arrays["blocks.0.output"].any()
    assert not arrays["blocks.0.down"].any()


def test_seeds_decide_the_weights() -> None:
    shape = Shape(1, 16, 2, 2, 4, 30, 8, 1e4, 15.0, "float32")
    one, same, other = (named_arrays(GPT(shape, seed))["blocks.0.up"] for seed in (1, 1, 2))
    assert jnp.array_equal(one, same)
    assert not jnp.array_equal(one, other)


def test_counts_agree_with_the_arrays(model: GPT) -> None:
    counts = count_parameters(model.shape)
    sizes = {name: array.size for name, array in named_arrays(model).items()}
    assert counts["total"] == sum(sizes.values()) == sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert counts["embedding"] == sizes["embedding"]


def test_flops_of_the_peers_d4_and_d6() -> None:
    # The figures published for the torch peer at these shapes (value embeddings are lookups, no products).
    d4 = Shape(4, 256, 4, 4, 4, 8192, 512, 1e4, 15.0, "float32")
    d6 = Shape(6, 384, 6, 6, 4, 8192, 512, 1e4, 15.0, "float32")
    assert flops_per_token(d4) == pytest.approx(3.775e7, rel=0.01)
    assert flops_per_token(d6) == pytest.approx(9.673e7, rel=0.01)


def test_bfloat16_stays_near_float32(make_model: Callable[..., GPT]) -> None:
    tokens = np.random.default_rng(5).integers(0, 97, (2, 64))
    exact, half = forward(make_model(), tokens), forward(make_model(compute="bfloat16"), tokens)
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(exact - half).mean()) < 0.1
