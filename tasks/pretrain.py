"""pretrain: a base model, trained from scratch to continue the corpus."""

from nanocode_core.jobs.stage import Stage

STAGE = Stage(
    name="pretrain",
    version=3,
    build="nanocode_core.training.pretrain:build",
    inputs=("tokens", "tokenizer"),
    identity=("model", "training", "seed"),
    accelerated=True,
)
