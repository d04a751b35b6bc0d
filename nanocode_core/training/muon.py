"""Muon on stacks of matrices [L, in, out], with the refinements that the recipe `modern` switches on.

It is written out here rather than taken from `optax.contrib.muon`, which has no momentum schedule
without bias correction, no NorMuon, no row equilibration and no cautious decay, and which does not
say where its matrix products happen: here every device orthogonalizes its own share of the
matrices, whole ones, however the parameters lie.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from nanocode_core.model.backend import Backend

Schedule = Callable[[Array], Array]
Coefficients = tuple[tuple[float, float, float], ...]

NEWTON_SCHULZ: Coefficients = ((3.4445, -4.775, 2.0315),) * 5
"""Coefficients a, b, c of X <- a X + (b A + c A A) X with A = X X^T, a triple a step (Jordan et al. 2024)."""
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""The same, each step with the best triple for what the steps before it leave (Amsel et al. 2025, five
steps, safety factor 0.02)."""

WIDE_FROM = 2
"""Long side over short side from which on the iteration runs on the small X X^T (cheaper from 1.5 on)."""
RESTART = 3
"""Steps after which that iteration starts again from X X^T."""

SPREAD_FROM = 2**14
"""Elements of a matrix from which on its orthogonalization is spread over the devices."""


@dataclass(frozen=True)
class Muon:
    """What Muon does at a step; see `config.model.Optimizer` for the fields.

    Attributes:
        rate: learning rate at a step.
        momentum: decay of the averaged gradient at a step.
        decay: cautious weight decay at a step; None: none.
    """

    rate: Schedule
    momentum: Schedule
    decay: Schedule | None = None
    orthogonalizer: str = "newton_schulz"
    equilibrate: bool = False
    renormalize: bool = False
    second_moment: float = 0.0


class MuonState(NamedTuple):
    """Steps taken so far, the averaged gradients in the shapes of the matrices, and NorMuon's averages or None."""

    taken: Array
    momentum: Any
    second: Any


