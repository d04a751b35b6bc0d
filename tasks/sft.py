"""sft: the base model fine-tuned on the rollouts; from here on it calls tools."""

from nanocode_core.jobs.stage import Stage

STAGE = Stage(
    name="sft",
    version=2,
    build="nanocode_core.training.sft:build",
    inputs=("pretrain", "synthetic", "tokenizer"),
    identity=("sft", "seed"),
    accelerated=True,
)
