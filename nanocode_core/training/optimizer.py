"""Muon for the matrices of the blocks, Adam for embedding and head.

Muon (Keller Jordan et al., 2024) replaces a matrix's averaged gradient by the nearest
semi-orthogonal matrix, so every direction moves by the same amount. It is written out here rather
than taken from `optax.contrib.muon`, whose momentum is a constant and bias-corrected: the original
raises it from 0.85 to 0.95 over 300 steps, uncorrected. Everything else is optax.

Rates follow one curve for all groups: an optional linear rise, a plateau, and a linear fall over
the last `warmdown` share of the steps to `final_lr` of the full rate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from nanocode_core.config.model import Optimizer as OptimizerConfig

Schedule = Callable[[Array], Array]

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Quintic coefficients a, b, c of X <- a X + (b A + c A A) X with A = X X^T."""
NEWTON_SCHULZ_STEPS = 5


class MuonState(NamedTuple):
    """Steps taken so far, and the averaged gradients in the shapes of the matrices."""

    taken: Array
    momentum: Any


def build_optimizer(config: OptimizerConfig, steps: int, width: int) -> optax.GradientTransformation:
    """The optimizer of one training run.

    Args:
        config: rates and schedule.
        steps: optimizer steps of the whole run.
        width: of the model; the rates of embedding and head scale by (width / 768)^-0.5.
    """
    curve = rate_curve(config, steps)
    adam_scale = (width / 768) ** -0.5

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(lambda step: rate * adam_scale * curve(step), b1=0.8, b2=0.95, eps=1e-10)

    groups = {
        "matrix": muon(lambda step: config.matrix_lr * curve(step)),
        "embedding": adam(config.embedding_lr),
        "head": adam(config.head_lr),
    }
    return optax.partition(groups, group_of_each)


def group_of_each(params: Any) -> Any:
    """The optimizer group of every leaf: "embedding", "head", or "matrix" for what is in a block."""

    def group(path: tuple[Any, ...], _: Array) -> str:
        name = str(getattr(path[0], "key", path[0]))
        return name if name in ("embedding", "head") else "matrix"

    return jax.tree_util.tree_map_with_path(group, params)


def rate_curve(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate at a step (from 0) as a share of the full one."""
    warmup = config.warmup * steps
    warmdown = config.warmdown * steps

    def curve(step: Array) -> Array:
        rise = (step + 1) / warmup if warmup else jnp.ones(())
        left = (steps - step) / warmdown if warmdown else jnp.ones(())
        fall = config.final_lr + (1 - config.final_lr) * jnp.clip(left, 0, 1)
        return jnp.asarray(jnp.minimum(jnp.minimum(rise, 1), fall))

    return curve


def muon_momentum(step: Array) -> Array:
    """0.85 at step 0, 0.95 from step 300 on."""
    return 0.85 + 0.1 * jnp.minimum(step / 300, 1)


def muon(rate: Schedule, momentum: Schedule = muon_momentum) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; for [in, out] matrices only.

    The update is -rate * sqrt(max(1, out / in)) * orthogonal(nesterov gradient). The average
    starts at zero without correction: orthogonalising removes its scale anyway.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        gradients: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        beta, lr = momentum(state.taken), rate(state.taken)
        average = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.momentum, gradients)

        def step(m: Array, g: Array) -> Array:
            rows, columns = g.shape
            scale = max(1.0, columns / rows) ** 0.5
            return jnp.asarray(-lr * scale) * orthogonal(beta * m + (1 - beta) * g)

        return jax.tree.map(step, average, gradients), MuonState(state.taken + 1, average)

    return optax.GradientTransformation(init, update)


def orthogonal(matrix: Array) -> Array:
    """Push all singular values of a [m, n] matrix to about 1 by five Newton-Schulz steps.

    In bfloat16 where the platform is fast in it, as in the original; in float32 on a CPU.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (jnp.linalg.norm(x) + 1e-7)
    if jax.default_backend() != "cpu":
        x = x.astype(jnp.bfloat16)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = jnp.asarray(x, matrix.dtype)
    return x.T if tall else x
