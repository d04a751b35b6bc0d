"""An attention kernel on a mesh: every device computes its own rows and heads.

The compiler can't divide a kernel by itself, so the division is spelled out with `jax.shard_map`. Attention
needs nothing of another row or head, so nothing is sent.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from nanocode_core.model.attention.definition import Attention

ROWS, HEADS = ("data", "fsdp"), "tensor"
"""Mesh axes over which rows and heads are divided."""


def divided(kernel: Attention, mesh: Mesh | None) -> Attention:
    """The kernel over a mesh with the axes data, fsdp and tensor; None or one device: the kernel itself."""
    if mesh is None or mesh.size == 1:
        return kernel

    def attention(q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
        """See `Attention`."""
        H, K = q.shape[2], k.shape[2]
        if K % mesh.shape[HEADS]:  # every device needs the key/value heads of its query heads
            k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))
        row = PartitionSpec(ROWS, None, HEADS)
        run: Callable[..., Array] = jax.shard_map(
            lambda q, k, v, segments: kernel(q, k, v, segments, window),
            mesh=mesh,
            in_specs=(row, row, row, PartitionSpec(ROWS)),
            out_specs=row,
            check_vma=False,
        )
        return run(q, k, v, segments)

    attention.__name__ = kernel.__name__
    return attention


def indivisible(q: Array, mesh: Mesh | None) -> str | None:
    """Why q [B, T, H, D] can't be divided over the mesh, or None if it can."""
    if mesh is None:
        return None
    rows, heads = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]], mesh.shape[HEADS]
    if q.shape[0] % rows:
        return f"{q.shape[0]} rows can't be divided over {rows} devices"
    if q.shape[2] % heads:
        return f"{q.shape[2]} heads can't be divided over {heads} devices"
    return None
