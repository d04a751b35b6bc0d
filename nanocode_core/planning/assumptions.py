"""What a plan assumes rather than computes, each with its source: above all the utilization.

Nobody knows the MFU of a run before it ran. The default is what the original measured on v6e-8 at the
size nearest in FLOPs per token; `--mfu` states another. On other chips the same share is assumed,
and the plan says that nobody measured it there.
"""

import math
from dataclasses import dataclass

from nanocode_core.config.chips import Prices
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.protocol import Facts

MEASURED = {0.77e9: ("d12", 0.174), 3.24e9: ("d20", 0.452), 10.07e9: ("d24", 0.525)}
"""MFU of the original nanocode on v6e-8 (announcement, 2026), by training FLOPs per token."""


@dataclass(frozen=True)
class Assumption:
    """One line of the list of assumptions."""

    name: str
    value: str
    source: str


def assumed_mfu(flops_per_token: int, accelerator: Accelerator, stated: float | None) -> tuple[float, Assumption]:
    """The share of the chips' peak that the run is taken to reach, and where that comes from."""
    if stated is not None:
        return stated, Assumption("MFU", f"{stated:.1%}", "stated with --mfu")
    nearest = min(MEASURED, key=lambda flops: abs(math.log(flops / flops_per_token)))
    preset, mfu = MEASURED[nearest]
    source = f"measured by the original nanocode for its {preset} on v6e-8"
    off = max(nearest / flops_per_token, flops_per_token / nearest)
    if off > 1.5:
        source += f", the nearest in size ({nearest / 1e9:.2f} GFLOPs a token, here {flops_per_token / 1e9:.2f})"
    if accelerator.name != "v6e-8":
        source += f"; assumed for {accelerator.name} too, where it was not measured"
    return mfu, Assumption("MFU", f"{mfu:.1%}", source)


def list_assumptions(
    facts: Facts, accelerator: Accelerator, mfu: Assumption, prices: Prices, compiled: bool
) -> tuple[Assumption, ...]:
    """Everything a plan takes for granted, in the order in which it enters."""
    chip = accelerator.chip
    found = [
        Assumption("scope", "pretraining only", "tokenizing, SFT, DPO and evaluation come on top"),
        Assumption(
            "FLOPs a token",
            f"{facts.flops_per_token / 1e9:.2f} G",
            "6 a parameter that takes part in a product + 12 x heads x head size x places a layer, unmasked; "
            "recomputation not counted (Chowdhery et al. 2022, appendix B)",
        ),
    ]
    if chip.peak_flops:
        peak = f"{chip.peak_flops / 1e12:,.0f} TFLOP/s a chip"
        found += [Assumption("peak", peak, "data sheet, dense bfloat16"), mfu]
        found.append(
            Assumption("pace", "without interruption", "compilation, evaluation, checkpoints and restarts come on top")
        )
    else:
        found.append(Assumption("time", "not reckoned", "a CPU's peak isn't known; the training shows its tokens/s"))
    price = prices.get(chip.name)
    if price is None:
        found.append(Assumption("price", "not known", f"no price of {chip.name} is in force; state one with --prices"))
    else:
        spot = "" if price.spot is None else f", ${price.spot:,.3f} spot"
        amount = f"${price.on_demand:,.2f} a chip and hour on demand{spot}"
        found.append(Assumption("price", amount, f"{price.source}; {price.date}"))
    if compiled:
        found.append(
            Assumption("memory", "compiled", "peak of the compiled train step on one device; libtpu's own limit")
        )
    else:
        found.append(
            Assumption("memory", "estimated", "counted arrays and fitted factors, not compiled: good to about a fifth")
        )
    return tuple(found)
