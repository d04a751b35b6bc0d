import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanocode_core.config.model import Optimizer
from nanocode_core.training.optimizer import build_optimizer, group_of_each, muon, orthogonal, rate_curve


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five quintic steps in float64, always with the short side first."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_muon_steps_equal_numpy(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    transformation = muon(lambda step: 0.02 * (1 - step / 10))
    params = {"w": jnp.zeros(shape)}
    state = transformation.init(params)
    average = np.zeros(shape)
    for step in range(4):
        gradient = random.normal(size=shape)
        updates, state = transformation.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        beta = 0.85 + 0.1 * step / 300
        average = beta * average + (1 - beta) * gradient
        direction = newton_schulz(beta * average + (1 - beta) * gradient)
        # [in, out]: a matrix with more outputs than inputs moves further.
        expected = -0.02 * (1 - step / 10) * max(1, shape[1] / shape[0]) ** 0.5 * direction
        assert np.abs(np.asarray(updates["w"]) - expected).max() < 1e-5


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(48, 16)), jnp.float32)
    values = np.linalg.svd(np.asarray(orthogonal(matrix)), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_rates_rise_stay_and_fall() -> None:
    curve = rate_curve(Optimizer(warmup=0.1, warmdown=0.4, final_lr=0.05), steps=100)
    values = [float(curve(jnp.asarray(step))) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:61] == pytest.approx([1.0] * 52)
    assert values[80] == pytest.approx(0.05 + 0.95 * 0.5)
    assert values[99] == pytest.approx(0.05 + 0.95 / 40)


def test_without_warmup_and_warmdown_the_rate_is_constant() -> None:
    curve = rate_curve(Optimizer(warmup=0, warmdown=0), steps=10)
    assert {float(curve(jnp.asarray(step))) for step in range(10)} == {1.0}


def test_every_parameter_gets_its_group_and_rate() -> None:
    params = {
        "embedding": jnp.ones((5, 4)),
        "head": jnp.ones((5, 4)),
        "blocks": {0: {"query": jnp.ones((4, 4)), "down": jnp.ones((16, 4))}},
    }
    assert group_of_each(params) == {
        "embedding": "embedding",
        "head": "head",
        "blocks": {0: {"query": "matrix", "down": "matrix"}},
    }
    optimizer = build_optimizer(Optimizer(), steps=10, width=192)
    random = np.random.default_rng(2)
    gradients = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Adam's first step has the size of the rate, which grows as the model gets narrower: (192 / 768)^-0.5 = 2.
    assert np.abs(updates["embedding"]) == pytest.approx(np.full((5, 4), 0.6), rel=1e-4)
    assert np.abs(updates["head"]) == pytest.approx(np.full((5, 4), 0.008), rel=1e-4)
    new = optax.apply_updates(params, updates)
    assert not np.allclose(new["blocks"][0]["query"], 1)
