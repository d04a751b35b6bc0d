"""Attention as it is defined: the reference of the other paths, and what they fall back to.

A query at place i sees the keys at places i - window ... i of its row (window None: 0 ... i), of
these only the ones of its own segment where segment ids are given. Letters: B rows, T places,
H heads, K key/value heads (H a multiple of K), D head size. Softmax is in float32.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

SAVED = "attention"
"""Checkpoint name of what the backward passes of `blocked` and `splash` read and only they can compute: with
`jax.checkpoint_policies.save_only_these_names(SAVED)` a layer is computed again without its attention."""


class Attention(Protocol):
    """An attention function; `__name__` is for printing."""

    __name__: str

    def __call__(self, q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
        """Causal attention of q [B, T, H, D] over k and v [B, T, K, D]: [B, T, H, D].

        Args:
            q: queries.
            k: keys; query head h reads key/value head h // (H / K).
            v: values.
            segments: [B, T] ids; a query sees keys of its own id only. None: the row is one.
            window: how far back a query sees, static: window + 1 places, its own included. None: the whole row.
        """


def plain(q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
    """See `Attention`. Every score is computed and kept."""
    places = jnp.arange(q.shape[1])
    mask = visible(places, places, window)
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return masked_attention(q, k, v, mask).transpose(0, 2, 1, 3)


def visible(queries: Array, keys: Array, window: int | None) -> Array:
    """The mask [q, k] of places [q] and [k]: causal, and within the window."""
    back = queries[:, None] - keys
    return back >= 0 if window is None else (back >= 0) & (back <= window)


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
