"""Leases: at most one live owner of a piece of work, among processes and among machines.

A lease is a small JSON file which its owner renews by compare-and-swap, by default four times in
`seconds`. Whoever finds it waits, and takes it over by compare-and-swap when the owner is dead: at
once if that was a process of this machine (same boot, same pid namespace) which is gone; else after
having itself seen no renewal for `seconds` on its own monotonic clock. So clocks of different
machines need not agree, and a takeover from another machine takes the full time however old the
file is. An owner that can't renew for `seconds` counts itself as lost before anyone can take over.
"""

import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from nanocode_core.errors import LeaseLost, StorageError
from nanocode_core.store.files import Files

RENEWALS = 4
"""Renewals in the time a lease lasts."""
STALE_SECONDS = 600.0
"""A lease whose last renewal, by wall clock, is further back than this (and than ten times what it
lasts) counts as dead for cleaning up, where nobody waits to observe it."""


@dataclass(frozen=True)
class Owner:
    """One process on one machine; `nonce` tells apart the leases that one process takes."""

    host: str
    pid: int
    started: str
    boot: str
    namespace: str
    nonce: str

    @classmethod
    def me(cls) -> "Owner":
        """The owner that this process is, with a new nonce."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(pid) or "", _boot(), _namespace(), secrets.token_hex(8))

    def __str__(self) -> str:
        """In words, for messages."""
        return f"process {self.pid} on {self.host}"

    def is_dead(self) -> bool:
        """Whether this was a process of this very machine and is no more; False where that can't be known."""
        here = self.host == socket.gethostname() and self.boot == _boot() and self.namespace == _namespace()
        if not here or not self.boot or not self.started:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # there, and another user's
        started = _started(self.pid)
        return started is not None and started != self.started


