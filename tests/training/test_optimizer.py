import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nanocode_core.config.model import Optimizer
from nanocode_core.model.backend import Backend
from nanocode_core.training.muon import (
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    Coefficients,
    Muon,
    iterated_on_gram,
    muon,
    orthogonal,
)
from nanocode_core.training.optimizer import (
    build_optimizer,
    decay_curve,
    group_of_each,
    momentum_curve,
    rate_curve,
)

CPU = Backend("cpu")
PLAIN = Muon(rate=lambda step: 0.02 * (1 - step / 10), momentum=lambda step: 0.85 + 0.1 * step / 300)


def quintic_steps(x: np.ndarray, coefficients: Coefficients) -> np.ndarray:
    """In float64."""
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five quintic steps, always with the short side first."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = quintic_steps(x / np.linalg.norm(x), ((3.4445, -4.775, 2.0315),) * 5)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_muon_steps_equal_numpy(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    transformation = muon(PLAIN, CPU)
    params = {"w": jnp.zeros((2, *shape))}
    state = transformation.init(params)
    average = np.zeros((2, *shape))
    for step in range(4):
        gradient = random.normal(size=(2, *shape))
        updates, state = transformation.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        beta = 0.85 + 0.1 * step / 300
        average = beta * average + (1 - beta) * gradient
        direction = np.stack([newton_schulz(g) for g in beta * average + (1 - beta) * gradient])
        # [in, out]: a matrix with more outputs than inputs moves further.
        expected = -0.02 * (1 - step / 10) * max(1, shape[1] / shape[0]) ** 0.5 * direction
        assert np.abs(np.asarray(updates["w"]) - expected).max() < 1e-5


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    matrices = jnp.asarray(np.random.default_rng(1).normal(size=(3, 48, 16)), jnp.float32)
    for rule, low, high in ((PLAIN, 0.6, 1.3), (MODERN, 0.8, 1.2)):
        values = np.linalg.svd(np.asarray(orthogonal(matrices, rule, "cpu")), compute_uv=False)
        assert values.min() > low
        assert values.max() < high


@pytest.mark.parametrize("coefficients", [NEWTON_SCHULZ, POLAR_EXPRESS])
@pytest.mark.parametrize("decades", [0, 2, 4, 7])
def test_the_iteration_on_the_small_gram_matrix_keeps_what_rounding_could_take(
    coefficients: Coefficients, decades: int
) -> None:
    """The longer the tail of small singular values, the sooner eigenvalues of X X^T fall below zero."""
    random = np.random.default_rng(decades)
    left, right = (np.linalg.qr(random.normal(size=(rows, 96)))[0] for rows in (96, 384))
    x = left * 10.0 ** -np.linspace(0, decades, 96) @ right.T
    x /= np.linalg.norm(x)
    expected = quintic_steps(x, coefficients)
    found = np.asarray(iterated_on_gram(jnp.asarray(x, jnp.float32), coefficients))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-5


