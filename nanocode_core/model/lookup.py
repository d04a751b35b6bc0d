"""Rows of an embedding table, with a gradient that adds up in float32.

A common token occurs thousands of times in a batch, and a bfloat16 sum of so many terms stalls. On
several devices the table is gathered in the compute type, which halves the bytes; its gradient
is added up in float32 on each device before it is spread again.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from nanocode_core.model.backend import Backend


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(table: Array, tokens: Array, compute: str, backend: Backend) -> Array:
    """Rows `tokens` [...] of a table [V, d] as `compute` type: [..., d]."""
    if backend.spread:  # every device needs the whole table
        table = backend.replicated(table.astype(compute))
    return table[tokens].astype(compute)


def _forward(table: Array, tokens: Array, compute: str, backend: Backend) -> tuple[Array, tuple[Array, Array]]:
    return look_up(table, tokens, compute, backend), (tokens, table)


def _backward(compute: str, backend: Backend, saved: tuple[Array, Array], change: Array) -> tuple[Array, None]:
    tokens, table = saved
    return jnp.zeros_like(table).at[tokens].add(change.astype(table.dtype)), None


look_up.defvjp(_forward, _backward)
