"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Keller Jordan et al., 2024) replaces a matrix's averaged gradient by the nearest
semi-orthogonal matrix, so every direction moves by the same amount (muon.py). AdamW is optax's.
Rates follow one curve for all groups: an optional linear rise, a plateau, and a linear fall over
the last `warmdown` share of the steps to `final_lr` of the full rate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from nanocode_core.config.model import Optimizer as OptimizerConfig
from nanocode_core.model.backend import Backend
from nanocode_core.training.muon import Muon, muon

Schedule = Callable[[Array], Array]

SMEAR_LR = 0.2
"""Rate of the smear and backout parameters (nanochat)."""


def build_optimizer(
    config: OptimizerConfig,
    steps: int,
    width: int,
    backend: Backend,
    rate_scale: float = 1.0,
    decay_scale: float = 1.0,
) -> optax.GradientTransformation:
    """The optimizer of one training run.

    Args:
        config: rates and schedule.
        steps: optimizer steps of the whole run.
        width: of the model; the rates of embeddings and head scale by (width / 768)^-0.5.
        backend: where it runs.
        rate_scale: of all rates (see horizon.py).
        decay_scale: of the matrices' weight decay.
    """
    curve = rate_curve(config, steps)
    by_width = (width / 768) ** -0.5

    def adam(
        rate: float, beta2: float, decay: float = 0.0, beta1: float = 0.8, scale: float = rate_scale
    ) -> optax.GradientTransformation:
        def schedule(step: Array) -> Array:
            return rate * scale * curve(step)

        if not decay:
            return optax.adam(schedule, b1=beta1, b2=beta2, eps=1e-10)
        return optax.adamw(schedule, b1=beta1, b2=beta2, eps=1e-10, weight_decay=decay)

    embedding = config.embedding_lr * by_width
    rule = Muon(
        rate=lambda step: config.matrix_lr * rate_scale * curve(step),
        momentum=momentum_curve(config, steps),
        decay=decay_curve(config.matrix_decay * decay_scale, steps),
        orthogonalizer=config.orthogonalizer,
        equilibrate=config.equilibrate,
        renormalize=config.renormalize,
        second_moment=config.second_moment,
    )
    groups = {
        "matrix": muon(rule, backend),
        "embedding": adam(embedding, config.embedding_beta2, config.embedding_decay),
        "value_embedding": adam(0.5 * embedding, config.embedding_beta2, config.head_decay),
        "head": adam(config.head_lr * by_width, config.head_beta2, config.head_decay),
        # The scalars' settings are nanochat's; the recipe without them has none to set.
        "keep": adam(0.01 * config.scalar_lr, 0.95, 0.05),
        "blend": adam(config.scalar_lr, 0.95, beta1=0.96),
        "smear": adam(SMEAR_LR, 0.95, scale=1.0),
    }
    return optax.partition(groups, group_of_each)


_GROUPS = {
    "embedding": "embedding",
    "value_embedding": "value_embedding",
    "head": "head",
    "keep": "keep",
    "blend": "blend",
    "smear_gate": "smear",
    "smear_scale": "smear",
    "backout_scale": "smear",
}


def group_of_each(params: Any) -> Any:
    """The optimizer group of every leaf; "matrix" for what is in a block, and the gates of value embeddings."""

    def group(path: tuple[Any, ...], _: Array) -> str:
        return _GROUPS.get(str(getattr(path[0], "key", path[0])), "matrix")

    return jax.tree_util.tree_map_with_path(group, params)


def rate_curve(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate at a step (from 0) as a share of the full one."""
    warmup = max(config.warmup * steps, config.warmup_steps)
    warmdown = config.warmdown * steps

    def curve(step: Array) -> Array:
        rise = (step + 1) / warmup if warmup else jnp.ones(())
        left = (steps - step) / warmdown if warmdown else jnp.ones(())
        fall = config.final_lr + (1 - config.final_lr) * jnp.clip(left, 0, 1)
        return jnp.asarray(jnp.minimum(jnp.minimum(rise, 1), fall))

    return curve


def momentum_curve(config: OptimizerConfig, steps: int) -> Schedule:
    """Muon's momentum at a step: from 0.85 up over `momentum_steps`, and to `final_momentum` over the warmdown."""
    warmdown = config.warmdown * steps

    def curve(step: Array) -> Array:
        value = 0.85 + (config.momentum - 0.85) * jnp.minimum(step / config.momentum_steps, 1)
        if config.final_momentum is None or not warmdown:
            return jnp.asarray(value)
        done = jnp.clip((step - (steps - warmdown)) / warmdown, 0, 1)
        falling = config.momentum + (config.final_momentum - config.momentum) * done
        # As long as it still rises it is not yet falling.
        return jnp.where((step < config.momentum_steps) | (done == 0), value, falling)

    return curve


def decay_curve(decay: float, steps: int) -> Schedule | None:
    """The matrices' weight decay at a step: half a cosine from `decay` to 0. None: there is none."""
    return (lambda step: decay * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))) if decay else None