@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
def test_a_wide_matrix_takes_two_thirds_of_the_products_on_a_cpu(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def products() -> float:
        """Multiplications of one matrix, read off the traced program."""
        traced = jax.make_jaxpr(lambda x: orthogonal(x, PLAIN, "cpu"))(jnp.zeros((3, *shape)))
        (loop,) = (e for e in traced.eqns if e.primitive.name == "scan")
        dots = [e for e in loop.params["jaxpr"].eqns if e.primitive.name == "dot_general"]
        return sum(dot.outvars[0].aval.size * dot.invars[0].aval.shape[1] for dot in dots)

    found = products()
    monkeypatch.setattr("nanocode_core.training.muon.WIDE_FROM", 5)
    assert 0.6 < found / products() < 0.7


MODERN = Muon(
    rate=lambda step: jnp.asarray(0.02),
    momentum=lambda step: jnp.asarray(0.9),
    decay=lambda step: jnp.asarray(0.28),
    orthogonalizer="polar_express",
    equilibrate=True,
    renormalize=True,
    second_moment=0.9,
)


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_the_modern_muon_equals_numpy_on_transposed_matrices(shape: tuple[int, int]) -> None:
    """The reference keeps matrices as [out, in], a neuron a row."""
    random = np.random.default_rng(3)
    weights = random.normal(size=shape)
    transformation = muon(MODERN, CPU)
    params = {"w": jnp.asarray(weights[None], jnp.float32)}
    state = transformation.init(params)
    average, second = np.zeros(shape[::-1]), 0.0
    p = weights.T.copy()
    for _ in range(3):
        gradient = random.normal(size=shape)
        updates, state = transformation.update({"w": jnp.asarray(gradient[None], jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        average = 0.9 * average + 0.1 * gradient.T
        g = 0.9 * average + 0.1 * gradient.T
        rows = np.linalg.norm(g, axis=1, keepdims=True)
        x = g * (np.linalg.norm(g) / np.sqrt(len(g)) / rows)
        x = x / (np.linalg.norm(x) * 1.01 + 1e-6)
        x = quintic_steps(x, POLAR_EXPRESS)
        x *= np.sqrt(min(x.shape)) / np.linalg.norm(x)
        axis = 1 if x.shape[0] >= x.shape[1] else 0
        squares = np.mean(x * x, axis=axis, keepdims=True)
        second = 0.9 * second + 0.1 * squares
        scaled = x / np.sqrt(second)
        x = scaled * (np.linalg.norm(x) / np.linalg.norm(scaled))
        rate = 0.02 * max(1, x.shape[0] / x.shape[1]) ** 0.5
        p = p - rate * x - rate * 0.28 * p * (x * p >= 0)
        assert np.abs(np.asarray(params["w"][0]).T - p).max() < 1e-4


def test_momentum_rises_stays_and_falls() -> None:
    config = Optimizer(momentum=0.97, momentum_steps=40, final_momentum=0.9, warmdown=0.5)
    curve = momentum_curve(config, steps=200)
    values = [float(curve(jnp.asarray(step))) for step in (0, 20, 40, 100, 150, 200)]
    assert values == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.935, 0.90])
    steady = momentum_curve(Optimizer(), steps=1000)
    assert [float(steady(jnp.asarray(step))) for step in (0, 300, 999)] == pytest.approx([0.85, 0.95, 0.95])


def test_decay_falls_along_a_cosine() -> None:
    curve = decay_curve(0.28, steps=100)
    assert [float(curve(jnp.asarray(step))) for step in (0, 50, 100)] == pytest.approx([0.28, 0.14, 0], abs=1e-6)
    assert decay_curve(0.0, steps=100) is None


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
        "value_embedding": jnp.ones((1, 5, 4)),
        "keep": jnp.ones(2),
        "blend": jnp.ones(2),
        "smear_gate": jnp.ones((24, 1)),
        "blocks": {"query": jnp.ones((2, 4, 4)), "down": jnp.ones((2, 16, 4))},
    }
    assert group_of_each(params) == {
        "embedding": "embedding",
        "head": "head",
        "value_embedding": "value_embedding",
        "keep": "keep",
        "blend": "blend",
        "smear_gate": "smear",
        "blocks": {"query": "matrix", "down": "matrix"},
    }
    optimizer = build_optimizer(Optimizer(), steps=10, width=192, backend=CPU, rate_scale=0.5)
    random = np.random.default_rng(2)
    gradients = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    # Adam's first step has the size of the rate, which grows as the model gets narrower: (192 / 768)^-0.5 = 2.
    assert np.abs(updates["embedding"]) == pytest.approx(np.full((5, 4), 0.3), rel=1e-4)
    assert np.abs(updates["head"]) == pytest.approx(np.full((5, 4), 0.004), rel=1e-4)
    assert np.abs(updates["value_embedding"]) == pytest.approx(np.full((1, 5, 4), 0.15), rel=1e-4)
    assert np.abs(updates["blend"]) == pytest.approx(np.full(2, 0.25), rel=1e-4)
    assert np.abs(updates["smear_gate"]) == pytest.approx(np.full((24, 1), 0.2), rel=1e-4)
    new = optax.apply_updates(params, updates)
    assert not np.allclose(new["blocks"]["query"], 1)
