"""Plans of several presets on several slices: what `nanocode plan --sweep` shows as a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nanocode_core.config import Config
from nanocode_core.config.chips import Prices
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.build import Plan, build_plan
from nanocode_core.planning.compiler import Compiler

PRESETS = ("d12", "d20", "d24")
ACCELERATORS = ("v6e-1", "v6e-4", "v6e-8", "v6e-32", "v5e-8", "v5e-16", "v5p-8", "h100-8", "h200-1")


@dataclass(frozen=True)
class Entry:
    """One line of the table: a plan, or why there is none."""

    preset: str
    accelerator: str
    plan: Plan | None
    problem: str = ""


def sweep(
    configs: Sequence[Config],
    accelerators: Sequence[Accelerator],
    compiler: Compiler,
    prices: Prices,
    mfu: float | None,
    compile_tpu: bool,
    say: Callable[[str], None],
) -> Iterator[Entry]:
    """Every config on every accelerator, as `build_plan` has it."""
    for config in configs:
        for accelerator in accelerators:
            try:
                plan = build_plan(config, accelerator, compiler, prices, mfu, compile_tpu, search=False, say=say)
            except UserError as error:
                yield Entry(config.preset, accelerator.name, None, str(error))
            else:
                yield Entry(config.preset, accelerator.name, plan)
