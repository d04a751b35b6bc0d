"""Synthetic data: what the teacher made of each family of tasks, and why drafts were sent back."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nanocode_core.report import text
from nanocode_core.report.facts import Facts, document
from nanocode_core.report.page import Table, table

MOST_REASONS = 12

_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "tasks": ("Tasks", text.count),
    "accepted_first": ("Accepted at first", text.percent),
    "attempts": ("Attempts a task", partial(text.decimal, places=2)),
    "refused": ("Given up", text.count),
    "rollouts": ("Rollouts", text.count),
    "calls": ("Calls a rollout", partial(text.decimal, places=2)),
    "pairs": ("Pairs", text.count),
    "held_out": ("Held out", text.count),
}
"""Figures of statistics.json, how they are called and shown."""


def teacher(facts: Facts) -> str:
    """Who wrote the data, in a sentence."""
    name = facts["synthetic"].metrics.get("teacher") if "synthetic" in facts else None
    if not isinstance(name, str):
        return ""
    if name == "scripted":
        return "Written by the scripted teacher: programmed rules with known solutions, not a language model."
    return f"Written by {name}."


def synthetic_table(facts: Facts) -> Table:
    """A row a family and one for all together, a column a figure."""
    statistics = document(facts, "synthetic", "statistics.json")
    families = statistics.get("families")
    rows = sorted(families.items()) if isinstance(families, Mapping) else []
    shown = [(name.replace("_", " "), *_row(values)) for name, values in rows]
    if "total" in statistics:
        shown.append(("all together", *_row(statistics["total"])))
    heads = ("Family", *(f"{title}#" for title, _ in _COLUMNS.values()))
    return table(heads, shown).without_empty_columns()


def reasons_table(facts: Facts) -> Table:
    """Why drafts were sent back, most frequent first."""
    total = document(facts, "synthetic", "statistics.json").get("total")
    reasons = total.get("rejected_for") if isinstance(total, Mapping) else None
    counted = {k: n for k, v in reasons.items() if (n := text.number(v))} if isinstance(reasons, Mapping) else {}
    most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_REASONS]
    return table(("Reason", "Drafts#"), ((name, text.count(n)) for name, n in most), "Why drafts were sent back")


def _row(values: Any) -> list[str]:
    known = values if isinstance(values, Mapping) else {}
    return [show(known.get(name)) for name, (_, show) in _COLUMNS.items()]
