"""The stages of the pipeline, one file each: what it makes, from what, and what decides the result.

No Prefect here and no jax: the command line plans a run from these in an instant.
"""

from nanocode_core.jobs.stage import Stage
from tasks import corpus, dpo, evaluate, pretrain, report, sft, synthetic, tokenizer, tokens

STAGES: tuple[Stage, ...] = (
    corpus.STAGE,
    tokenizer.STAGE,
    tokens.STAGE,
    pretrain.STAGE,
    synthetic.STAGE,
    sft.STAGE,
    dpo.STAGE,
    evaluate.STAGE,
    report.STAGE,
)
"""In the order in which they run: every stage comes after its inputs."""

__all__ = ["STAGES"]
