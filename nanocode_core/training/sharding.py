"""Where the arrays of a training run lie: a mesh with axes data, fsdp and tensor.

Rows of a batch are spread over data x fsdp. Parameters and optimizer state are whole on every group of
fsdp x tensor devices: along `fsdp` each matrix is cut where it is stored and gathered when it is used
(ZeRO-3), along `tensor` the products themselves are cut (queries, keys, values and the MLP's hidden
units by column, what follows them by row).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nanocode_core.errors import UserError
from nanocode_core.model.backend import ROWS

AXES = ("data", "fsdp", "tensor")
BYTES_PER_PARAMETER = 16
"""Float32 parameters, gradients and two averages (Muon has one)."""
ROOM_FOR_STATE = 0.5
"""Share of a device's memory that a copy of the whole state may take before it is cut."""

_BY_COLUMN, _BY_ROW = ("query", "key", "value", "up"), ("output", "down")


@dataclass(frozen=True)
class Parallelism:
    """How many devices along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


def choose_parallelism(
    devices: int, parameters: int, memory: float | None, fsdp: int | None = None, tensor: int = 1
) -> Parallelism:
    """Spread a run over its devices.

    Args:
        devices: how many there are.
        parameters: of the model.
        memory: bytes of one device; None: not known, taken as enough.
        fsdp: as configured; None: 1 where a copy of the state has room on a device, else all.
        tensor: as configured.

    Raises:
        UserError: the axes do not divide the devices.
    """
    if devices % tensor:
        raise UserError(f"parallel.tensor ({tensor}) must divide the number of devices ({devices})")
    rest = devices // tensor
    if fsdp is None:
        crowded = memory is not None and parameters * BYTES_PER_PARAMETER / tensor > ROOM_FOR_STATE * memory
        fsdp = rest if crowded else 1
    if rest % fsdp:
        raise UserError(f"parallel.fsdp x tensor ({fsdp} x {tensor}) must divide the number of devices ({devices})")
    return Parallelism(rest // fsdp, fsdp, tensor)


def make_mesh(parallelism: Parallelism, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of this run, neighbours side by side where that is known."""
    sizes = (parallelism.data, parallelism.fsdp, parallelism.tensor)
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a training state (arrays or ShapeDtypeStructs)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(path, leaf, mesh)), state)


def _spec(path: tuple[Any, ...], leaf: Any, mesh: Mesh) -> PartitionSpec:
    """Where one leaf is cut; parameters and what the optimizer keeps of them alike."""
    names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
    if leaf.ndim < 2:
        return PartitionSpec()
    axes: list[str | None] = [None] * leaf.ndim
    if "tensor" in mesh.shape and mesh.shape["tensor"] > 1:
        cut = leaf.ndim - 1 if names & set(_BY_COLUMN) else leaf.ndim - 2 if names & set(_BY_ROW) else None
        if cut is not None and leaf.shape[cut] % mesh.shape["tensor"] == 0:
            axes[cut] = "tensor"
    # The longest axis left, of equals the last: a gather of it is one long copy.
    free = [i for i in range(leaf.ndim) if axes[i] is None and i >= leaf.ndim - 2 and leaf.shape[i] > 1]
    free = [i for i in free if leaf.shape[i] % mesh.shape["fsdp"] == 0]
    if free and mesh.shape["fsdp"] > 1:
        axes[max(free, key=lambda i: (leaf.shape[i], i))] = "fsdp"
    return PartitionSpec(*axes)
