"""dpo: the fine-tuned model, taught to prefer the chosen conversation of each pair to the rejected one."""

from nanocode_core.jobs.stage import Stage

STAGE = Stage(
    name="dpo",
    version=2,
    build="nanocode_core.training.dpo:build",
    inputs=("sft", "synthetic", "tokenizer"),
    identity=("dpo", "seed"),
    accelerated=True,
)
