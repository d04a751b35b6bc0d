"""Accelerators by name: "v6e-8" is a slice of eight v6e chips, two by four, on one host.

Names are Google's: a v5e or v6e name counts chips, a v5p or tpu7x name TensorCores, of which such a
chip has two. "h100-8" is a node of eight GPUs, "cpu" this machine. A TPU slice is what libtpu calls
a topology: chips in a grid, hosts that each hold a block of it (`host_bounds`). What JAX calls a
device is a chip, except on tpu7x, where it is half of one with half of its memory.
"""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from nanocode_core.config.chips import Chip, find_chip
from nanocode_core.errors import UserError

HBM_GIB = {"v5e": 15.75, "v6e": 31.25, "v5p": 95.74, "tpu7x": 94.75}
"""GiB that a program may use on one device, as libtpu 0.0.42 states it where one does not fit."""

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBE = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8)}
_GRIDS: dict[str, Mapping[int, tuple[int, ...]]] = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBE, "tpu7x": _CUBE}
_CORES = {"v5p": 2, "tpu7x": 2}
"""TensorCores of a chip where names count these."""
_DEVICES = {"tpu7x": 2}
"""JAX devices of a chip where it isn't one."""
_GPU_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Accelerator:
    """A machine or slice to train on.

    Attributes:
        name: as given by the user, in lowercase.
        platform: "tpu", "gpu" or "cpu", as JAX says it.
        chip: what it is made of.
        chips: how many (these are paid for).
        devices: JAX devices: chips, or twice as many on tpu7x.
        hosts: machines, each a process of the training.
        topology: libtpu's name of the slice ("v6e:2x4"); None off TPU.
        host_bounds: chips of one host in each direction of the grid; None off TPU.
    """

    name: str
    platform: str
    chip: Chip
    chips: int
    devices: int
    hosts: int
    topology: str | None = None
    host_bounds: tuple[int, int, int] | None = None

    @property
    def limit(self) -> int | None:
        """Bytes that a program may use on one device; None on a CPU, which has what the machine has."""
        if self.platform == "cpu":
            return None
        stated = HBM_GIB.get(self.chip.name, self.chip.memory_gib)
        return None if stated is None else int(stated * 2**30)


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of a name.

    Raises:
        UserError: no such accelerator; names the nearest ones.
    """
    wanted = name.strip().lower()
    try:
        return _table()[wanted]
    except KeyError:
        raise UserError(f"unknown accelerator {name!r}; {_suggest(wanted)}") from None


def accelerators() -> tuple[str, ...]:
    """Every name there is, by chip and then by size."""
    return tuple(_table())


def _suggest(wanted: str) -> str:
    """The nearest names; for a known chip with an unknown count, its counts."""
    kind, _, count = wanted.partition("-")
    same = [known for known in _table() if known.partition("-")[0] == kind]
    if same and re.fullmatch(r"[0-9]*", count):
        return f"{kind} comes as {', '.join(same)}"
    close = difflib.get_close_matches(wanted, list(_table()), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(_table())}"


@cache
def _table() -> dict[str, Accelerator]:
    found = [_tpu(kind, grid) for kind, grids in _GRIDS.items() for grid in grids.values()]
    found += [_gpu(kind, count) for kind in ("h100", "h200") for count in _GPU_COUNTS]
    return {one.name: one for one in (*found, Accelerator("cpu", "cpu", _chip("cpu"), 1, 1, 1))}


def _tpu(kind: str, grid: tuple[int, ...]) -> Accelerator:
    chips = math.prod(grid)
    # Up to eight v5e or v6e chips are sold as one machine; larger slices are made of machines of four.
    whole = len(grid) == 2 and chips <= 8
    bounds = (grid[0], grid[1], 1) if whole else (2, 2, 1)
    return Accelerator(
        name=f"{kind}-{chips * _CORES.get(kind, 1)}",
        platform="tpu",
        chip=_chip(kind),
        chips=chips,
        devices=chips * _DEVICES.get(kind, 1),
        hosts=chips // math.prod(bounds),
        topology=f"{kind}:{'x'.join(map(str, grid))}",
        host_bounds=bounds,
    )


def _gpu(kind: str, count: int) -> Accelerator:
    return Accelerator(f"{kind}-{count}", "gpu", _chip(kind), count, count, 1)


def _chip(kind: str) -> Chip:
    chip = find_chip(kind)
    assert chip is not None, kind
    return chip
