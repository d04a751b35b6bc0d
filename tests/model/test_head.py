import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode_core.model.backend import Backend
from nanocode_core.model.gpt import cap
from nanocode_core.model.head import token_losses, weighted_loss

SMALL = Backend("cpu", loss_places=16)


def direct(hidden: jax.Array, head: jax.Array, targets: jax.Array, softcap: float) -> jax.Array:
    logits = cap(hidden @ head.T, softcap)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=-1)[:, 0]


def problem(count: int, learned: float) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    weights = random.random(count) * (random.random(count) < learned)
    return (
        jnp.asarray(random.normal(size=(count, 12)), jnp.float32),
        jnp.asarray(3 * random.normal(size=(31, 12)), jnp.float32),
        jnp.asarray(random.integers(0, 31, count)),
        jnp.asarray(weights, jnp.float32),
    )


@pytest.mark.parametrize("softcap", [0.0, 15.0])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("count", "learned"), [(64, 1.0), (50, 0.4), (7, 1.0), (40, 0.0)])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(
    count: int, learned: float, dense: bool, softcap: float
) -> None:
    hidden, head, targets, weights = problem(count, learned)

    def ours(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return 2 * weighted_loss(hidden, head, targets, weights, softcap, SMALL, dense)[0]

    def plain(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return 2 * jnp.sum(weights * direct(hidden, head, targets, softcap))

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
    expected, expected_gradients = jax.value_and_grad(plain, (0, 1))(hidden, head)
    assert value == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert jnp.abs(one - other).max() < 1e-4


@pytest.mark.parametrize("dense", [False, True])
def test_token_losses_are_zero_where_nothing_is_asked(dense: bool) -> None:
    hidden, head, targets, weights = problem(48, 0.5)
    losses = token_losses(hidden, head, targets, weights, 15.0, SMALL, dense)
    expected = jnp.where(weights != 0, direct(hidden, head, targets, 15.0), 0)
    assert jnp.abs(losses - expected).max() < 1e-5


def test_negative_weights_push_probability_away() -> None:
    hidden, head, targets, weights = problem(16, 1.0)
    gradient = jax.grad(lambda h, w: weighted_loss(h, head, targets, w, 15.0, SMALL)[0])
    assert jnp.abs(gradient(hidden, weights) + gradient(hidden, -weights)).max() < 1e-6
