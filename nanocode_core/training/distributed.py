"""Several processes of one training job: who they are, how they agree, what happens when one is lost.

Each runs the same worker with JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES
(or JAX_PROCESS_COUNT) and JAX_PROCESS_ID. All of them compute every step and write their part of
each checkpoint; process 0 alone holds the lease, logs, and writes metrics and the artifact.

Two rules keep them in step. What one process alone can know (a signal, a clock, which checkpoint is
sound) is shared through a collective operation at the same place of the program in each. And only
the main thread starts collective operations, since their order has to be the same everywhere.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanocode_core.errors import PeersLost, UserError
from nanocode_core.store.files import Files

HEARTBEAT_SECONDS = 20
"""A process that was not heard of for so long is lost."""
MEETING_SECONDS = 300
"""How long the processes wait for each other at the start."""
PARTING_SECONDS = 300
"""How long a process waits for the others at the end."""
SHARED = "shared"
"""File in which process 0 leaves a mark for the others to see."""
PREEMPTED = 75
"""Exit code of a process that may be started again (jobs/spec.py)."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the job."""

    index: int = 0
    count: int = 1

    @property
    def primary(self) -> bool:
        """Whether this is the process that logs and writes what is written once."""
        return self.index == 0


def processes() -> Processes:
    """The processes of this job, from the environment. jax is not imported.

    Raises:
        UserError: a variable is missing or no number in its range.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = os.environ.get("JAX_NUM_PROCESSES") or os.environ.get("JAX_PROCESS_COUNT")
    index = os.environ.get("JAX_PROCESS_ID")
    if not count or count == "1":
        return Processes()
    try:
        found = Processes(int(index or ""), int(count))
    except ValueError:
        found = Processes(-1, 0)
    if not address or not 0 <= found.index < found.count:
        raise UserError(
            "a job of several processes needs JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES "
            f"and JAX_PROCESS_ID from 0 on; found {address!r}, {count!r} and {index!r}"
        )
    return found


_joined = False


def join() -> Processes:
    """Connect to the other processes, if there are any; before anything is computed. Again: nothing happens."""
    global _joined
    found = processes()
    if found.count == 1 or _joined:
        return found
    import jax

    settings = {
        "jax_cpu_collectives_implementation": "gloo",
        # Its C++ handler for SIGTERM would take the place of ours.
        "jax_enable_preemption_service": False,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    _abort_means_preempted()
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        found.count,
        found.index,
        cluster_detection_method="deactivate",
        initialization_timeout=MEETING_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=PARTING_SECONDS,
    )
    _joined = True
    return found


def share(compute: Callable[[], Any]) -> Any:
    """The JSON value that `compute` gives on process 0, on all of them. A UserError there is raised on all."""
    here = processes()
    if here.count == 1:
        return compute()
    from jax.experimental import multihost_utils

    answer: dict[str, Any] = {}
    if here.primary:
        try:
            answer = {"value": compute()}
        except UserError as error:
            answer = {"error": str(error)}
    data = json.dumps(answer).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    if here.primary:
        padded[:] = np.frombuffer(data, np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def require_shared(place: Files) -> None:
    """Refuse a place that is not one and the same for all processes.

    Raises:
        UserError: on all of them, if one does not see there what process 0 has written.
    """
    if processes().count == 1:
        return
    from jax.experimental import multihost_utils

    def leave() -> str:
        nonce = secrets.token_hex(8)
        place.write(SHARED, nonce.encode())
        return nonce

    nonce = share(leave)
    try:
        seen = place.read(SHARED).decode() == nonce
    except FileNotFoundError:
        seen = False
    everywhere = np.asarray(multihost_utils.process_allgather(np.int32(seen))).all()
    if processes().primary:
        place.delete(SHARED)
    if not everywhere:
        raise UserError(
            f"{place.root} is not the same directory for all processes of this job; put the store on a file system "
            "that they share, or on gs://"
        )


class Agreement:
    """The largest wish of all processes, step by step, without making the device wait.

    With one process a wish counts at once. With several, each call starts a small reduction behind
    the step and returns the outcome of the call before: all processes see the same outcomes in the
    same order, one step late.
    """

    def __init__(self) -> None:
        self._count = processes().count
        self._pending: Any = None
        if self._count > 1:
            import jax
            from jax.sharding import Mesh, NamedSharding, PartitionSpec

            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._jax = jax
            self._spread = NamedSharding(mesh, PartitionSpec("all"))
            self._reduce = jax.jit(lambda wishes: wishes.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, wish: int) -> int:
        """Take this process's wish for this step; return what counts now (0: nothing)."""
        if self._count == 1:
            return wish
        local = np.full(1, wish, np.int32)
        spread = self._jax.make_array_from_callback((self._jax.device_count(),), self._spread, lambda _: local)
        before, self._pending = self._pending, self._reduce(spread)
        return 0 if before is None else int(before)

    def forget(self) -> None:
        """Drop what was not yet returned; who still has the wish repeats it. Call it on all processes alike."""
        self._pending = None


@contextlib.contextmanager
def company() -> Iterator[None]:
    """What a job of several processes runs in, around all that it computes.

    It ends together: a process waits for the others before it leaves, at its regular end and at a
    UserError, which all of them meet. And an error that another's death caused ends this process with
    the preemption exit code: a collective operation fails a moment before it is known that a peer is
    gone, so an unexpected error waits as long as that takes to be found out; the runtime then ends the
    process (see `_abort_means_preempted`). Where all peers live, the error goes on; one of the network
    between them, which a peer causes that stands still for half a minute, as PeersLost.
    """
    try:
        yield
    except UserError:
        _leave()
        raise
    except Exception as error:
        if _joined:
            print(f"an error here, or a lost process? {type(error).__name__}: {str(error)[:300]}", flush=True)
            time.sleep(1.5 * HEARTBEAT_SECONDS)
            if _is_of_the_network(error):
                raise PeersLost(f"the other hosts of this job did not answer: {str(error)[:300]}") from error
        raise
    _leave()


def _is_of_the_network(error: Exception) -> bool:
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError) and bool(re.search("Gloo|DEADLINE_EXCEEDED|UNAVAILABLE", str(error)))


def _leave() -> None:
    global _joined
    if _joined:
        import jax

        jax.distributed.shutdown()
        _joined = False


def _preempted(number: int) -> None:
    print("preempted: another process of this job is lost, or did not come", flush=True)
    sys.stderr.flush()
    os._exit(PREEMPTED)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_preempted)


def _abort_means_preempted() -> None:
    """End with the preemption exit code where the runtime aborts.

    When a process is lost, jaxlib's coordination client aborts all others from one of its threads,
    and a Python callback for that case can't be called (its argument, an absl::Status, has no
    Python form; jaxlib 0.10). A Python signal handler would never run either, for abort() does not
    return to the interpreter. So the handler is installed in C.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, type(_HANDLER)]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, _HANDLER)
