"""The page as a value: what the templates lay out, with every figure already a string."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nanocode_core.report.text import DASH
from nanocode_core.report.transcript import TurnView


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table; `kind` is "text", "number" or "code"."""

    title: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of strings below columns; the first column names the row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.rows)

    def without_empty_columns(self) -> "Table":
        """The same without columns that hold dashes only."""
        kept = [i for i in range(len(self.columns)) if i == 0 or any(row[i] not in (DASH, "") for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(tuple(self.columns[i] for i in kept), rows, self.caption)


@dataclass(frozen=True)
class Chart:
    """A chart and the names of its lines, each with its line style."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Sample:
    """Text that the base model wrote after a prompt."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Talk:
    """A conversation of the evaluation with its outcome."""

    title: str
    solved: bool
    note: str
    turns: tuple[TurnView, ...]
    open: bool = False


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    stages: Table
    stages_note: str
    charts: tuple[Chart, ...]
    training: Table
    samples: tuple[Sample, ...]
    tokenizer: Table
    teacher: str
    synthetic: Table
    synthetic_reasons: Table
    evaluation: Table
    families: Table
    talks: tuple[Talk, ...]
    config: Table
    provenance: Table
    artifacts: Table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    """A table from titles: "Minutes#" is a column of numbers, "Digest`" one of code, others are text."""
    kinds = {"#": "number", "`": "code"}
    heads = tuple(Column(title.rstrip("#`"), kinds.get(title[-1:], "text")) for title in columns)
    return Table(heads, tuple(tuple(row) for row in rows), caption)
