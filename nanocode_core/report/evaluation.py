"""Evaluation: from its JSON document and transcripts to tables and conversations.

The document is nested objects with figures at the leaves. A leaf below a model's name ("sft")
stands in that model's column, one below a word for families in the row of its family; the other
names on the way to it make the name of the figure. So a new figure shows up without a change here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanocode_core.report import text
from nanocode_core.report.facts import Facts, Json, document, json_lines
from nanocode_core.report.page import Table, Talk, table
from nanocode_core.report.transcript import turns_of

MODELS = {"base": "base", "pretrain": "base", "sft": "SFT", "dpo": "DPO"}
"""Names of the models in documents, and how they are shown; in the order of training."""
COLUMNS = tuple(dict.fromkeys(MODELS.values()))
LABELS: dict[str, str | None] = {
    "tasks task success": "tasks solved",
    "tasks valid call rate": "valid calls",
    "tasks right tool rate": "right tool",
    "tasks first tool rate": "right first tool",
    "tasks recovered rate": "solved after an error",
    "tasks turns": "turns a task",
    "tasks calls": "calls a task",
    "tasks malformed turns": "malformed turns",
    "soul lowercase rate": "turns in lowercase",
    "soul banned rate": "turns with a banned phrase",
    "soul clean rate": "conversations true to SOUL.md",
    "soul flaws per turn": "flaws a turn",
    "pairs": "pair accuracy",
    "rollouts bpb": "bits per byte of rollouts",
    "tasks tasks": None,
    "soul agent turns": None,
    "rollouts rollouts": None,
}
"""How figures of the evaluation are called, in this order; None: not shown. Others keep their names."""
FAMILIES = ("families", "family", "by_family", "per_family")
SOLVED, FAILED = 4, 3
"""Conversations to show of each outcome, at most."""


@dataclass(frozen=True)
class Figure:
    """A leaf of a document: its name, the model and the family it is about (if any), its value."""

    name: str
    model: str | None
    family: str | None
    value: Any

    @property
    def shown(self) -> str:
        """The value as text: "75.0% (90/120)" for a rate with its counts, else by its name."""
        if isinstance(self.value, Mapping):
            value = self.value
            if text.number(value.get("rate")) is None:
                return text.DASH
            return f"{text.percent(value.get('rate'))} ({text.count(value.get('count'))}/{text.count(value.get('of'))})"
        return text.metric(self.name, self.value)


def figures(nested: Json) -> Iterator[Figure]:
    """Every leaf that is a number or a rate with its counts ({"rate", "count", "of"})."""
    for path, value in _leaves(nested, ()):
        if not isinstance(value, Mapping) and text.number(value) is None:
            continue
        model = next((part for part in path if part in MODELS), None)
        mark = next((i for i, part in enumerate(path[:-1]) if part in FAMILIES), None)
        family = None if mark is None else path[mark + 1]
        left_out = {model, "models"} if mark is None else {model, "models", path[mark], family}
        name = " ".join(part for part in path if part not in left_out).replace("_", " ")
        yield Figure(name, MODELS.get(model or ""), family, value)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and not {"rate", "count", "of"} <= value.keys():
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value


def evaluation_figures(facts: Facts) -> list[Figure]:
    """What the evaluation measured on each model."""
    return [f for f in figures(document(facts, "eval", "evaluation.json")) if f.model is not None]


def evaluation_table(facts: Facts) -> Table:
    """A row a figure, a column a model: before and after SFT and DPO."""
    found: dict[str, dict[str, str]] = {}
    for one in evaluation_figures(facts):
        if one.family is None and one.model is not None and (label := _label(one.name)) is not None:
            found.setdefault(label, {})[one.model] = one.shown
    known = [label for label in LABELS.values() if label in found]
    return _by_model("Held out", {name: found[name] for name in [*known, *(n for n in found if n not in known)]}, "")


def _label(name: str) -> str | None:
    """How a figure is called in the table; None for what is left to evaluation.json."""
    if name.startswith("bpb "):
        source = name.removeprefix("bpb ").removesuffix(" bpb")
        return None if source.endswith(" bytes") else f"bits per byte of {source}"
    if name.startswith("soul flaws ") and name not in LABELS:
        return None
    return LABELS.get(name, name)


def before_and_after(facts: Facts) -> Table:
    """What each training stage changed, on data it wasn't trained on: a row a figure."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for stage in ("pretrain", "sft", "dpo"):
        for one in figures(document(facts, stage, "evaluation.json")):
            words = one.name.split()
            side = next((word for word in words if word in ("before", "after")), None)
            if side is not None:
                name = " ".join("bits per byte" if word == "bpb" else word for word in words if word != side)
                found.setdefault((stage, name), {})[side] = one.shown
    rows = ((*key, sides.get("before", text.DASH), sides.get("after", text.DASH)) for key, sides in found.items())
    return table(("Stage", "Figure", "Before#", "After#"), rows)


def families_table(facts: Facts) -> Table:
    """Task success: a row a family, a column a model."""
    found: dict[str, dict[str, str]] = {}
    for one in evaluation_figures(facts):
        if one.family is not None and one.model is not None and ("success" in one.name or not one.name):
            found.setdefault(one.family.replace("_", " "), {})[one.model] = one.shown
    return _by_model("Family", dict(sorted(found.items())), "Tasks solved, by family")


def _by_model(title: str, found: Mapping[str, Mapping[str, str]], caption: str) -> Table:
    rows = ((name, *(by_model.get(m, text.DASH) for m in COLUMNS)) for name, by_model in found.items())
    return table((title, *(f"{m}#" for m in COLUMNS)), rows, caption).without_empty_columns()


def talks(facts: Facts) -> tuple[Talk, ...]:
    """Conversations of the last trained model: the first of each family, solved and failed."""
    if "eval" not in facts:
        return ()
    lines = [line for line in json_lines(facts["eval"].path / "transcripts.jsonl") if _turns(line)]
    models = {MODELS.get(str(line.get("model")), "") for line in lines}
    last = next((name for name in reversed(COLUMNS) if name in models), None)
    lines = [line for line in lines if last is None or MODELS.get(str(line.get("model"))) == last]
    chosen = [_talk(line, True) for line in _varied([x for x in lines if _solved(x)], SOLVED)]
    chosen += [_talk(line, False) for line in _varied([x for x in lines if not _solved(x)], FAILED)]
    first = {talk.solved: place for place, talk in reversed(list(enumerate(chosen)))}
    return tuple(replace(talk, open=first[talk.solved] == place) for place, talk in enumerate(chosen))


def _turns(line: Json) -> Any:
    """The conversation of a transcript line, wherever it stands."""
    found = line.get("conversation") or line.get("transcript") or line
    return found if isinstance(found, list) or (isinstance(found, Mapping) and found.get("turns")) else None


def _solved(line: Json) -> bool:
    return bool(line.get("solved", line.get("success", False)))


def _varied(lines: list[Json], most: int) -> list[Json]:
    """The first line of each family, then the second of each, and so on."""
    seen: dict[str, int] = {}
    order = []
    for place, line in enumerate(lines):
        family = str(line.get("family", ""))
        seen[family] = seen.get(family, 0) + 1
        order.append((seen[family], place))
    return [lines[place] for _, place in sorted(order)[:most]]


def _talk(line: Json, solved: bool) -> Talk:
    family = str(line.get("family") or line.get("task") or "conversation").replace("_", " ")
    reason = line.get("reason") or line.get("detail") or line.get("error")
    turns = turns_of(_turns(line), line.get("faults"))
    return Talk(family, solved, reason if isinstance(reason, str) else "", turns)
