"""Attention on a TPU: JAX's splash kernel (Pallas), which never writes a score to memory.

Scores are computed block by block, and blocks that the mask hides are skipped. The kernel attends in
one row, so rows are mapped over.
"""

import jax
import jax.numpy as jnp
from jax import Array

from nanocode_core.model.attention.definition import SAVED

LANES = 128
"""The kernel takes rows whose length is a multiple of this."""


def splash(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None = None,
    window: int | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """See `Attention`. `interpret` runs the kernel's steps on any platform, slowly: for tests."""
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    _, T, H, D = q.shape
    # Rows are filled up at their end, where no query of the row looks.
    filling = -T % LANES
    length = T + filling
    q = (q.astype(jnp.float32) * D**-0.5).astype(q.dtype)  # the kernel itself doesn't scale
    q, k, v = (jnp.pad(x, ((0, 0), (0, filling), (0, 0), (0, 0))).transpose(0, 2, 1, 3) for x in (q, k, v))
    back = length if window is None else window
    queries, keys, computed = blocks(length)
    kernel = lib.make_splash_mha(
        lib.MultiHeadMask([lib.LocalMask((length, length), (back, 0), 0)] * H),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
        block_sizes=lib.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_kv_compute=computed,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_kv_dkv_compute=computed,
            use_fused_bwd_kernel=True,
        ),
    )
    if segments is None:
        out = jax.vmap(lambda q, k, v: kernel(q, k, v))(q, k, v)
    else:
        segments = jnp.pad(segments, ((0, 0), (0, filling)))
        out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, lib.SegmentIds(ids, ids)))(q, k, v, segments)
    attended: Array = out.transpose(0, 2, 1, 3)[:, :T]
    return attended


def blocks(length: int) -> tuple[int, int, int]:
    """(queries, keys fetched, keys computed at once) of a step of the kernel; the length is a multiple of 128.

    Queries and keys computed at once are what the original nanocode tuned on a v6e for rows of 4096, 2048
    and 1024; the keys fetched, at most 1024, fit the on-chip memory of v6e and v5e with heads up to 256.
    """
    if length > 2048:
        queries, keys, computed = 1024, 1024, 128
    elif length > 1024:
        queries, keys, computed = 512, 512, 256
    else:
        queries, keys, computed = 256, 512, 256
    queries, keys = _divisor(length, queries), _divisor(length, keys)
    return queries, keys, _divisor(keys, computed)


def _divisor(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides the length."""
    return next(size for size in range(limit, 0, -LANES) if length % size == 0)
