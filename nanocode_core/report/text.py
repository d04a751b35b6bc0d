"""Text for the report: wild text made harmless, numbers made readable.

Model output may hold anything: control characters, terminal escapes, lone surrogates, overrides of
the writing direction. `visible` turns each of these into a printable stand-in, so that every string
can be encoded and shown; markup is escaped later, by the template engine.
"""

import datetime as dt
import json
import math
import re
from typing import Any

DASH = "–"

_DIRECTION = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_STRANGE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\uffff\u2028\u2029" + _DIRECTION + "]"
)


def visible(text: str) -> str:
    """`text` with every control character shown as a symbol; newlines and tabs stay."""
    return _STRANGE.sub(_stand_in, text.replace("\r\n", "\n"))


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"


def escape_markdown(text: str) -> str:
    """`text` as literal Markdown on one line, fit for a table cell."""
    line = " ".join(visible(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", line)


def fence(text: str, language: str = "") -> str:
    """`text` as a fenced code block whose fence is longer than any run of backticks in it."""
    body = visible(text)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{body}\n{marks}"


def number(value: Any) -> float | None:
    """`value` as a finite float; None for anything else, so that a missing figure shows as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def decimal(value: Any, places: int = 3) -> str:
    """A figure with fixed places, or a dash."""
    figure = number(value)
    return DASH if figure is None else f"{figure:,.{places}f}"


def count(value: Any) -> str:
    """A count in three figures or so: 950, 12,345, 1.50M, 10.7B; or a dash."""
    figure = number(value)
    if figure is None:
        return DASH
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(figure) >= limit:
            return f"{figure / limit:.3g}{unit}" if abs(figure) < 100 * limit else f"{figure / limit:,.0f}{unit}"
    return f"{figure:,.0f}"


def percent(value: Any, places: int = 1) -> str:
    """A share of one as a percentage, or a dash."""
    figure = number(value)
    return DASH if figure is None else f"{100 * figure:.{places}f}%"


def minutes(value: Any) -> str:
    """Minutes as seconds, minutes or hours, whichever reads best; or a dash."""
    figure = number(value)
    if figure is None:
        return DASH
    if figure < 1:
        return f"{figure * 60:.0f} s"
    if figure < 100:
        return f"{figure:.1f} min"
    return f"{figure / 60:.1f} h"


def money(value: Any) -> str:
    """Dollars, or a dash."""
    figure = number(value)
    return DASH if figure is None else (f"${figure:,.2f}" if figure < 100 else f"${figure:,.0f}")


def plain(value: Any) -> str:
    """Any JSON value of a config or a record on one line."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def moment(value: Any) -> str:
    """A time in seconds since 1970 as date and time in UTC, or a dash."""
    figure = number(value)
    if figure is None or not 0 <= figure < 1e11:
        return DASH
    return f"{dt.datetime.fromtimestamp(figure, dt.UTC):%Y-%m-%d %H:%M} UTC"


_SHARE = re.compile(r"(?:^|[ _.])(?:share|rate|success|solved|accuracy|adherence|valid|lowercase|mfu|right)(?:$|[ _.])")


def metric(name: str, value: Any) -> str:
    """A metric by its name: shares as percentages, counts whole, the rest with three places."""
    figure = number(value)
    if figure is None:
        return plain(value) if isinstance(value, str | bool) else DASH
    if 0 <= figure <= 1 and not isinstance(value, int) and _SHARE.search(name):
        return percent(figure)
    return count(value) if isinstance(value, int) else decimal(figure)
