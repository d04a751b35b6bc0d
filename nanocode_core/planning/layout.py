"""How a step is spread over the devices of an accelerator, and what of the batch a device computes at once.

Both are what training chooses there by itself, so a plan tells what will happen. Where that does not
fit, the plan goes on to what would: fewer sequences at once, then parameters and optimizer state cut
over all devices (fsdp) instead of a copy on each; `advice` says which settings make it so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nanocode_core.config import Config
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.compiler import Compiler
from nanocode_core.planning.estimate import Memory, estimate_memory
from nanocode_core.planning.fit import divisors, largest_fit
from nanocode_core.planning.protocol import Ask, Facts, Mesh, Outcome


@dataclass(frozen=True)
class Layout:
    """See the module's docstring.

    Attributes:
        mesh: devices along each axis.
        share: sequences that a device has of the batch.
        micro: sequences that a device computes at once.
        largest: the most that fit; None: not even one does, or it was not searched for.
        reason: why this mesh.
        outcome: of the compilation with micro; None: nothing was compiled.
        tried: every number of sequences at once that was compiled, ascending.
    """

    mesh: Mesh
    share: int
    micro: int
    largest: int | None
    reason: str
    outcome: Outcome | None = None
    tried: tuple[tuple[int, Outcome], ...] = ()


class _NotKnown(Exception):
    """A compilation is needed where none may be started."""


class Planner:
    """Finds the layout of one config on one accelerator, from compilations or from estimates."""

    def __init__(
        self, config: Config, accelerator: Accelerator, facts: Facts, compiler: Compiler, say: Callable[[str], None]
    ) -> None:
        self._config, self._accelerator, self._facts = config, accelerator, facts
        self._compiler, self._say = compiler, say
        self._own = Mesh(*facts.mesh)

    def compiled(self, search: bool, known_only: bool = False) -> Layout:
        """From the compiler, whose answers of earlier times are used."""
        first = self._searched(self._own, self._why_own(), search, known_only)
        if first.largest is not None or not self._may_cut():
            return first
        cut = Mesh(1, self._own.row_shards, self._own.tensor)
        return self._searched(cut, f"{first.reason}; but that does not fit, this does", search, known_only)

    def known(self) -> Layout | None:
        """The same from answers of earlier times alone; None where one of them is missing."""
        for search in (True, False):
            try:
                return self.compiled(search, known_only=True)
            except _NotKnown:
                continue
        return None

    def estimated(self) -> Layout:
        """From estimates."""
        share = self._share(self._own)
        limit = self._accelerator.limit
        sizes = [s for s in divisors(share) if limit is None or self.memory(self._own, s).total <= limit]
        largest = sizes[-1] if sizes and limit is not None else None
        return Layout(self._own, share, self._micro(share), largest, self._why_own())

    def memory(self, mesh: Mesh, micro: int) -> Memory:
        """Estimated memory of a device."""
        state = self._compiler.state(self._config, self._accelerator, mesh)
        return estimate_memory(self._config, self._facts, state, mesh, micro, self._share(mesh))

    def advice(self, layout: Layout) -> tuple[str, ...]:
        """What to set so that it fits, or to use the room there is."""
        found = []
        if layout.mesh != self._own:
            found.append(f"for this sharding: --set parallel.fsdp={layout.mesh.fsdp}")
        if layout.outcome is not None and layout.largest is None:
            found.append("not even one sequence at once fits: take more or larger chips, or --set model.remat=full")
        elif layout.outcome is not None and layout.largest != layout.micro:
            verb = "the most that fits" if not layout.outcome.fits else "more fits"
            found.append(f"{verb}: --set training.micro_sequences={layout.largest}")
        return tuple(found)

    def _searched(self, mesh: Mesh, reason: str, search: bool, known_only: bool) -> Layout:
        share = self._share(mesh)
        micro = self._micro(share)
        sizes = [size for size in divisors(share) if search or size <= micro]
        fit = largest_fit(sizes, lambda size: self._compile(mesh, size, known_only), first=micro)
        return Layout(mesh, share, micro, fit.micro, reason, dict(fit.tried)[micro], fit.tried)

    def _compile(self, mesh: Mesh, micro: int, known_only: bool) -> Outcome:
        ask = Ask(self._config, self._accelerator, mesh, self._facts.batch_sequences, micro)
        known = self._compiler.known(ask)
        if known is not None:
            return known
        if known_only:
            raise _NotKnown
        preset = f"{self._config.preset} ({self._config.recipe})"
        self._say(f"compiling {preset} for {self._accelerator.name}: {mesh}, {micro} sequences at once on a device")
        return self._compiler.compile(ask)

    def _share(self, mesh: Mesh) -> int:
        rows = self._facts.batch_sequences
        if rows % mesh.row_shards:
            raise UserError(
                f"a batch of {rows} sequences can't be dealt out evenly to {mesh.row_shards} devices of "
                f"{self._accelerator.name}: set training.batch_sequences to a multiple of that, or take a smaller slice"
            )
        return rows // mesh.row_shards

    def _micro(self, share: int) -> int:
        micro = min(self._facts.micro, share)
        if share % micro:
            raise UserError(
                f"training.micro_sequences ({micro}) must divide the {share} sequences that a device of "
                f"{self._accelerator.name} has of the batch: choose from {', '.join(map(str, divisors(share)))}"
            )
        return micro

    def _may_cut(self) -> bool:
        """Whether the state is copied to several devices without having been asked for."""
        return self._config.parallel.fsdp is None and self._own.data > 1 and self._own.fsdp == 1

    def _why_own(self) -> str:
        parallel = self._config.parallel
        if self._own.row_shards == 1:
            return "one device holds everything" if self._own.tensor == 1 else "as parallel.tensor says"
        if parallel.fsdp is not None:
            return "as parallel.fsdp says"
        if self._own.fsdp == 1:
            return "every device has room for its own copy of parameters and optimizer state"
        return "a copy of parameters, gradients and optimizer state would fill more than half of a device"
