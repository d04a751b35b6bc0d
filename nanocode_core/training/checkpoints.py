"""Checkpoints of a training run, in a directory or on gs://, written by Orbax while training goes on.

A checkpoint is the whole training state after so many steps. `save` takes the values to host memory
and returns; a thread writes them and then, last, the manifest (manifest.py). Only a folder with a
manifest counts. On a start the newest one is verified, file by file; a damaged one is refused by
name and the one before it taken. The last `keep` are kept: an older one goes only when a newer one
is complete. With several processes each writes its part, and process 0 the manifest.

The step after a save donates the state. That never changes what is being written: elsewhere than on
the CPU it has been copied to the host by then, and the CPU runtime lets no buffer be reused to which
a host array still refers (tests/training/test_checkpoints.py holds it to that).
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from nanocode_core.config.model import Checkpoints as CheckpointsConfig
from nanocode_core.errors import StorageError, UserError
from nanocode_core.store.files import Files
from nanocode_core.training.distributed import processes, require_shared, share
from nanocode_core.training.manifest import MANIFEST, REFUSED, Damaged, Saved, refuse, remove, seal, verify

TRIES = 10
"""How often a checkpoint on gs:// is read whose bytes do not arrive whole."""
MISSES = 5
"""So many saves in a row may fail for want of the network: training goes on meanwhile."""
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_PASSING = tuple(
    ["UNAVAILABLE", "DATA_LOSS", "OUT_OF_RANGE", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"]
)
"""How the messages of tensorstore's ValueErrors begin that are about the storage, not about what is stored."""


class Checkpoints:
    """The saves of one run, and the policy when to make the next."""

    def __init__(
        self,
        place: Path | str,
        config: CheckpointsConfig,
        log: Callable[[str], None] = print,
        before_seal: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the place, a directory or URL, where there need be nothing.

        Args:
            log: told what was refused or removed.
            before_seal: called in a thread before a checkpoint counts; what it raises is the save's failure.
        """
        import orbax.checkpoint as ocp

        # Orbax logs every save through absl, and each failure several times; `wait` and `check` raise it.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._files = Files(str(place))
        self._config, self._log, self._before_seal = config, log, before_seal
        self._primary = processes().primary
        self._ocp = ocp
        # Weights hardly compress, and compressing them takes the cores that train.
        self._writer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_compression=False),
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._misses = 0
        self._newest: Saved | None = None
        self._saved_at = time.monotonic()

    def newest(self) -> Saved | None:
        """The newest sound checkpoint; None: nothing was saved yet. Half-written ones are removed.

        Raises:
            UserError: there are checkpoints, and all of them are damaged; or the processes of this job do not
                share the directory.
        """
        require_shared(self._files)
        found = share(self._search)
        self._newest = None if found is None else Saved(**found)
        return self._newest

    def last_good(self) -> int | None:
        """Steps done in the newest complete checkpoint, that in the making included if it succeeds."""
        if self._thread is not None:
            self._thread.join()
        return self._newest.step if self._newest else None

    def due_by_step(self, step: int) -> bool:
        """Whether the configured steps say to save after `step` steps."""
        return self._config.steps is not None and step % self._config.steps == 0

    def due_by_clock(self) -> bool:
        """Whether the configured minutes have passed since the last save; process 0's clock is the one that counts."""
        return self._primary and time.monotonic() - self._saved_at >= 60 * self._config.minutes

    def save(self, step: int, state: Any, facts: Mapping[str, Any] | None = None) -> None:
        """Begin to write the state after `step` steps; `state` may be donated as soon as this returns.

        Waits for the save before, if that is still being written.

        Args:
            facts: JSON values that come back with the checkpoint.

        Raises:
            Exception: what went wrong in the save before, a full disk for example.
        """
        self.wait()
        self._saved_at = time.monotonic()
        if self.last_good() == step:
            return
        try:
            with self._files.guard("write", str(step)):
                self._writer.save(self._place(step), args=self._ocp.args.PyTreeSave(_flat(state)), force=True)
        except StorageError as error:
            if self._passes(error):
                return
            raise
        saved = Saved(step, facts or {})
        self._thread = threading.Thread(target=self._complete, args=(saved,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is complete. Raises what went wrong while it was written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong in the save that is being written, if anything has by now."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def restore(self, step: int, like: Any) -> Any:
        """The state saved after `step` steps, with the structure of `like` and the placement of its leaves.

        The leaves may be arrays or `jax.ShapeDtypeStruct`s; their sharding may be over other and over
        another number of devices than the state was saved from. Those without one go to the first device.
        """
        names = _flat(like)
        target = {name: _abstract(leaf) for name, leaf in names.items()}
        arguments = self._ocp.checkpoint_utils.construct_restore_args(target)
        place = self._place(step)
        with self._files.guard("read", str(step)):
            try:
                flat = self._read(place, self._ocp.args.PyTreeRestore(target, restore_args=arguments))
            except (ValueError, KeyError) as error:
                if self._files.directory is None and (_passing(error) or str(error).startswith(_REFUSED)):
                    raise
                reason = str(error).strip().partition("\n")[0][:200]
                raise UserError(
                    f"checkpoint {place} does not fit this model and optimizer ({reason}); it is of another version "
                    f"of nanocode: remove {self._files.root} to start again"
                ) from error
        return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])

    def _read(self, place: str, arguments: Any) -> Any:
        """Restore, again where the storage has given fewer bytes than it has: the files are verified by now."""
        for left in reversed(range(TRIES)):
            try:
                return self._writer.restore(place, args=arguments)
            except Exception as told:
                # Around what comes up while it reads an array, Orbax puts an Exception that does not say it.
                error = told.__cause__ if type(told) is Exception and told.__cause__ else told
                if not left or self._files.directory is not None or not _passing(error):
                    raise error from error.__cause__
                self._log(f"checkpoint {place} could not be read, trying again: {str(error)[:200]}")
        raise AssertionError

    def close(self) -> None:
        """Wait for what is being written, without raising, and release Orbax's threads."""
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(Exception):  # `wait` raises it, where an earlier error is not on its way already
            self._writer.close()

    def _complete(self, saved: Saved) -> None:
        """The thread: wait for Orbax, write the manifest, remove what is too old."""
        try:
            with self._files.guard("write", str(saved.step)):
                self._writer.wait_until_finished()
            if self._primary:
                self._before_seal()
                seal(self._files, str(saved.step), saved)
                self._prune()
            self._newest, self._misses = saved, 0
        except BaseException as error:
            if not self._passes(error):
                self._failure = error

    def _passes(self, error: BaseException) -> bool:
        """Whether a save that failed may be left out: the one before it counts, and the next one may succeed.

        Not with several processes, which would have to agree on it.
        """
        self._misses += 1
        remote = isinstance(error, StorageError) and not error.lasting and self._files.directory is None
        if not remote or self._misses >= MISSES or processes().count > 1:
            return False
        self._log(f"WARNING: a checkpoint could not be saved; training goes on: {error}")
        return True

    def _prune(self) -> None:
        """Remove all but the newest, and what was refused."""
        sealed, _, refused = self._look()
        for name in (*sealed[self._config.keep :], *refused):
            remove(self._files, name)

    def _search(self) -> dict[str, Any] | None:
        """On process 0: `newest` as JSON."""
        sealed, partial, _ = self._look()
        for name in partial:
            self._log(f"checkpoint {name} was not complete: removed")
            self._files.clear(name)
        damaged: list[tuple[str, str]] = []
        for name in sealed:
            try:
                saved = verify(self._files, name)
            except Damaged as damage:
                damaged.append((name, str(damage)))
                self._log(f"WARNING: CHECKPOINT {self._files.root}/{name} IS DAMAGED AND NOT USED: {damage}")
                continue
            for old, _ in damaged:
                refuse(self._files, old)
            return asdict(saved)
        if damaged:
            names = "; ".join(f"{name}: {damage}" for name, damage in damaged)
            raise UserError(
                f"all checkpoints in {self._files.root} are damaged ({names}); remove that directory to start again "
                "from the beginning"
            )
        return None

    def _look(self) -> tuple[list[str], list[str], list[str]]:
        """The names of the folders with a manifest, newest first; of those half-written; and of those refused."""
        sealed: list[str] = []
        partial: list[str] = []
        refused: list[str] = []
        for name in self._files.names():
            inside = self._files.names(name)
            kind = sealed if name.isdecimal() and MANIFEST in inside else refused if REFUSED in inside else partial
            kind.append(name)
        return sorted(sealed, key=int, reverse=True), partial, refused

    def _place(self, step: int) -> str:
        return f"{self._files.root}/{step}"


def _passing(error: BaseException) -> bool:
    """Whether reading a checkpoint failed on its way, so that it may succeed again: its files are sound."""
    cut = isinstance(error, json.JSONDecodeError)
    return cut or (isinstance(error, ValueError) and str(error).startswith(_PASSING))


def _abstract(leaf: Any) -> Any:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _flat(state: Any) -> dict[str, Any]:
    """The leaves by path. A checkpoint is a plain mapping of names: no class of ours is needed to read it."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
