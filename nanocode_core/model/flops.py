"""Counts: parameters, floating-point operations per token, and the share of a chip's peak used.

FLOPs per token of training (forward and backward) = 6 (N - embedding) + 12 l h q t: six for each
parameter that takes part in a product, twelve for each score of attention, counted as if no score
were masked (the usual convention, Chowdhery et al. 2022, appendix B; so a causal implementation
that skips half of them shows the more utilisation).
"""

import jax

from nanocode_core.config.chips import find_chip, utilization
from nanocode_core.model.gpt import Shape


def count_parameters(shape: Shape) -> dict[str, int]:
    """Parameters by group: embedding, head, matrices, and their sum as total."""
    d, kv = shape.width, shape.kv_heads * shape.head_size
    matrices = shape.depth * (2 * d * d + 2 * d * kv + 2 * shape.mlp_ratio * d * d)
    table = shape.vocabulary * d
    return {"embedding": table, "head": table, "matrices": matrices, "total": 2 * table + matrices}


def flops_per_token(shape: Shape) -> int:
    """Training FLOPs per token at the full training context."""
    counts = count_parameters(shape)
    attention = 12 * shape.depth * shape.heads * shape.head_size * shape.sequence
    return 6 * (counts["total"] - counts["embedding"]) + attention


def model_flops_utilization(flops_per_second: float) -> float | None:
    """Achieved FLOP/s as a share of the peak of all chips in use; None where the peak is not known."""
    chip = find_chip(jax.devices()[0].device_kind)
    return utilization(flops_per_second, chip, jax.device_count()) if chip else None
