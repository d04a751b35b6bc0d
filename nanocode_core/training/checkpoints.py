"""Checkpoints of a training run in its work directory, by Orbax.

A checkpoint is the whole training state (parameters, optimizer state, step) after that many steps.
Orbax writes into a temporary directory and renames it when everything is there, so a half-written
checkpoint is never taken for one. Saves are synchronous: a tenth of a second for a small model, and
nothing is pending when `save` returns.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
from jax import Array

from nanocode_core.config.model import Checkpoints as CheckpointsConfig


class Checkpoints:
    """The saves of one run, and the policy when to make the next."""

    def __init__(self, directory: Path, config: CheckpointsConfig) -> None:
        """Open the directory (created where missing), and remove what a kill left half-written."""
        import orbax.checkpoint as ocp

        # Orbax logs every save through absl; its warnings on single-host runs have no remedy.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._config = config
        self._saved_at = time.monotonic()
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

    def latest(self) -> int | None:
        """Steps done in the newest complete checkpoint; None: there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps, by the step rule or by the clock."""
        every = self._config.steps
        by_clock = time.monotonic() - self._saved_at >= 60 * self._config.minutes
        return by_clock or (every is not None and step % every == 0)

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step` steps; on return it is complete. Older ones beyond `keep` go."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=self._args.StandardSave(_flat(state)))
            self._manager.wait_until_finished()
        self._saved_at = time.monotonic()

    def restore(self, step: int, like: Any) -> Any:
        """The state saved after `step` steps, with the structure and placement of `like`."""
        target = {name: _abstract(leaf) for name, leaf in _flat(like).items()}
        flat = self._manager.restore(step, args=self._args.StandardRestore(target))
        return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flat(like)])

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _abstract(array: Array) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)  # type: ignore[no-untyped-call]


def _flat(state: Any) -> dict[str, Array]:
    """The leaves by path. A checkpoint is a plain mapping of names: no class of ours is needed to read it."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
