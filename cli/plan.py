"""What `nanocode plan` prints: one plan as a page, several as a table, either as JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.show import emit
from nanocode_core.config import load_config
from nanocode_core.config.chips import load_prices, prices_in_force
from nanocode_core.errors import UserError
from nanocode_core.planning.accelerators import find_accelerator
from nanocode_core.planning.build import Plan, build_plan
from nanocode_core.planning.compiler import Compiler, CompilerCrash
from nanocode_core.planning.estimate import gib
from nanocode_core.planning.sweep import ACCELERATORS, PRESETS, Entry, sweep
from nanocode_core.report.text import DASH, count, decimal, minutes, money, percent

AGAIN = {
    "none": "nothing",
    "products": "what is elementwise",
    "attention": "all but attention",
    "full": "whole layers",
}
"""By remat policy."""


def plan(
    preset: str | None,
    accelerator: str | None,
    sets: Sequence[str],
    as_json: bool,
    as_sweep: bool,
    mfu: float | None,
    compile_tpu: bool | None,
    prices: Path | None,
) -> None:
    """Print the plan of a preset on an accelerator, or a table over several.

    Args:
        preset: under sweep a comma-separated list; None: d24, or the sweep's own list.
        accelerator: under sweep a comma-separated list; None: v6e-8, or the sweep's own list.
        sets: single fields, "section.field=value".
        as_json: one JSON object; under sweep an array of them.
        as_sweep: the table.
        mfu: share of the peak, 0 to 1.
        compile_tpu: None: yes for one plan, no for a sweep.
        prices: file to lay over the prices.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} is a share of the chips' peak: above 0 and at most 1, for example 0.45")
    in_force = load_prices(prices) if prices else prices_in_force()
    presets = _names(preset, PRESETS if as_sweep else ("d24",))
    accelerators = [find_accelerator(name) for name in _names(accelerator, ACCELERATORS if as_sweep else ("v6e-8",))]
    if not as_sweep and len(presets) * len(accelerators) != 1:
        raise UserError("several presets or accelerators make a table: add --sweep")
    configs = [load_config(name, sets) for name in presets]
    with Compiler(Path(configs[0].run.cache) / "plan") as compiler:
        try:
            if as_sweep:
                found = list(sweep(configs, accelerators, compiler, in_force, mfu, compile_tpu is True, _say))
                if as_json:
                    print(json.dumps([_entry(one) for one in found]))
                else:
                    emit(table(found))
            else:
                one = build_plan(
                    configs[0], accelerators[0], compiler, in_force, mfu, compile_tpu is not False, say=_say
                )
                if as_json:
                    print(json.dumps(one.to_json()))
                else:
                    emit(page(one))
        except CompilerCrash as crash:
            raise UserError(f"{crash}; `nanocode plan --no-compile` prints the rest") from None


def page(one: Plan) -> RenderableType:
    """One plan in full, every assumption listed."""
    facts, where, layout, cost = one.facts, one.accelerator, one.layout, one.cost
    chips = f"{where.chips} {where.chip.name} chip{'s' * (where.chips > 1)}"
    hosts = f" on {where.hosts} host{'s' * (where.hosts > 1)}"
    topology = f", topology {where.topology.partition(':')[2]}" if where.topology else ""
    return Group(
        Text(f"{one.config.preset} ({one.config.recipe}) on {where.name}", "bold"),
        _section(
            "model and data",
            ("parameters", f"{count(facts.parameters['total'])}  ({facts.parameters['total']:,})"),
            ("tokens", f"{count(facts.tokens)}  ({facts.tokens:,})"),
            ("steps", f"{facts.steps:,} of {facts.batch_sequences:,} x {facts.sequence:,} tokens"),
            ("FLOPs", f"{facts.flops:.3g}"),
        ),
        _section(
            "machine",
            ("chips", chips + hosts + topology),
            ("sharding", f"{layout.mesh}; {layout.reason}"),
        ),
        _section("memory of a device", *_memory(one)),
        _section(
            "pretraining",
            ("time", minutes(None if cost.hours is None else cost.hours * 60)),
            ("a step", DASH if cost.step_seconds is None else f"{cost.step_seconds:.2f} s"),
            ("tokens/s", count(cost.tokens_per_second)),
            ("on demand", money(cost.on_demand)),
            ("spot", money(cost.spot)),
        ),
        _section("assumed", *((a.name, f"{a.value}  ({a.source})") for a in one.assumptions)),
        *([Text("")] if one.notes else []),
        *(Text(f"note: {note}", "yellow") for note in one.notes),
    )


