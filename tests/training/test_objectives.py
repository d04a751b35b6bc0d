from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nanocode_core.errors import UserError
from nanocode_core.model.backend import Backend
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.objectives import (
    next_token,
    packed_rows,
    paired_rows,
    preference,
    preference_loss,
    whole_rows,
)
from nanocode_core.training.program import ACCELERATOR_TOKENS, Program, choose_micro

SHAPE = Shape(1, 16, 2, 2, 4, 50, 32, 1e4, 15.0, "float32")


@pytest.fixture(scope="module")
def model() -> GPT:
    graph, params = nnx.split(GPT(SHAPE, seed=0), nnx.Param)
    random = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape).astype(np.float32), params))


@nnx.jit
def log_probabilities(model: GPT, inputs: np.ndarray, targets: np.ndarray) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(model(inputs)), targets[..., None], axis=-1)[..., 0]


def test_packed_rows_predict_only_marked_tokens_of_the_same_segment() -> None:
    batch = packed_rows(
        tokens=np.array([[1, 5, 6, 1, 7, 8, 0]]),
        mask=np.array([[0, 1, 1, 1, 0, 1, 1]], np.int8),
        segments=np.array([[1, 1, 1, 2, 2, 2, 0]]),
        positions=np.array([[0, 1, 2, 0, 1, 2, 0]]),
    )
    assert batch["inputs"].tolist() == [[1, 5, 6, 1, 7, 8]]
    assert batch["targets"].tolist() == [[5, 6, 1, 7, 8, 0]]
    # Not the start of segment 2, though marked, nor the padding.
    assert batch["weights"].tolist() == [pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3, 0])]


def test_next_token_is_the_mean_over_the_weighted_targets(model: GPT) -> None:
    rows = np.random.default_rng(1).integers(0, 50, (4, 33))
    batch = whole_rows(rows)
    expected = -np.asarray(log_probabilities(model, rows[:, :-1], rows[:, 1:]), np.float64).mean()
    assert float(nnx.jit(next_token)(model, batch)[0]) == pytest.approx(expected, rel=1e-5)


def pair_batch(pairs: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    sides = [random.integers(0, 50, (pairs, 33)) for _ in range(2)]
    masks = [(random.random((pairs, 33)) < 0.4).astype(np.int8) for _ in range(2)]
    batch = paired_rows(sides[0], masks[0], sides[1], masks[1])
    return {**batch, "reference": (-100 + 20 * random.random((pairs, 2))).astype(np.float32)}


@pytest.mark.parametrize(("kind", "beta"), [("ipo", 0.5), ("sigmoid", 0.1)])
def test_preference_value_and_gradient_equal_their_definition(model: GPT, kind: Any, beta: float) -> None:
    batch = pair_batch(6)
    graph, params = nnx.split(model, nnx.Param)

    def defined(params: Any) -> jax.Array:
        logs = log_probabilities(
            nnx.merge(graph, params), batch["inputs"].reshape(12, 32), batch["targets"].reshape(12, 32)
        )
        summed = jnp.sum(logs.reshape(6, 2, 32) * batch["weights"], axis=-1) - batch["reference"]
        margins = summed[:, 0] - summed[:, 1]
        if kind == "ipo":
            return jnp.mean((margins - 1 / (2 * beta)) ** 2)
        return jnp.mean(jnp.log(1 + jnp.exp(-beta * margins)))

    def ours(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return preference(kind, beta)(nnx.merge(graph, params), batch)

    (value, _), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(defined))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert jnp.abs(one - other).max() < 1e-4 * max(1.0, float(jnp.abs(other).max()))


def copied(model: GPT) -> GPT:
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(jnp.array, state))


def test_preference_losses_by_hand() -> None:
    margins = jnp.array([-2.0, 0.0, 1.0, 30.0])
    assert np.asarray(preference_loss("ipo", 0.5, margins)) == pytest.approx([9.0, 1.0, 0.0, 841.0])
    sigmoid = [np.log1p(np.exp(0.2)), np.log(2), np.log1p(np.exp(-0.1)), np.log1p(np.exp(-3.0))]
    assert np.asarray(preference_loss("sigmoid", 0.1, margins)) == pytest.approx(sigmoid, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "make"),
    [
        (next_token, lambda: whole_rows(np.random.default_rng(3).integers(0, 50, (8, 33)))),
        (preference("ipo", 0.5), lambda: pair_batch(8)),
    ],
)
def test_micro_batches_add_up_to_the_whole_batch(
    model: GPT, objective: Any, make: Callable[[], dict[str, np.ndarray]]
) -> None:
    def step(micro: int) -> Any:
        program = Program(SHAPE, optax.sgd(0.1), objective, Backend.of(), micro)
        return program.step(program.initial(copied(model)), program.place(make()))

    whole, metrics = step(8)
    parts, same = step(2)
    for name, value in metrics.items():
        assert float(same[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        assert jnp.abs(one - other).max() < 1e-4 * max(1.0, float(jnp.abs(one).max()))


def test_micro_batches_must_divide_the_batch(model: GPT) -> None:
    program = Program(SHAPE, optax.sgd(0.1), next_token, Backend.of(), 3)
    with pytest.raises(UserError, match=r"micro_sequences \(3\) must divide the rows of a device \(8\)"):
        program.step(program.initial(copied(model)), program.place(whole_rows(np.zeros((8, 33), int))))


def test_cpu_micro_batches_fit_its_caches() -> None:
    assert choose_micro(16, 512, "cpu") == 4
    assert choose_micro(6, 1024, "cpu") == 2
    assert choose_micro(3, 4096, "cpu") == 1
    assert choose_micro(4, 1024, "cpu") == 2
    assert choose_micro(16, 512, "tpu") == 16
    assert choose_micro(48, 4096, "tpu") * 4096 == ACCELERATOR_TOKENS
