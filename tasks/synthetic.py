"""synthetic: rollouts and preference pairs that a teacher writes under SOUL.md, and held-out tasks."""

from collections.abc import Mapping
from typing import Any

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Stage


def _extra(config: Config) -> Mapping[str, Any]:
    """The content of SOUL.md."""
    from nanocode_core.constitution.soul import soul_identity

    return soul_identity(config)


STAGE = Stage(
    name="synthetic",
    version=1,
    build="nanocode_core.constitution.build:build",
    inputs=(),
    identity=("synthetic", "seed"),
    extra=_extra,
)
