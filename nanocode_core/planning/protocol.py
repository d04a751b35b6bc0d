"""What planning asks the process that has jax, and what comes back: one JSON object a line.

`Ask` names a training step completely: a config, a slice, the mesh and the rows a device computes at
once. Its key also covers the source files and versions that decide the lowered program, so an answer
kept under it stays true. Answers: `Facts` (sizes, no compilation) and `Outcome` (a compilation: that
a program does not fit is an outcome, not an error).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nanocode_core.config import PROJECT, Config
from nanocode_core.planning.accelerators import Accelerator

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "libtpu")
"""What decides a compiled program beside our own source."""

_SOURCES = ("config", "model", "training", "planning")


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; data x fsdp x tensor is their number."""

    data: int
    fsdp: int = 1
    tensor: int = 1

    @property
    def row_shards(self) -> int:
        """Parts into which the rows of a batch fall."""
        return self.data * self.fsdp

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        parts = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        return " x ".join(f"{name} {count}" for name, count in parts.items() if count > 1) or "one device"


@dataclass(frozen=True)
class Ask:
    """One training step: `rows` sequences in all, of which a device computes `micro` at once."""

    config: Config
    accelerator: Accelerator
    mesh: Mesh
    rows: int
    micro: int

    def to_json(self) -> dict[str, Any]:
        """For the child."""
        return {
            "config": self.config.model_dump(mode="json"),
            "accelerator": self.accelerator.name,
            "mesh": asdict(self.mesh),
            "rows": self.rows,
            "micro": self.micro,
        }

    def key(self) -> str:
        """Hash of everything that decides the answer."""
        return request_key(self.to_json(), self.config)


@dataclass(frozen=True)
class Facts:
    """What a config amounts to on an accelerator, counted without compiling anything.

    Attributes:
        parameters: by group, and "total".
        flops_per_token: of training, forward and backward.
        batch_sequences: rows of the global batch.
        sequence: tokens of a row.
        steps: optimizer steps of pretraining.
        mesh: (data, fsdp, tensor) that training chooses by itself there.
        micro: sequences at once on a device that training chooses by itself there.
        remat: what the backward pass computes again there.
        loss_places: places whose logits exist at the same time there.
    """

    parameters: Mapping[str, int]
    flops_per_token: int
    batch_sequences: int
    sequence: int
    steps: int
    mesh: Sequence[int]
    micro: int
    remat: str
    loss_places: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch."""
        return self.batch_sequences * self.sequence

    @property
    def tokens(self) -> int:
        """Tokens of the whole pretraining."""
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole pretraining."""
        return self.tokens * self.flops_per_token


@dataclass(frozen=True)
class State:
    """Bytes of the training state on one device.

    Attributes:
        parameters: float32 master weights.
        optimizer: what the optimizer keeps.
        largest_replicated: the largest optimizer array of which every device holds a whole copy; 0 on one device.
    """

    parameters: int
    optimizer: int
    largest_replicated: int


@dataclass(frozen=True)
class Outcome:
    """What the compiler said about one training step.

    Attributes:
        fits: whether it compiled.
        peak: bytes at the fullest moment on one device; where it does not fit, what it would need.
        limit: bytes a program may use on one device.
        problem: the compiler's reason where it does not fit, else empty.
        memory: bytes by kind (arguments, outputs, temporaries, ...), of a program that fits.
        state: of the training state on one device.
        compile_seconds: of the compilation, when it was done, by the clock.
        compile_cpu_seconds: of all processors together, which other work on the machine does not lengthen.
        program: sha256 of the lowered program, versions and flags.
        cached: whether the answer was kept from an earlier time.
    """

    fits: bool
    peak: int
    limit: int
    problem: str
    memory: Mapping[str, int]
    state: Mapping[str, int]
    compile_seconds: float
    program: str
    compile_cpu_seconds: float = 0.0
    cached: bool = False

    @property
    def margin(self) -> int:
        """Bytes left over; negative: bytes too many."""
        return self.limit - self.peak


def request_key(request: Mapping[str, Any], config: Config) -> str:
    """Hash of everything that decides the answer to a request about a config."""
    deciding = {
        **request,
        "config": config.model_dump(mode="json", include={"model", "tokenizer", "training", "parallel"}),
        "versions": versions(),
        "flags": flags(),
        "source": source_hash(),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Installed versions of LIBRARIES; those that are not there are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def source_hash() -> str:
    """Hash of the source files a training step is made of."""
    digest = hashlib.sha256()
    root = Path(PROJECT) / "nanocode_core"
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def flags() -> dict[str, str]:
    """Compiler flags of the environment, which the child keeps."""
    return {
        name: os.environ[name]
        for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT")
        if os.environ.get(name)
    }


def compiler_is_here() -> bool:
    """Whether libtpu, which compiles for TPUs, is installed."""
    return "libtpu" in versions()