@dataclass(frozen=True)
class Holding:
    """The content of a lease file.

    Attributes:
        beat: counts the renewals, so that no two contents are equal.
        renewed: wall clock of the owner, Unix seconds; for people and for cleaning up only.
        seconds: how long the lease lasts without a renewal.
    """

    owner: Owner
    beat: int
    renewed: float
    seconds: float

    def to_json(self) -> bytes:
        """The bytes of the lease file."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> "Holding | None":
        """The content of a lease file; None where it was written by something else."""
        try:
            value = json.loads(data)
            owner = Owner(**value.pop("owner"))
            holding = cls(owner=owner, **value)
            float(holding.renewed), float(holding.seconds), int(owner.pid)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        return holding


class Lease:
    """A lease that is held, renewed by a thread until it is released. Use it as a context manager."""

    def __init__(
        self,
        files: Files,
        path: str,
        holding: Holding,
        version: str,
        taken: float,
        lost: Callable[[str], None],
        finished: Callable[[], bool],
    ) -> None:
        self._files, self._path = files, path
        self._holding, self._version = holding, version
        self._deadline = taken + holding.seconds
        self._on_lost, self._finished = lost, finished
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._losing = threading.Lock()
        self._reason: str | None = None
        self._trouble = ""
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("lease", self._beat), ("lease-watch", self._watch))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def owner(self) -> Owner:
        """This process, as the lease file names it."""
        return self._holding.owner

    def check(self) -> None:
        """Renew now.

        Raises:
            LeaseLost: somebody else holds it, or it is gone.
            StorageError: that can't be found out.
        """
        with self._lock:
            if self._reason is None and not self._end.is_set():
                self._reason = self._renew()
        if self._reason is not None:
            raise LeaseLost(self._reason)

    def release(self) -> None:
        """Stop renewing and delete the lease file if it is still ours; fine where it is gone."""
        self._end.set()
        with self._lock:  # waits for a renewal that is on its way
            if self._reason is None:
                self._files.compare_and_delete(self._path, self._version)

    def __enter__(self) -> "Lease":
        """The lease itself, which is held already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it, whatever happened inside."""
        try:
            self.release()
        except StorageError:
            if value is None:
                raise  # else the first error is the one to report; the lease expires by itself

    def _beat(self) -> None:
        pause = usual = self._holding.seconds / RENEWALS
        while not self._end.wait(pause):
            with self._lock:
                if self._end.is_set() or self._reason is not None:
                    return
                try:
                    reason = self._renew()
                    pause = usual
                except StorageError as error:
                    reason, pause = None, min(1.0, usual / RENEWALS)
                    self._trouble = f": {error}"  # `_watch` gives up at the deadline
            if reason is not None:
                self._lose(reason)
                return

    def _watch(self) -> None:
        """Give up at the deadline, even while a renewal hangs in the storage client."""
        while not self._end.wait(max(0.01, self._deadline - time.monotonic())):
            if self._reason is not None:
                return
            if time.monotonic() >= self._deadline:
                seconds = self._holding.seconds
                self._lose(f"the lease {self._path} could not be renewed for {seconds:.0f} s{self._trouble}")
                return

    def _lose(self, reason: str) -> None:
        with self._losing:
            if self._reason is not None:
                return
            self._reason = reason
        self._on_lost(reason)

    def _renew(self) -> str | None:
        """One compare-and-swap, under the lock; the reason where the lease is gone."""
        begin = time.monotonic()
        old = self._holding
        renewed = Holding(old.owner, old.beat + 1, time.time(), old.seconds)
        version = self._files.compare_and_swap(self._path, self._version, renewed.to_json())
        if version is not None:
            self._holding, self._version, self._deadline = renewed, version, begin + old.seconds
            return None
        try:
            holder = Holding.parse(self._files.read_versioned(self._path)[0])
        except FileNotFoundError:
            if not self._finished():
                return f"the lease {self._path} was removed"
            self._end.set()  # the work is published and cleared away: nothing is left to hold
            return None
        return f"the lease {self._path} was taken over by {holder.owner if holder else 'another owner'}"


def acquire(
    files: Files,
    path: str,
    seconds: float,
    waiting: Callable[[str], None] = lambda owner: None,
    lost: Callable[[str], None] = lambda reason: None,
    finished: Callable[[], bool] = lambda: False,
) -> Lease:
    """Take the lease at `path`, waiting as long as another owner is alive.

    Args:
        seconds: how long the lease lasts without a renewal.
        waiting: called once, with the owner in words, if there is one to wait for.
        lost: called in a thread, once, with the reason, when the lease is gone.
        finished: asked when the lease file is missing: whether the work is done and cleared away,
            so that this is no loss.
    """
    waited = False
    seen, since = "", 0.0
    while True:
        try:
            data, version = files.read_versioned(path)
        except FileNotFoundError:
            lease = _take(files, path, None, seconds, lost, finished)
            if lease is not None:
                return lease
            continue
        now = time.monotonic()
        if version != seen:
            seen, since = version, now
        holder = Holding.parse(data)
        lasts = holder.seconds if holder else seconds
        if now - since >= lasts or (holder is not None and holder.owner.is_dead()):
            lease = _take(files, path, version, seconds, lost, finished)
            if lease is not None:
                return lease
            continue
        if not waited:
            waited = True
            waiting(str(holder.owner) if holder else "an unknown owner")
        time.sleep(min(random.uniform(1.0, 2.0), max(0.05, lasts / 4)))


def live_owner(files: Files, path: str) -> Owner | None:
    """The owner of the lease at `path`, judged at once: None where there is none or it is surely dead.

    Without the time to observe renewals, an owner on another machine counts as alive until its last
    renewal is long past by wall clock (STALE_SECONDS).
    """
    try:
        holder = Holding.parse(files.read(path))
    except FileNotFoundError:
        return None
    if holder is None or holder.owner.is_dead():
        return None
    stale = time.time() - holder.renewed > max(STALE_SECONDS, 10 * holder.seconds)
    return None if stale else holder.owner


def _take(
    files: Files,
    path: str,
    version: str | None,
    seconds: float,
    lost: Callable[[str], None],
    finished: Callable[[], bool],
) -> Lease | None:
    begin = time.monotonic()
    holding = Holding(Owner.me(), 0, time.time(), seconds)
    new = files.compare_and_swap(path, version, holding.to_json())
    return None if new is None else Lease(files, path, holding, new, begin, lost, finished)


def _started(pid: int) -> str | None:
    """When a process started, as a text to compare; None where it can't be read. A zombie has "ended".

    On Linux in clock ticks since boot: unlike a wall-clock time it never moves when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return "ended" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def _boot() -> str:
    """This boot of this machine, or "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "" if Path("/proc").exists() else f"{psutil.boot_time():.0f}"


def _namespace() -> str:
    """The pid namespace: containers of one machine share its boot but not its pids."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
