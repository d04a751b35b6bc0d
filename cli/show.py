"""What `nanocode artifacts` prints: listings, a record with its inputs as a tree, differences.

Records may come from anywhere, so every text of theirs is printed literally (no markup, no control
characters).
"""

import json
import sys
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cli.compare import Change, Difference
from nanocode_core.report.text import DASH, count, decimal, metric, minutes, moment, plain, visible
from nanocode_core.store import Record
from nanocode_core.store.garbage import Garbage
from nanocode_core.store.records import LOGS
from nanocode_core.store.tree import ABSENT, Node, Row

HEADLINES = 3
"""Metrics in a row of the listing."""


def emit(what: RenderableType) -> None:
    """Print to stdout; text stays literal. In a pipe no line is wrapped or cut."""
    width = None if sys.stdout.isatty() else 10_000
    Console(highlight=False, markup=False, width=width).print(what)


def size(number_of_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number_of_bytes >= limit:
            return f"{decimal(number_of_bytes / limit, 1)} {unit}"
    return f"{number_of_bytes} B"


def _literal(value: str, style: str = "") -> Text:
    return Text(visible(value), style=style)


def _plain_table(*columns: str) -> Table:
    """A table of spaces; a title that ends in # is a column of numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, title in enumerate(columns):
        last = place == len(columns) - 1  # the column that gives way where the terminal is narrow
        side: Literal["left", "right"] = "right" if title.endswith("#") else "left"
        table.add_column(title.rstrip("#"), justify=side, no_wrap=not last, overflow="fold")
    return table


def listing(rows: Iterable[Row]) -> RenderableType:
    """The artifacts as a table; one that can't be read says so in place of its figures."""
    table = _plain_table("artifact", "finished", "time#", "size#", "result")
    for row in rows:
        name = _literal(f"{row.stage}/{row.fingerprint}")
        if row.problem is not None:
            table.add_row(name, "", "", "", _literal(row.problem, "red"))
            continue
        shown = [
            f"{key.replace('_', ' ')} {metric(key, value)}" for key, value in list(row.metrics.items())[:HEADLINES]
        ]
        table.add_row(
            name, moment(row.created), minutes(row.minutes), size(row.size), _literal(", ".join(shown), "dim")
        )
    return table


def record(record: Record, tree: Node) -> RenderableType:
    """A record: facts, metrics, identity, files, and its inputs as a tree."""
    machine = record.provenance.get("machine")
    facts = _plain_table("", "")
    facts.show_header = False
    for name, value in (
        ("stage version", str(record.version)),
        ("content sha256", record.digest),
        ("finished", moment(record.finished or None)),
        ("time", minutes(record.provenance.get("minutes"))),
        ("starts", count(record.provenance.get("starts"))),
        ("commit", plain(record.provenance.get("commit"))),
        ("machine", ", ".join(f"{k} {plain(v)}" for k, v in machine.items()) if isinstance(machine, dict) else DASH),
    ):
        facts.add_row(Text(name, "dim"), _literal(value))
    files = _plain_table("", "#", "")
    files.show_header = False
    for path, entry in sorted(record.files.items()):
        note = "log, not in the content sha256" if path.startswith(LOGS) else entry.sha256[:16]
        files.add_row(_literal(path), size(entry.size), Text(note, "dim"))
    return Group(
        _literal(f"{record.stage}/{record.fingerprint}", "bold"),
        _section("", facts),
        _section("metrics", _pairs((name, metric(name, value)) for name, value in record.metrics.items())),
        _section("identity", _pairs((name, plain(value)) for name, value in sorted(record.config.items()))),
        _section(f"files ({size(record.size)})", files),
        _section("made from", inputs(tree)) if tree.inputs else Text("\nmade from no other artifact"),
    )


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text("\n" + title) if title else Text(""), Padding(body, (0, 0, 0, 2), expand=False))


def _pairs(pairs: Iterable[tuple[str, str]]) -> RenderableType:
    table = _plain_table("", "")
    table.show_header = False
    for name, value in pairs:
        table.add_row(_literal(name, "dim"), _literal(value))
    return table if table.row_count else Text("none", "dim")


def inputs(node: Node) -> RenderableType:
    """The inputs of an artifact as a tree; what was shown already is not taken apart again."""
    shown: set[tuple[str, str]] = set()

    def grow(branch: Tree, parent: Node) -> None:
        for child in parent.inputs:
            text = _literal(f"{child.stage}/{child.fingerprint}")
            key = (child.stage, child.fingerprint)
            if child.problem is not None:
                text.append(f"  {visible(child.problem)}", "red")
            elif key in shown and child.inputs:
                text.append("  (see above)", "dim")
            limb = branch.add(text)
            if key not in shown:
                shown.add(key)
                grow(limb, child)

    root = Tree(Text(""), hide_root=True)
    grow(root, node)
    return root


def difference(reason: Difference | None) -> RenderableType:
    """Why an artifact would not be reused, or that it would be."""
    if reason is None:
        return Text("would be reused", "green")
    root = Tree(Text(f"would not be reused: the config asks for {reason.stage}/{reason.now}", "yellow"))
    _grow(root, reason)
    return root


def _grow(branch: Tree, reason: Difference) -> None:
    for change in reason.changes:
        branch.add(_change(change))
    for inner in reason.inputs:
        text = Text(f"input {inner.stage}  {inner.was or 'none'} -> {inner.now or 'none'}")
        if inner.again:
            text.append("  (see above)", "dim")
        elif not inner.known:
            text.append(f"  ({inner.stage}/{inner.was} is not in the store any more, so why can't be told)", "dim")
        _grow(branch.add(text), inner)


def _change(change: Change) -> Text:
    text = _literal(change.name, "bold").append(f"  {_value(change.was)} -> {_value(change.now)}", "not bold")
    if change.name.startswith("soul"):
        text.append("  (SOUL.md changed)", "dim")
    return text


def _value(value: Any) -> str:
    """A value in a difference; a hash is shortened."""
    if value is ABSENT:
        return "absent"
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:12]
    return visible(json.dumps(value, ensure_ascii=False))


def difference_json(reason: Difference | None) -> dict[str, Any]:
    """The same for programs: whether it would be reused, and every change with its stage."""
    changes: list[dict[str, Any]] = []

    def collect(one: Difference) -> None:
        for change in one.changes:
            sides = {"was": change.was, "now": change.now}
            known = {side: value for side, value in sides.items() if value is not ABSENT}
            changes.append({"stage": one.stage, "field": change.name, **known})
        if not one.known:
            changes.append({"stage": one.stage, "fingerprint": one.was, "missing": True})
        for inner in one.inputs:
            collect(inner)

    if reason is not None:
        collect(reason)
    return {"reused": reason is None, "fingerprint": reason.now if reason else None, "changes": changes}


def garbage(found: Garbage, done: bool) -> RenderableType:
    """What gc removed, or would remove."""
    lines = [f"{stage}/{key}" for stage, key in found.artifacts]
    lines += [f"work of {stage}/{key}" for stage, key in found.work]
    lines += [f"left over: {path}" for path in found.leftovers]
    verb = "removed" if done else "would remove"
    if not lines:
        return Text("nothing to remove")
    return Group(*(_literal(f"{verb} {line}") for line in lines), Text(f"{size(found.size)} of artifacts"))
