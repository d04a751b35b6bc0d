"""The job spec: all that a worker process needs to build one artifact, as one JSON file."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from nanocode_core.config import Config
from nanocode_core.jobs.stage import Planned

DONE = 0
BUG = 42
"""Not 1, with which an interpreter also ends that could not even start."""
BAD_INPUT = 2
PREEMPTED = 75
"""Exit code of a job that was told to go away and may be started again."""
OUTAGE = 74
"""Exit code of a job that could not reach its store or its other hosts for as long as it tries; a later start may."""
VARIABLE = "NANOCODE_SPEC"
"""The environment variable that holds a worker's spec where it is given no file."""


class JobSpec(BaseModel):
    """One artifact to build.

    Attributes:
        inputs: a fingerprint for each stage it is made of.
        accelerated: whether the job is worth a TPU or GPU.
        soul: the constitution, for a machine that has not the file which the config names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    version: int
    build: str
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    config: Config
    accelerated: bool = False
    soul: str | None = None

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
            accelerated=stage.accelerated,
        )
