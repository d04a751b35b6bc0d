"""One training step as a compiled program: the same for a laptop, a pod, and a compiler without a device.

State after `step` steps is (params, optimizer state, step); a step is a pure function of it and of a
batch, jitted with the state donated. Arrays lie as sharding.py says. A batch is a mapping of arrays
whose first axis is rows; it carries weights that add up to one over the whole batch, so
micro-batches (gradient accumulation) and devices simply add up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from nanocode_core.errors import UserError
from nanocode_core.model.backend import ROWS, Backend
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape
from nanocode_core.training.objectives import Batch, HostBatch, Objective
from nanocode_core.training.sharding import row_sharding, state_shardings

CPU_TOKENS = 2048
"""Tokens that a CPU computes at once: their activations stay in its caches (LOG.md)."""
ACCELERATOR_TOKENS = 16_384
"""Tokens that an accelerator computes at once: d24 then fits a v6e without a matrix product computed twice."""


Step = Callable[["TrainState", Batch], tuple["TrainState", dict[str, Array]]]
"""(state, batch) -> (state, metrics); the state given is used up."""


class TrainState(NamedTuple):
    """Everything a run is, between two steps."""

    params: Any
    optimizer: Any
    step: Array


@dataclass(frozen=True)
class Program:
    """A model's training step on a mesh.

    Attributes:
        shape: of the model.
        optimizer: of the run.
        objective: (model, rows) -> (weighted loss, further sums).
        backend: platform and mesh.
        micro: rows that a device computes at once; None: as suits the platform.
    """

    shape: Shape
    optimizer: optax.GradientTransformation
    objective: Objective
    backend: Backend
    micro: int | None = None

    def initial(self, model: GPT) -> TrainState:
        """The state before the first step, placed on the mesh. `model` is used up: its memory becomes the state's."""
        params = nnx.state(model, nnx.Param)
        if self.backend.mesh is None:
            return self._start(params)
        placed: TrainState = jax.jit(self._start, out_shardings=self.state_sharding)(params)
        jax.block_until_ready(placed)
        release(model)
        return placed

    def model(self, state: TrainState) -> GPT:
        """The model of a state; it shares the state's arrays."""
        model: GPT = nnx.merge(self.graph, state.params)
        return model

    def place(self, batch: HostBatch) -> Batch:
        """A host batch on the devices; every process holds all of it and gives the rows of its own devices.

        Where the devices do not divide its rows it is filled up with rows of zeros: their weights are zero too.
        """
        if self.backend.mesh is None:
            return {name: jnp.asarray(array) for name, array in batch.items()}
        batch = self._fill(batch)
        sharding = row_sharding(self.backend.mesh)
        return {
            name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for name, array in batch.items()
        }

    def abstract(self, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """State and batch as ShapeDtypeStructs with their shardings; `batch` gives shapes and types."""
        state = jax.eval_shape(self._start, self._params)
        rows = None if self.backend.mesh is None else row_sharding(self.backend.mesh)

        def struct(leaf: Any, sharding: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        if self.backend.mesh is not None:
            state = jax.tree.map(struct, state, self.state_sharding)
        return state, {name: struct(array, rows) for name, array in batch.items()}

    @cached_property
    def graph(self) -> Any:
        """The model's structure."""
        return self._split[0]

    @cached_property
    def state_sharding(self) -> Any:
        """The sharding of every leaf of the state."""
        assert self.backend.mesh is not None
        return state_shardings(jax.eval_shape(self._start, self._params), self.backend.mesh)

    def compile(self, batch: HostBatch) -> Step:
        """The step, compiled for batches like `batch` before there is a state to run it on."""
        step: Any = self.step
        compiled: Step = step.lower(*self.abstract(self._fill(batch))).compile()
        return compiled

    @cached_property
    def step(self) -> Step:
        """The jitted step, compiled when it is first called."""
        if self.backend.mesh is None:
            return jax.jit(self.run, donate_argnums=0)
        whole = NamedSharding(self.backend.mesh, PartitionSpec())
        return jax.jit(self.run, donate_argnums=0, out_shardings=(self.state_sharding, whole))

    def run(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step, not jitted. Metrics: loss, gradient_norm, and the objective's sums."""
        (value, sums), gradients = self._gradient(state.params, batch)
        updates, inner = self.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **sums}
        return TrainState(params, inner, state.step + 1), metrics

    def _gradient(self, params: Any, batch: Batch) -> Any:
        """Loss, sums and gradients of a batch, in micro-batches."""

        def loss(params: Any, part: Batch) -> tuple[Array, dict[str, Array]]:
            return self.objective(nnx.merge(self.graph, params), part)

        def gradient(part: Batch) -> Any:
            return self._cut(jax.value_and_grad(loss, has_aux=True)(params, part))

        parts = self._parts(batch)
        if parts is None:
            return gradient(batch)
        first = {name: array[0] for name, array in parts.items()}
        empty = self._cut(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, first)))
        return lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(part)), None), empty, parts)[0]

    def _cut(self, values: Any) -> Any:
        """Gradients lie as the parameters do."""
        if self.backend.mesh is None or not self.backend.spread:
            return values
        scalars, gradients = values
        return scalars, lax.with_sharding_constraint(gradients, state_shardings(gradients, self.backend.mesh))

    def _parts(self, batch: Batch) -> Batch | None:
        """The batch as micro-batches [n, rows, ...], each with rows of every device; None: it is one."""
        inputs = next(iter(batch.values()))
        devices = self._row_devices
        rows = len(inputs) // devices
        if rows * devices != len(inputs):
            raise UserError(f"the batch ({len(inputs)} rows) must be a multiple of the devices it lies on ({devices})")
        micro = self.micro or choose_micro(rows, batch["inputs"].size // len(inputs), self.backend.platform)
        if micro >= rows:
            return None
        if rows % micro:
            raise UserError(f"micro_sequences ({micro}) must divide the rows of a device ({rows})")

        def split(x: Array) -> Array:
            x = x.reshape(devices, rows // micro, micro, *x.shape[1:])
            x = jnp.swapaxes(x, 0, 1).reshape(rows // micro, devices * micro, *x.shape[3:])
            if self.backend.mesh is None or not self.backend.spread:
                return x
            spread: Array = lax.with_sharding_constraint(x, NamedSharding(self.backend.mesh, PartitionSpec(None, ROWS)))
            return spread

        return {name: split(array) for name, array in batch.items()}

    def _start(self, params: Any) -> TrainState:
        return TrainState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def _fill(self, batch: HostBatch) -> HostBatch:
        """A host batch with as many rows as the devices can share evenly."""
        return {name: _filled(array, self._row_devices) for name, array in batch.items()}

    @property
    def _row_devices(self) -> int:
        """Over how many devices rows are spread."""
        return 1 if self.backend.mesh is None else int(np.prod([self.backend.mesh.shape[axis] for axis in ROWS]))

    @cached_property
    def _split(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(lambda: GPT(self.shape, 0, self.backend)), nnx.Param)

    @property
    def _params(self) -> Any:
        return self._split[1]


def release(model: GPT) -> None:
    """Give back the memory of a model that is not needed any more, whoever still refers to it."""
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
        leaf.delete()


def _filled(array: np.ndarray, devices: int) -> np.ndarray:
    """With rows of zeros at its end, up to a multiple of the devices."""
    missing = -len(array) % devices
    return array if not missing else np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


def choose_micro(rows: int, tokens: int, platform: str) -> int:
    """Rows to compute at once, out of `rows` of `tokens` each: the largest divisor within the platform's budget."""
    budget = CPU_TOKENS if platform == "cpu" else ACCELERATOR_TOKENS
    return max(size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * tokens <= budget))