def _memory(one: Plan) -> list[tuple[str, str]]:
    """The memory of one device, line by line."""
    layout, compiled = one.layout, one.layout.outcome
    of = f" of {gib(one.limit)}" if one.limit else ""
    if one.limit is None or one.fits is None:
        verdict = "this machine's memory decides"
    elif one.fits:
        verdict = f"fits, {gib(one.limit - one.peak)} to spare"
    else:
        verdict = f"does not fit, {gib(one.peak - one.limit)} too much"
    largest = "" if layout.largest is None else f"; the most that fit are {layout.largest}"
    rows = [
        ("peak" if compiled else "estimate", f"{gib(one.peak)}{of}: {verdict}"),
        ("at once", f"{layout.micro} of the {layout.share} sequences it has of a batch{largest}"),
        ("again", f"the backward pass computes again: {AGAIN[one.facts.remat]} (remat {one.facts.remat})"),
    ]
    if compiled is None:
        parts = one.estimate
        made = f"parameters {gib(parts.parameters)}, optimizer {gib(parts.optimizer)}, gradients {gib(parts.gradients)}"
        return [*rows, ("made of", f"{made}, kept for backward {gib(parts.kept)}, at work {gib(parts.working)}")]
    if compiled.problem:
        rows.append(("compiler", compiled.problem))
    tried = ", ".join(f"{size}: {gib(o.peak)}{'' if o.fits else ' (too much)'}" for size, o in layout.tried)
    took = sum(o.compile_seconds for _, o in layout.tried if not o.cached)
    return [*rows, ("compiled", f"{tried}; {f'{took:.0f} s' if took else 'kept from before'}")]


def table(found: Sequence[Entry]) -> RenderableType:
    """A line for each preset and accelerator; a memory figure with ~ is an estimate."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    right = ("parameters", "tokens", "at once", "memory", "MFU", "hours", "on demand", "spot")
    for title in (
        "preset",
        "accelerator",
        "parameters",
        "tokens",
        "sharding",
        "at once",
        "memory",
        "MFU",
        "hours",
        "on demand",
        "spot",
    ):
        out.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    problems = []
    for entry in found:
        one = entry.plan
        if one is None:
            problems.append(Text(f"{entry.preset} on {entry.accelerator}: {entry.problem}"))
            continue
        of = f" of {one.limit / 2**30:.1f}" if one.limit else ""
        memory = (
            f"{'' if one.layout.outcome else '~'}{one.peak / 2**30:.1f}{of} GiB{'' if one.fits is not False else ' !'}"
        )
        out.add_row(
            entry.preset,
            entry.accelerator,
            count(one.facts.parameters["total"]),
            count(one.facts.tokens),
            str(one.layout.mesh),
            f"{one.layout.micro}"
            + (f" (fits: {one.layout.largest})" if one.fits is False and one.layout.largest else ""),
            memory,
            percent(one.mfu) if one.accelerator.chip.peak_flops else DASH,
            decimal(one.cost.hours, 2),
            money(one.cost.on_demand),
            money(one.cost.spot),
        )
    footer = (
        "~ estimated, not compiled (--compile compiles); ! does not fit. Pretraining only; `nanocode plan` of one "
        "preset and accelerator lists all that is assumed."
    )
    return Group(out, *problems, Text(footer, "dim"))


def _entry(one: Entry) -> dict[str, Any]:
    if one.plan is not None:
        return one.plan.to_json()
    return {"preset": one.preset, "accelerator": {"name": one.accelerator}, "problem": one.problem}


def _section(title: str, *rows: tuple[str, str]) -> RenderableType:
    body = Table(box=None, pad_edge=False, show_header=False)
    body.add_column(style="dim", no_wrap=True)
    body.add_column(overflow="fold")
    for name, value in rows:
        body.add_row(name, Text(value))
    return Group(Text("\n" + title), Padding(body, (0, 0, 0, 2), expand=False))


def _names(given: str | None, default: Sequence[str]) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()] if given is not None else list(default)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
