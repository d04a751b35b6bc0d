"""Causal attention of packed rows, in the formulation that suits the platform.

An attention function takes q [B, T, H, D], k and v [B, T, K, D] (K key/value heads, H a multiple of
K) and optional segment ids [B, T], and returns [B, T, H, D]. A query sees the keys at its own and
earlier places of its row and, where segment ids are given, only those of its own segment. Softmax
is in float32. `plain` is the definition; `blocked` computes the same with the keys above the
diagonal left out block by block, which on a CPU is the faster one (LOG.md). `choose_attention`
picks by platform; another platform's kernel goes there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Attention = Callable[[Array, Array, Array, Array | None], Array]

BLOCK = 128
"""Queries computed together by `blocked`."""


def choose_attention(platform: str | None = None) -> Attention:
    """The attention for a platform ("cpu", "gpu", "tpu"; default: where jax computes)."""
    return blocked if (platform or jax.default_backend()) == "cpu" else plain


def plain(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Attention as it is defined, every score computed. The reference of the others."""
    heads_first = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = _rows(*heads_first, first=0, query_segments=segments, key_segments=segments)
    return out.transpose(0, 2, 1, 3)


def blocked(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
    """Attention in blocks of queries, each against only the keys up to its own end.

    Half of the products and exponentials of `plain` fall away as the row gets longer.
    """
    length = q.shape[1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    outs = []
    for first in range(0, length, BLOCK):
        end = min(first + BLOCK, length)
        outs.append(
            _rows(
                q[:, :, first:end],
                k[:, :, :end],
                v[:, :, :end],
                first=first,
                query_segments=None if segments is None else segments[:, first:end],
                key_segments=None if segments is None else segments[:, :end],
            )
        )
    return jnp.concatenate(outs, axis=2).transpose(0, 2, 1, 3)


def _rows(
    q: Array, k: Array, v: Array, *, first: int, query_segments: Array | None, key_segments: Array | None
) -> Array:
    """Attention of queries at places first ... of a row; heads before places: [B, H, q, D]."""
    mask = first + jnp.arange(q.shape[2])[:, None] >= jnp.arange(k.shape[2])
    if query_segments is not None and key_segments is not None:
        mask = mask & (query_segments[:, None, :, None] == key_segments[:, None, None, :])
    return masked_attention(q, k, v, mask)


def masked_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Attention under a boolean mask that broadcasts to [B, H, q, k]; True: may be seen.

    Args:
        q: [B, H, q, D].
        k: [B, K, k, D]; query head h reads key/value head h // (H / K).
        v: [B, K, k, D].
        mask: every query must see at least one key.
    """
    B, H, Q, D = q.shape
    K = k.shape[1]
    if K != H:  # the H / K queries of one key/value head become further rows of it
        q = q.reshape(B, K, H // K * Q, D)
        mask = jnp.broadcast_to(mask, (*jnp.broadcast_shapes(mask.shape, (1, 1, 1, 1))[:2], *mask.shape[-2:]))
        mask = jnp.tile(mask, (1, 1, H // K, 1))
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * D**-0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).reshape(B, H, Q, D)
