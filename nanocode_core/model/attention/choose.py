"""Which attention computes where."""

import warnings
from collections.abc import Callable
from functools import partial

import jax
from jax import Array
from jax.sharding import Mesh

from nanocode_core.model.attention import gpu
from nanocode_core.model.attention.cpu import blocked
from nanocode_core.model.attention.definition import Attention, plain
from nanocode_core.model.attention.divided import divided, indivisible
from nanocode_core.model.attention.tpu import splash

Obstacle = Callable[[Array, Array | None], str | None]
"""(q, segments) -> why a kernel can't compute this, by shapes and types alone; None if it can."""


def choose_attention(platform: str | None = None, mesh: Mesh | None = None) -> Attention:
    """The attention of a platform; its `__name__` is "blocked", "splash" or "cudnn".

    What its kernel can't compute (a head size, a type, rows that the mesh can't divide) is left to
    `plain`, with a warning that says why, when the caller is traced.

    Args:
        platform: "cpu", "gpu" or "tpu"; None: where jax computes.
        mesh: with the axes data, fsdp (rows) and tensor (heads). None: one device.

    Raises:
        ValueError: no such platform.
    """
    platform = platform or jax.default_backend()
    if platform == "cpu":
        return _guarded(blocked, mesh, lambda q, segments: None)
    if platform == "tpu":
        return _guarded(splash, mesh, lambda q, segments: None)
    if platform == "gpu":
        return _guarded(gpu.cudnn, mesh, partial(gpu.obstacle, capability=gpu.compute_capability()))
    raise ValueError(f"no attention for the platform {platform!r}: it is cpu, gpu or tpu")


def _guarded(kernel: Attention, mesh: Mesh | None, obstacle: Obstacle) -> Attention:
    """The kernel over the mesh for what it can compute, and `plain` for the rest."""
    run = divided(kernel, mesh)

    def attention(q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
        reason = indivisible(q, mesh) or obstacle(q, segments)
        if reason is None:
            return run(q, k, v, segments, window)
        warnings.warn(f"attention falls back from {kernel.__name__} to plain, which is slow: {reason}", stacklevel=2)
        return plain(q, k, v, segments, window)

    attention.__name__ = kernel.__name__
    return attention
