"""Attention on an NVIDIA GPU: cuDNN's flash attention, through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
from jax import Array


def cudnn(q: Array, k: Array, v: Array, segments: Array | None = None, window: int | None = None) -> Array:
    """See `Attention`; only what `obstacle` has nothing against."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        # cuDNN itself counts the query's own place into its window; JAX, as we do, leaves it out.
        local_window_size=None if window is None else (window, 0),
        implementation="cudnn",
    )


def obstacle(q: Array, segments: Array | None, capability: float | None) -> str | None:
    """Why cuDNN can't compute this, or None if it can.

    Args:
        q: [B, T, H, D].
        segments: cuDNN has no mask for packed rows but a matrix of scores.
        capability: CUDA compute capability of the device, 0 if it is not NVIDIA's, None if unknown.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 and float16, not in {q.dtype}"
    if capability is not None and capability < 8:
        return "it needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later"
    largest = 256 if capability is None or capability >= 9 else 128
    if q.shape[3] > largest or q.shape[3] % 8:
        return f"heads of {q.shape[3]} are not a multiple of 8 up to {largest}"
    if segments is not None:
        return "packed segments need a mask"
    return None


def compute_capability() -> float | None:
    """Of this process's GPU, as 9.0; 0 if it is not NVIDIA's; None where there is no GPU."""
    if jax.default_backend() != "gpu":
        return None
    try:
        return float(jax.local_devices()[0].compute_capability)
    except ValueError:  # AMD's are names
        return 0.0
