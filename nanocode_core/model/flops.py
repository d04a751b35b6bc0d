"""Counts: parameters, floating-point operations per token, and the share of a chip's peak used.

FLOPs per token of training (forward and backward) = 6 N + 12 h q t for each layer: six for each
parameter that takes part in a product (embeddings are looked up), twelve for each score of
attention, over the layer's window and counted as if no score were masked (the usual convention,
Chowdhery et al. 2022, appendix B; so a causal implementation that skips half of them shows the
more utilisation).
"""

import jax

from nanocode_core.config.chips import find_chip, utilization
from nanocode_core.model.gpt import GATE_CHANNELS, SMEAR_CHANNELS
from nanocode_core.model.shape import Shape


def count_parameters(shape: Shape) -> dict[str, int]:
    """Parameters by group: embedding, value_embeddings, head, matrices, scalars, and their sum as total.

    The gates of value embeddings count as matrices, that of smear as scalars.
    """
    d, kv = shape.width, shape.kv_heads * shape.head_size
    matrices = shape.depth * (2 * d * d + 2 * d * kv + 2 * shape.mlp_ratio * d * d)
    values = len(shape.value_layers)
    groups = {
        "embedding": shape.vocabulary * d,
        "value_embeddings": values * shape.vocabulary * kv,
        "head": shape.vocabulary * d,
        "matrices": matrices + values * GATE_CHANNELS * shape.kv_heads,
        "scalars": 2 * shape.depth * shape.residual_scalars + (SMEAR_CHANNELS + 1) * shape.smear + int(shape.backout),
    }
    return {**groups, "total": sum(groups.values())}


def flops_per_token(shape: Shape) -> int:
    """Training FLOPs per token at the full training context."""
    counts = count_parameters(shape)
    places = sum(shape.sequence if window is None else window for window in shape.windows)
    gate = SMEAR_CHANNELS * shape.smear
    return 6 * (counts["matrices"] + counts["head"] + gate) + 12 * shape.heads * shape.head_size * places


def model_flops_utilization(flops_per_second: float) -> float | None:
    """Achieved FLOP/s as a share of the peak of all chips in use; None where the peak is not known."""
    chip = find_chip(jax.devices()[0].device_kind)
    return utilization(flops_per_second, chip, jax.device_count()) if chip else None
