"""The top of the page: its title, one sentence, and the few figures that matter most."""

from nanocode_core.report import text
from nanocode_core.report.evaluation import COLUMNS, Figure, evaluation_figures
from nanocode_core.report.facts import Facts
from nanocode_core.report.page import Tile
from nanocode_core.report.sections import finished, machines, total_cost, total_minutes


def title(facts: Facts) -> str:
    """What was trained."""
    size = parameters(facts)
    return "A coding agent" if size is None else f"A coding agent with {text.count(int(size))} parameters"


def subtitle(facts: Facts) -> str:
    """On which machine, and when it was done."""
    where = " and ".join(machines(facts))
    end = finished(facts)
    made = f"Trained from raw text on {where}" if where else "Trained from raw text"
    return f"{made}; finished {end.day} {end:%B %Y, %H:%M} UTC." if end else f"{made}."


def parameters(facts: Facts) -> float | None:
    """Parameters of the model, where a training stage recorded them."""
    for name in ("dpo", "sft", "pretrain"):
        if name in facts and (size := facts[name].figure("parameters")) is not None:
            return size
    return None


def tiles(facts: Facts) -> tuple[Tile, ...]:
    """Tasks solved, valid calls, bits per byte, time, cost; dashes where there are no figures."""
    figures = [f for f in evaluation_figures(facts) if f.family is None]
    shown = [
        _tile("Tasks solved", _last(figures, "task success", "success", "solved")),
        _tile("Valid calls", _last(figures, "valid call", "valid")),
        _tile("Bits per byte", _last([f for f in figures if f.model == COLUMNS[0]], "bpb", "bits per byte")),
        Tile("Time in all", text.minutes(total_minutes(facts)), "data, training, evaluation"),
    ]
    price = total_cost(facts)
    if price is not None:
        shown.append(Tile("Cost", text.money(price), "at on-demand prices"))
    return tuple(shown)


def _last(figures: list[Figure], *words: str) -> Figure | None:
    """The figure of the last trained model whose name holds the first of these words that any does."""
    for word in words:
        for model in reversed(COLUMNS):
            for one in figures:
                if one.model == model and word in one.name:
                    return one
    return None


def _tile(label: str, one: Figure | None) -> Tile:
    if one is None:
        return Tile(label, text.DASH)
    value, bracket, counts = one.shown.partition(" (")
    note = (
        f"{counts.rstrip(')').replace('/', ' of ')}" if bracket else one.name.removesuffix(" bpb").removeprefix("bpb ")
    )
    return Tile(label, value, f"{one.model} model, {note}")
