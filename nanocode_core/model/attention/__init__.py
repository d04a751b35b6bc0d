"""Causal attention of packed rows, in the formulation that suits the platform.

`plain` is the definition. `blocked` (CPU), `splash` (TPU) and `cudnn` (NVIDIA) compute the same; tests
hold each against the definition in float64. `choose_attention` picks.
"""

from nanocode_core.model.attention.choose import choose_attention
from nanocode_core.model.attention.cpu import blocked
from nanocode_core.model.attention.definition import SAVED, Attention, masked_attention, plain

__all__ = ["SAVED", "Attention", "blocked", "choose_attention", "masked_attention", "plain"]
