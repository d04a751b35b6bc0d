"""How long to train, with which batch, and how rates and decay follow from these.

`nanocode` trains eight tokens a parameter with the batch of its preset. `modern` derives all of it from
the depth, around a reference model of depth 12 and width 768 where nanochat's settings were tuned:
tokens D = 12 x (matrices + head); batch B about 2^19 (D / D_ref)^0.383 (Bergsma et al. 2025); rates
x sqrt(B / 2^19) where B is above 2^19; weight decay x (B / 2^19) (D_ref / D) / that factor, so that the
weights' average always spans the same share of the run (Wang and Aitchison 2024). nanochat lowers its
rates for smaller batches by the same root; a short run then hardly gets off the ground (LOG.md).
"""

import math
from dataclasses import dataclass, replace

from nanocode_core.config import Config
from nanocode_core.model.flops import count_parameters
from nanocode_core.model.shape import Shape

REFERENCE_BATCH = 2**19
REFERENCE_DEPTH, REFERENCE_WIDTH = 12, 768


@dataclass(frozen=True)
class Horizon:
    """A pretraining run in numbers.

    Attributes:
        steps: optimizer steps.
        batch_sequences: rows in the global batch.
        rate_scale: factor on all learning rates.
        decay_scale: factor on the matrices' weight decay.
    """

    steps: int
    batch_sequences: int
    rate_scale: float
    decay_scale: float


def horizon(config: Config, shape: Shape) -> Horizon:
    """The run that a config asks for."""
    training, sequence = config.training, shape.sequence
    by_ratio = training.tokens_per_parameter * _counted(shape, training.parameters)
    width = REFERENCE_WIDTH // shape.head_size * shape.head_size or shape.head_size
    heads = width // shape.head_size
    reference = replace(shape, depth=REFERENCE_DEPTH, width=width, heads=heads, kv_heads=heads)
    reference_tokens = training.tokens_per_parameter * _counted(reference, training.parameters)
    rows = training.batch_sequences
    if rows is None:
        tokens = REFERENCE_BATCH * (by_ratio / reference_tokens) ** 0.383
        rows = max(1, 2 ** round(math.log2(tokens)) // sequence)
    steps = training.steps
    if steps is None:
        steps = max(1, math.ceil((training.tokens or by_ratio) / (rows * sequence)))
    if not training.optimizer.lr_by_batch:
        return Horizon(steps, rows, rate_scale=1.0, decay_scale=1.0)
    larger = rows * sequence / REFERENCE_BATCH
    scale = max(1.0, math.sqrt(larger))
    return Horizon(steps, rows, rate_scale=scale, decay_scale=larger * reference_tokens / by_ratio / scale)


def _counted(shape: Shape, which: str) -> int:
    counts = count_parameters(shape)
    return counts["total"] if which == "all" else counts["matrices"] + counts["head"]
