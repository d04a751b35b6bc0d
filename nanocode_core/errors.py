"""The errors that a user meets, each one line: what is wrong, and what to do about it."""


class UserError(Exception):
    """Bad input: the message names the file or field and the remedy. Exit code 2."""


class StorageError(Exception):
    """The store could not be read or written. Never to be taken for "not there".

    Attributes:
        lasting: whether somebody has to act: a permission, credentials, a bucket or room on a disk is missing.
    """

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class CorruptArtifact(UserError):
    """A file of an artifact is missing or differs from its record; the message says how to repair."""


class LeaseLost(Exception):
    """Another owner holds this work now; what this process did since its last heartbeat is void."""


class PeersLost(Exception):
    """The other processes of a job did not answer for longer than a collective operation waits."""
