"""tokenizer: a byte-level BPE trained on the corpus (or one that you bring), and how it compares to others."""

from collections.abc import Mapping
from typing import Any

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Stage


def _extra(config: Config) -> Mapping[str, Any]:
    """The content of the tokenizer.json files that the config names; their places don't count."""
    from nanocode_core.tokenizer.identity import tokenizer_identity

    return tokenizer_identity(config)


STAGE = Stage(
    name="tokenizer",
    version=1,
    build="nanocode_core.tokenizer.build:build",
    inputs=("corpus",),
    identity=("tokenizer.vocabulary", "tokenizer.train_characters", "tokenizer.tool_format_share"),
    extra=_extra,
)
