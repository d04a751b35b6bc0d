"""How far a job is, and whether one that crashes gets anywhere: what its saves in the store say."""

from nanocode_core.jobs.job import PROGRESS
from nanocode_core.jobs.spec import JobSpec
from nanocode_core.store import Store
from nanocode_core.store.mirror import PIECES, read_index
from nanocode_core.store.store import work_path
from nanocode_core.training.manifest import MANIFEST

CLOCK = "clock.json"


class Progress:
    """Reads a job's saves, and counts its crashes since it last got further."""

    def __init__(self, spec: JobSpec) -> None:
        self._files = Store.of(spec.config).work_files
        self._folder = work_path(spec.stage, spec.fingerprint)
        self._best = (-1, -1)
        self._crashes = 0
        self._given = 0.0

    def crashed(self) -> tuple[int, str]:
        """Note a crash; how many there were since the last progress, and in words how far the job is.

        Raises:
            StorageError: the store can't be read.
        """
        reached = self._reached()
        self._crashes = 1 if reached > self._best else self._crashes + 1
        self._best = max(reached, self._best)
        step, size = self._best
        return self._crashes, f"its checkpoint after step {step}" if step >= 0 else f"{size:,} saved bytes"

    def line(self, since: float) -> tuple[str, float] | None:
        """The job's newest progress line as it was saved, and when it was written.

        None where it was given before, or is not from after `since`. Times are Unix seconds.

        Raises:
            StorageError: the store can't be read.
        """
        index, _ = read_index(self._files, self._folder)
        found = index.files.get(PROGRESS) if index else None
        if found is None or found.modified / 1e9 <= max(since, self._given):
            return None
        try:
            parts = [self._files.read(f"{self._folder}/{PIECES}/{name}") for name, _ in found.pieces]
        except FileNotFoundError:
            return None  # the job has just saved a newer one, or ended
        self._given = found.modified / 1e9
        return b"".join(parts).decode(), self._given

    def _reached(self) -> tuple[int, int]:
        """The step of the newest complete checkpoint (-1: none), and the bytes of the other saved files."""
        steps = [-1]
        for path in self._files.list(f"{self._folder}/checkpoints"):
            name, _, inside = path.removeprefix(f"{self._folder}/checkpoints/").partition("/")
            if inside == MANIFEST and name.isdecimal():
                steps.append(int(name))
        index, _ = read_index(self._files, self._folder)
        files = index.files if index else {}
        return max(steps), sum(entry.size for name, entry in files.items() if name not in (CLOCK, PROGRESS))
