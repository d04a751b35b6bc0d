"""The real training step on a mesh of devices that aren't here: lowered, compiled, measured.

For a TPU the devices come from libtpu's description of a topology. Platform and mesh are given to the
model explicitly, since `jax.default_backend()` still says "cpu". Only for the child process (`child`):
loading libtpu is for good.
"""

import hashlib
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractMesh

from nanocode_core.config import Config
from nanocode_core.model.backend import Backend
from nanocode_core.model.flops import count_parameters, flops_per_token
from nanocode_core.model.shape import Shape
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.protocol import Ask, Mesh, flags, versions
from nanocode_core.training.horizon import horizon
from nanocode_core.training.objectives import next_token
from nanocode_core.training.optimizer import build_optimizer
from nanocode_core.training.program import Program, TrainState, choose_micro
from nanocode_core.training.sharding import AXES, choose_parallelism, state_shardings

# The two ways in which XLA for TPU says that a program is too large: needed, then available.
_TOO_LARGE = (
    re.compile(r"total memory required for .*?\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", re.S),
    re.compile(r"memory space hbm\. Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", re.S),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def facts(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    """The fields of `protocol.Facts`."""
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    run, counts = horizon(config, shape), count_parameters(shape)
    parallelism = choose_parallelism(
        accelerator.devices, counts["total"], accelerator.limit, config.parallel.fsdp, config.parallel.tensor
    )
    mesh = Mesh(parallelism.data, parallelism.fsdp, parallelism.tensor)
    backend = Backend.of(accelerator.platform, remat=config.model.remat)
    share = max(1, run.batch_sequences // mesh.row_shards)
    return {
        "parameters": counts,
        "flops_per_token": flops_per_token(shape),
        "batch_sequences": run.batch_sequences,
        "sequence": shape.sequence,
        "steps": run.steps,
        "mesh": [mesh.data, mesh.fsdp, mesh.tensor],
        "micro": config.training.micro_sequences or choose_micro(share, shape.sequence, accelerator.platform),
        "remat": backend.remat,
        "loss_places": backend.loss_places,
    }


def state(config: Config, accelerator: Accelerator, mesh: Mesh) -> dict[str, int]:
    """Bytes on one device under a mesh: of parameters, of optimizer state, and of its largest replicated array."""
    whole, _ = _program(config, Backend.of(accelerator.platform)).abstract({})
    without_devices: Any = AbstractMesh((mesh.data, mesh.fsdp, mesh.tensor), AXES)
    return state_bytes(whole, state_shardings(whole, without_devices))


def state_bytes(state: TrainState, shardings: TrainState) -> dict[str, int]:
    """See `state`; of a state of ShapeDtypeStructs and the shardings of its leaves."""

    def sizes(part: Any, cut: Any) -> list[tuple[int, int]]:
        """(bytes on a device, bytes in all) of each array."""
        pairs = zip(jax.tree.leaves(part), jax.tree.leaves(cut), strict=True)
        return [(_bytes(s.shard_shape(leaf.shape), leaf), _bytes(leaf.shape, leaf)) for leaf, s in pairs]

    optimizer = sizes(state.optimizer, shardings.optimizer)
    alone = jax.tree.leaves(shardings.step)[0].mesh.size == 1
    return {
        "parameters": sum(own for own, _ in sizes(state.params, shardings.params)),
        "optimizer": sum(own for own, _ in optimizer),
        "largest_replicated": 0 if alone else max((own for own, whole in optimizer if own == whole), default=0),
    }


def lower(ask: Ask) -> tuple[jax.stages.Lowered, dict[str, int]]:
    """The step lowered for a TPU slice, and its `state_bytes`."""
    one = ask.accelerator
    assert one.topology is not None
    described = topologies.get_topology_desc(
        platform="tpu", topology_name=one.topology, chips_per_host_bounds=one.host_bounds
    )
    mesh = topologies.make_mesh(described, (ask.mesh.data, ask.mesh.fsdp, ask.mesh.tensor), AXES)
    program = _program(ask.config, Backend.of("tpu", mesh, ask.config.model.remat), ask.micro)
    rows = (ask.rows, ask.config.model.sequence)
    batch = {
        "inputs": jax.ShapeDtypeStruct(rows, jnp.int32),
        "targets": jax.ShapeDtypeStruct(rows, jnp.int32),
        "weights": jax.ShapeDtypeStruct(rows, jnp.float32),
    }
    start, batch = program.abstract(batch)
    step: Any = program.step
    return step.lower(start, batch), state_bytes(start, program.state_sharding)


def program_hash(lowered: jax.stages.Lowered, accelerator: Accelerator) -> str:
    """Of the lowered program and all that decides what the compiler makes of it."""
    rest = {"topology": accelerator.topology, "hosts": accelerator.hosts, "versions": versions(), "flags": flags()}
    text = json.dumps(rest, sort_keys=True) + lowered.as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def compile_lowered(lowered: jax.stages.Lowered, accelerator: Accelerator) -> dict[str, Any]:
    """Whether it fits, and the memory: part of the fields of `protocol.Outcome`."""
    limit = accelerator.limit
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = parse_too_large(str(error))
        if too_large is None:
            raise
        needed, available, problem = too_large
        return {"fits": False, "peak": needed, "limit": available, "problem": problem, "memory": {}}
    stats: Any = compiled.memory_analysis()
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    memory = {kind: int(getattr(stats, f"{kind}_size_in_bytes")) for kind in kinds}
    peak = int(stats.peak_memory_in_bytes)
    return {"fits": True, "peak": peak, "limit": limit, "problem": "", "memory": memory}


def parse_too_large(message: str) -> tuple[int, int, str] | None:
    """(bytes needed, bytes available, the compiler's sentence) of an out-of-memory error; None: it is another."""
    for pattern in _TOO_LARGE:
        found = pattern.search(message)
        if found:
            needed, needed_unit, available, available_unit = found.groups()
            line = next(line for line in message.splitlines() if found.group(0).splitlines()[0] in line)
            return (
                int(float(needed) * _UNITS[needed_unit]),
                int(float(available) * _UNITS[available_unit]),
                line.strip(),
            )
    return None


def _program(config: Config, backend: Backend, micro: int | None = None) -> Program:
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    run = horizon(config, shape)
    optimizer = build_optimizer(
        config.training.optimizer, run.steps, shape.width, backend, run.rate_scale, run.decay_scale
    )
    return Program(shape, optimizer, next_token, backend, micro)


def _bytes(shape: tuple[int, ...], leaf: Any) -> int:
    return math.prod(shape) * int(leaf.dtype.itemsize)
