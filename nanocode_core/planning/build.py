"""A plan: everything that can be said about a pretraining before it is paid for.

Sizes and steps are counted. Mesh and sequences at once are those that training chooses by itself on
that accelerator. Whether they fit is asked from the compiler, for a TPU slice where libtpu is
installed, and estimated otherwise. Hours and dollars follow from assumptions, which are listed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from nanocode_core.config import Config
from nanocode_core.config.chips import Prices
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.assumptions import Assumption, assumed_mfu, list_assumptions
from nanocode_core.planning.compiler import Compiler, how_to_get_it
from nanocode_core.planning.estimate import Cost, Memory, cost
from nanocode_core.planning.layout import Layout, Planner
from nanocode_core.planning.protocol import Facts, compiler_is_here


@dataclass(frozen=True)
class Plan:
    """See the module's docstring; `to_json` is what `nanocode plan --json` prints."""

    config: Config
    accelerator: Accelerator
    facts: Facts
    layout: Layout
    estimate: Memory
    mfu: float
    cost: Cost
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes on one device, as compiled or else as estimated."""
        return self.layout.outcome.peak if self.layout.outcome else self.estimate.total

    @property
    def limit(self) -> int | None:
        """Bytes that a program may use on one device; None on a CPU, whose memory is the machine's."""
        return self.layout.outcome.limit if self.layout.outcome else self.accelerator.limit

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where the limit isn't known."""
        if self.layout.outcome is not None:
            return self.layout.outcome.fits
        return None if self.limit is None else self.peak <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain values; bytes are bytes, times what their names say, dollars for all chips together."""
        one, facts, layout = self.accelerator, self.facts, self.layout
        return {
            "preset": self.config.preset,
            "recipe": self.config.recipe,
            "accelerator": {
                "name": one.name,
                "chip": one.chip.name,
                "chips": one.chips,
                "devices": one.devices,
                "hosts": one.hosts,
                "topology": one.topology,
            },
            "parameters": dict(facts.parameters),
            "pretraining": {
                "tokens": facts.tokens,
                "steps": facts.steps,
                "batch_sequences": facts.batch_sequences,
                "sequence": facts.sequence,
                "tokens_per_step": facts.tokens_per_step,
                "flops_per_token": facts.flops_per_token,
                "flops": facts.flops,
            },
            "sharding": {**asdict(layout.mesh), "reason": layout.reason},
            "memory": {
                "source": "compiled" if layout.outcome else "estimated",
                "fits": self.fits,
                "sequences_per_device": layout.share,
                "sequences_at_once": layout.micro,
                "largest_at_once": layout.largest,
                "remat": facts.remat,
                "peak_bytes": self.peak,
                "limit_bytes": self.limit,
                "margin_bytes": None if self.limit is None else self.limit - self.peak,
                "problem": layout.outcome.problem if layout.outcome else "",
                "compiled": {str(size): asdict(outcome) for size, outcome in layout.tried},
                "estimate": {**asdict(self.estimate), "total": self.estimate.total},
            },
            "mfu": self.mfu if one.chip.peak_flops else None,
            "hours": self.cost.hours,
            "step_seconds": self.cost.step_seconds,
            "tokens_per_second": self.cost.tokens_per_second,
            "dollars": {"on_demand": self.cost.on_demand, "spot": self.cost.spot},
            "assumptions": [asdict(one) for one in self.assumptions],
            "notes": list(self.notes),
        }


def build_plan(
    config: Config,
    accelerator: Accelerator,
    compiler: Compiler,
    prices: Prices,
    mfu: float | None = None,
    compile_tpu: bool = True,
    search: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan the pretraining of a config on an accelerator.

    Args:
        config: preset, recipe and single fields.
        accelerator: where.
        compiler: counts, compiles, remembers.
        prices: by chip.
        mfu: share of the peak; None: what `assumptions` takes.
        compile_tpu: for a TPU, compile what is not known yet. Otherwise only what was compiled before is used.
        search: look also for the most sequences at once that fit, where those of the training do.
        say: is given a line before each compilation.

    Raises:
        UserError: the config doesn't suit the accelerator, with the remedy.
    """
    facts = compiler.facts(config, accelerator)
    planner = Planner(config, accelerator, facts, compiler, say)
    notes = []
    layout = None
    if accelerator.platform == "tpu":
        if compile_tpu and compiler_is_here():
            layout = planner.compiled(search)
        else:
            layout = planner.known()
            if layout is None:
                notes.append(f"{'not compiled' if compiler_is_here() else how_to_get_it()}; the memory is an estimate")
    layout = layout or planner.estimated()
    share, assumption = assumed_mfu(facts.flops_per_token, accelerator, mfu)
    return Plan(
        config=config,
        accelerator=accelerator,
        facts=facts,
        layout=layout,
        estimate=planner.memory(layout.mesh, layout.micro),
        mfu=share,
        cost=cost(facts, accelerator, share, prices),
        assumptions=list_assumptions(facts, accelerator, assumption, prices, compiled=layout.outcome is not None),
        notes=(*notes, *planner.advice(layout)),
    )
