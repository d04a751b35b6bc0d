"""Attention on a CPU: blocks of queries, each against only the keys that it can see.

Forward, the weights of a block are left unnormalised (exp(score - row maximum)), kept, and its
output divided by their sum. Backward, the output gradient is divided by that sum instead, so that the
kept weights serve as they are. No product sums over the rows of its left operand: XLA's CPU library runs
those at a quarter of its speed, so the gradients of keys and values come out as [D, T] and are
turned once (LOG.md).
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from nanocode_core.model.attention.definition import SAVED, visible

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Saved(NamedTuple):
    """What the backward pass reads. A block's rows are its places, once for each of the G query heads of a key head.

    q: [B, K, G, T, D], scaled. k, v: [B, K, T, D]. segments: [B, T] or None. out: one [B, K, rows, D] a block.
    weights, sums: one [B, K, rows, keys] and [B, K, rows, 1] a block.
    """

    q: Array
    k: Array
    v: Array
    segments: Array | None
    out: list[Array]
    weights: list[Array]
    sums: list[Array]


def blocked(q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
    """See `Attention`. Keys later than a block, or out of its window, cost nothing."""
    return _blocked(q, k, v, segments, window)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocked(q: Array, k: Array, v: Array, segments: Array | None, window: int | None) -> Array:
    return _forward(q, k, v, segments, window)[0]


def _forward(q: Array, k: Array, v: Array, segments: Array | None, window: int | None) -> tuple[Array, _Saved]:
    B, T, H, D = q.shape
    K = k.shape[2]
    scaled = (q * jnp.asarray(D**-0.5, q.dtype)).reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)
    saved = _Saved(scaled, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), segments, [], [], [])
    for start, first, end in _blocks(T, window):
        scores = _product("bkrd,bkcd->bkrc", _rows(saved.q, first, end), saved.k[:, :, start:end])
        scores = jnp.where(_mask(start, first, end, segments, window, H // K), scores, -1e30)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        sums = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v.dtype)
        out = _product("bkrc,bkcd->bkrd", weights, saved.v[:, :, start:end]) / sums
        saved.out.append(out.astype(v.dtype))
        saved.weights.append(weights)
        saved.sums.append(sums)
    saved = saved._replace(
        out=checkpoint_name(saved.out, SAVED),
        weights=checkpoint_name(saved.weights, SAVED),
        sums=checkpoint_name(saved.sums, SAVED),
    )
    return _joined(saved.out, H // K), saved


def _backward(window: int | None, saved: _Saved, d_out: Array) -> tuple[Array, Array, Array, None]:
    B, T, H, D = d_out.shape
    K = saved.k.shape[1]
    dtype = d_out.dtype
    d_out = d_out.reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)
    d_q: list[Array] = []
    d_k: dict[int, Array] = {}
    d_v: dict[int, Array] = {}
    for (start, first, end), out, weights, sums in zip(
        _blocks(T, window), saved.out, saved.weights, saved.sums, strict=True
    ):
        q, k, v = _rows(saved.q, first, end), saved.k[:, :, start:end], saved.v[:, :, start:end]
        d_block = (_rows(d_out, first, end) / sums).astype(dtype)
        mean = jnp.sum(_wide(d_block) * _wide(out), axis=-1, keepdims=True)
        d_weights = _product("bkrd,bkcd->bkrc", d_block, v)
        d_scores = (weights * (d_weights - mean)).astype(dtype)
        # The barrier keeps XLA from folding the turn of [rows, D] into the product.
        turned_q, turned_d = lax.optimization_barrier((q.swapaxes(2, 3), d_block.swapaxes(2, 3)))
        _add(d_v, start, _block_size(T, window), _product("bkdr,bkrc->bkdc", turned_d, weights))
        _add(d_k, start, _block_size(T, window), _product("bkdr,bkrc->bkdc", turned_q, d_scores))
        d_q.append((_product("bkrc,bkcd->bkrd", d_scores, k) * D**-0.5).astype(dtype))
    return _joined(d_q, H // K), *_turned(d_k, d_v, dtype), None


_blocked.defvjp(_forward, _backward)


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first key, first query, end of both) of every block; all are multiples of the size but the last end."""
    size = _block_size(length, window)
    for first in range(0, length, size):
        start = 0 if window is None else max(0, (first - window) // size * size)
        yield start, first, min(first + size, length)


def _block_size(length: int, window: int | None) -> int:
    """Smaller blocks leave out more, larger ones make better products and less to compile."""
    reach = length if window is None else min(length, window + 1)
    return 128 if reach < 1024 else 256


def _add(tiles: dict[int, Array], start: int, size: int, part: Array) -> None:
    """Add part [B, K, D, keys from `start`] to the sums of its tiles: keys `at` ... `at + size` under `at`."""
    for at in range(start, start + part.shape[3], size):
        tile = part[..., at - start : at - start + size]
        tiles[at] = tiles[at] + tile if at in tiles else tile


def _turned(d_k: dict[int, Array], d_v: dict[int, Array], dtype: jnp.dtype) -> tuple[Array, Array]:
    """The tiles of the gradients of keys and values, [B, K, D, keys], as [B, T, K, D].

    Row by row in a loop, out of which XLA can't move the turn: it would repeat the strided reads in
    everything that uses the gradients.
    """
    whole = tuple(jnp.concatenate([tiles[at] for at in sorted(tiles)], axis=3) for tiles in (d_k, d_v))
    turned: tuple[Array, Array] = lax.map(lambda row: tuple(x.transpose(2, 0, 1).astype(dtype) for x in row), whole)
    return turned


def _mask(start: int, first: int, end: int, segments: Array | None, window: int | None, group: int) -> Array:
    """Which keys start ... end the queries first ... end see; broadcasts to [B, K, rows, keys]."""
    mask = visible(jnp.arange(first, end), jnp.arange(start, end), window)
    if segments is not None:
        mask = mask & (segments[:, None, first:end, None] == segments[:, None, None, start:end])
    return jnp.concatenate([mask] * group, axis=-2)


def _rows(x: Array, first: int, end: int) -> Array:
    """Places first ... end of x [B, K, G, T, D] as the rows of a block: [B, K, G * places, D]."""
    B, K, G, _, D = x.shape
    return x[:, :, :, first:end].reshape(B, K, G * (end - first), D)


def _joined(blocks: list[Array], group: int) -> Array:
    """The rows of all blocks, [B, K, rows, D] each, as [B, T, H, D]."""
    B, K, _, D = blocks[0].shape
    joined = jnp.concatenate([x.reshape(B, K, group, -1, D) for x in blocks], axis=3)
    return joined.transpose(0, 3, 1, 2, 4).reshape(B, -1, K * group, D)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)
