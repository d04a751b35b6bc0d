"""A launcher starts a job, follows it to its end and can cancel it; where the job runs is its own affair."""

from collections.abc import Callable
from typing import Protocol

from nanocode_core.jobs.spec import JobSpec


class JobFailed(Exception):
    """The job ended with a bug; its log tells which."""


class JobPreempted(Exception):
    """The job was told to go away or lost its lease; starting it again goes on from its last save."""


class Launcher(Protocol):
    """What `flows.pipeline` needs of a launcher."""

    def run(self, spec: JobSpec, line: Callable[[str], None]) -> None:
        """Build the artifact of `spec`; every line the job prints goes to `line`.

        Raises:
            UserError: the job refused its input (its own one-line message).
            JobPreempted, JobFailed: it ended early, or with a bug.
        """
