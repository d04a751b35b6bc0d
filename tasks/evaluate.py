"""eval: what the models can do, before and after SFT and DPO, on text and tasks they never saw."""

from collections.abc import Mapping
from typing import Any

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Stage


def _extra(config: Config) -> Mapping[str, Any]:
    """The content of SOUL.md, whose rules the agent's prose is held against."""
    from nanocode_core.constitution.soul import soul_identity

    return soul_identity(config)


STAGE = Stage(
    name="eval",
    version=1,
    build="nanocode_core.evals.build:build",
    inputs=("pretrain", "sft", "dpo", "synthetic", "tokenizer", "tokens"),
    identity=("eval", "training.validation_tokens", "seed"),
    extra=_extra,
    accelerated=True,
)
