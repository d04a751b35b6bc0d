"""The job spec: all that a worker process needs to build one artifact, as one JSON file."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Planned

DONE = 0
BUG = 1
BAD_INPUT = 2
PREEMPTED = 75
"""Exit code of a job that was told to go away and may be started again."""


class JobSpec(BaseModel):
    """One artifact to build. `inputs` maps a stage's name to a fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    version: int
    build: str
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    config: Config

    @classmethod
    def of(cls, planned: Planned, config: Config) -> "JobSpec":
        """The spec of a planned stage."""
        stage = planned.stage
        return cls(
            stage=stage.name,
            version=stage.version,
            build=stage.build,
            fingerprint=planned.fingerprint,
            identity=planned.identity,
            inputs=planned.inputs,
            config=config,
        )

    @classmethod
    def read(cls, path: Path) -> "JobSpec":
        """The spec in a JSON file."""
        return cls.model_validate_json(path.read_text())
