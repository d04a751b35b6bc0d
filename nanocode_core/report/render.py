"""From a `Page` to HTML and Markdown, through two templates beside this file.

Every string passes through `visible` on its way out, and is then escaped: by jinja's autoescape for
HTML, by `escape_markdown` for Markdown. Only what is `Markup` (our own charts, code fences) stays
as it is.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nanocode_core.report import text
from nanocode_core.report.page import Page, Table

_HERE = Path(__file__).parent


def to_html(page: Page) -> str:
    """One self-contained page: style and charts inline, no script, no request to anywhere."""
    style = Markup((_HERE / "style.css").read_text("utf-8"))
    return _html().get_template("report.html").render(page=page, style=style)


def to_markdown(page: Page) -> str:
    """The same as Markdown, without the charts."""
    return _markdown().get_template("report.md").render(page=page)


@cache
def _html() -> Environment:
    return _environment(autoescape=True, finalize=_visible)


@cache
def _markdown() -> Environment:
    environment = _environment(autoescape=False, finalize=_literal)
    environment.filters["table"] = _table
    environment.filters["fence"] = lambda value, language="": Markup(text.fence(value, language))
    return environment


def _table(value: Table) -> Markup:
    """A table in Markdown."""
    kinds = {"number": "---:"}
    rows = [
        [text.escape_markdown(column.title) for column in value.columns],
        [kinds.get(column.kind, "---") for column in value.columns],
        *([text.escape_markdown(cell) for cell in row] for row in value.rows),
    ]
    caption = f"**{text.escape_markdown(value.caption)}**\n\n" if value.caption else ""
    return Markup(caption + "\n".join("| " + " | ".join(row) + " |" for row in rows))


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options
    )


def _visible(value: Any) -> Any:
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _literal(value: Any) -> Any:
    return text.escape_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value