def muon(rule: Muon, backend: Backend) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized; for stacks of [in, out] matrices only.

    The update is -rate * sqrt(max(1, out / in)) * (orthogonal(nesterov gradient) + decay). The average
    starts at zero without correction: orthogonalizing removes its scale anyway.
    """

    def init(params: optax.Params) -> MuonState:
        second = jax.tree.map(_second_start, params) if rule.second_moment else None
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), second)

    def update(
        gradients: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        beta, lr = rule.momentum(state.taken), rule.rate(state.taken)
        average = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.momentum, gradients)
        nesterov = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, average, gradients)
        directions = jax.tree.map(
            lambda x: _spread(lambda part: orthogonal(part, rule, backend.platform), x, backend), nesterov
        )
        second = state.second
        if rule.second_moment:
            pairs = jax.tree.map(lambda x, s: normalized(x, s, rule.second_moment), directions, second)
            directions, second = jax.tree.transpose(jax.tree.structure(directions), None, pairs)

        def step(x: Array, p: Array | None) -> Array:
            rows, columns = x.shape[-2:]
            change = x
            if rule.decay is not None and p is not None:
                change = change + rule.decay(state.taken) * jnp.where(x * p >= 0, p, 0)
            update: Array = -lr * max(1.0, columns / rows) ** 0.5 * change
            return update

        updates = jax.tree.map(step, directions, params if rule.decay is not None else directions)
        return updates, MuonState(state.taken + 1, average, second)

    return optax.GradientTransformation(init, update)


def orthogonal(stack: Array, rule: Muon, platform: str) -> Array:
    """Push all singular values of each [m, n] matrix of a stack [L, m, n] to about 1.

    In bfloat16 where the platform is fast in it, as in the original; in float32 on a CPU.
    """
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    if platform == "cpu":
        # One product after the other: XLA's batched ones are several times slower there.
        one_by_one: Array = lax.map(lambda x: _orthogonal(x, rule, dtype), stack)
        return one_by_one
    return _orthogonal(stack, rule, dtype)


def _orthogonal(x: Array, rule: Muon, dtype: Any) -> Array:
    """See `orthogonal`; x [..., m, n]."""
    m, n = x.shape[-2:]
    result_type = x.dtype
    if rule.equilibrate:  # neurons are columns
        norms = jnp.linalg.norm(x, axis=-2, keepdims=True)
        x = x * (_frobenius(x) / n**0.5 / jnp.maximum(norms, 1e-6))
    if m > n:
        x = jnp.swapaxes(x, -1, -2)
    if rule.orthogonalizer == "polar_express":
        coefficients, margin, floor = POLAR_EXPRESS, 1.01, 1e-6
    else:
        coefficients, margin, floor = NEWTON_SCHULZ, 1.0, 1e-7
    x = (x / (_frobenius(x) * margin + floor)).astype(dtype)
    # Products of half precision are too coarse for powers of X X^T.
    wide = dtype == jnp.float32 and max(m, n) >= WIDE_FROM * min(m, n)
    x = iterated_on_gram(x, coefficients) if wide else iterated(x, coefficients)
    if m > n:
        x = jnp.swapaxes(x, -1, -2)
    x = x.astype(result_type)
    if rule.renormalize:
        x = x * (min(m, n) ** 0.5 / jnp.maximum(_frobenius(x), 1e-6))
    return x


def iterated(x: Array, coefficients: Coefficients) -> Array:
    """X <- a X + (b A + c A A) X with A = X X^T for each triple; x [..., m, n], m <= n."""
    for a, b, c in coefficients:
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def iterated_on_gram(x: Array, coefficients: Coefficients) -> Array:
    """The same in fewer products where m is much smaller than n: two thirds of the FLOPs at n = 4 m.

    A step multiplies X by a polynomial in A, and so A by its square: powers of A are enough, and X is
    multiplied once at the end. Rounding leaves A with eigenvalues below zero that each step enlarges, hence
    the fresh start (Gram Newton-Schulz with restarts; Zhang, Amsel, Chen, Dao 2026).
    """
    for steps in (coefficients[:RESTART], coefficients[RESTART:]):
        gram = x @ jnp.swapaxes(x, -1, -2)
        factor = step = one = jnp.eye(x.shape[-2], dtype=x.dtype)
        for number, (a, b, c) in enumerate(steps):
            if number:
                gram = gram @ step @ step
            step = a * one + b * gram + c * gram @ gram
            factor = step @ factor if number else step
        x = factor @ x
    return x


def normalized(x: Array, average: Array, beta: float) -> tuple[Array, Array]:
    """Divide an update [L, m, n] by the root of the average squared update along its longer side (NorMuon).

    The norm of each matrix stays as it was. Returns the update and the new average, [L, m, 1] or [L, 1, n].
    """
    axis = _shared_axis(x)
    squares = jnp.mean(jnp.square(x), axis=axis, keepdims=True)
    average = beta * average + (1 - beta) * squares
    scale = lax.rsqrt(jnp.maximum(average, 1e-10))
    before = jnp.sqrt(jnp.sum(squares, axis=(-2, -1), keepdims=True))
    after = jnp.sqrt(jnp.sum(squares * jnp.square(scale), axis=(-2, -1), keepdims=True))
    return x * (scale * (before / jnp.maximum(after, 1e-10))), average


def _second_start(x: Array) -> Array:
    shape = list(x.shape)
    shape[_shared_axis(x)] = 1
    return jnp.zeros(shape, x.dtype)


def _shared_axis(x: Array) -> int:
    """The axis over which NorMuon averages: the shorter one, of a square matrix that of the inputs."""
    rows, columns = x.shape[-2:]
    return -2 if columns >= rows else -1


def _spread(compute: Callable[[Array], Array], stack: Array, backend: Backend) -> Array:
    """`compute` of a stack [L, m, n], whole matrices, the L of them spread over all devices."""
    if backend.mesh is None or not backend.spread or stack[0].size < SPREAD_FROM:
        return compute(stack)
    spread = PartitionSpec(backend.mesh.axis_names)
    # As many as the devices can share evenly: a zero matrix stays zero.
    missing = -len(stack) % backend.mesh.size
    padded = lax.with_sharding_constraint(
        jnp.pad(stack, [(0, missing), (0, 0), (0, 0)]), NamedSharding(backend.mesh, spread)
    )
    mapped = jax.shard_map(compute, mesh=backend.mesh, in_specs=spread, out_specs=spread, check_vma=False)
    out: Array = mapped(padded)[: len(stack)]
    return out


def _frobenius(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1), keepdims=True))
