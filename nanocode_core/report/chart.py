"""Line charts as inline SVG: a small chart of our own, so that the page needs nothing from outside.

Colours are the classes s0 ... s5, which the page's style sheet defines for light and dark; series
also differ in their dashes, for print and for eyes that tell few colours apart. Geometry is in
units of a fixed view box; the page scales the whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from markupsafe import Markup

from nanocode_core.report.text import count

Point = tuple[float, float]

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 24, 40
MOST_POINTS = 400
LARGEST = 1e15
"""Values beyond this are left out like those that aren't finite: no chart of ours has them."""


@dataclass(frozen=True)
class Series:
    """One line: (x, y) points in rising x; points that aren't finite are left out.

    Attributes:
        style: which of the six line styles, 0 to 5.
        faint: drawn pale and behind the others (raw values behind their smoothed line).
        marks: whether each point gets a dot, with its value as hover text.
    """

    name: str
    points: tuple[Point, ...]
    style: int = 0
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class _Frame:
    """The window of data that is shown, and the way from data to the view box."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y_low), self.y_high)
        return round(TOP + (self.y_high - inside) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM), 1)


def line_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> Markup | None:
    """The chart as an <svg> element, or None where no series has a point to draw."""
    drawn = [replace(s, points=_thin(_drawable(s.points))) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return None
    xs = [x for s in drawn for x, _ in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(*_range(drawn), 5)
    low, high = (x_ticks[0], x_ticks[-1]) if _flat(min(xs), max(xs)) else (min(xs), max(xs))
    frame = _Frame(low, high, y_ticks[0], y_ticks[-1])
    body = [
        _grid([t for t in x_ticks if low <= t <= high], y_ticks, frame),
        _labels(x_label, y_label),
        *(_line(s, frame) for s in sorted(drawn, key=lambda s: not s.faint)),
    ]
    svg = '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(svg).format(WIDTH, HEIGHT, title, Markup("").join(body))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values at equal distances, at least two, whose first and last enclose [low, high]."""
    if _flat(low, high):
        pad = max(0.1 * abs(low), 1e-3)
        low, high = low - pad, high + pad
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def smooth(points: Sequence[Point]) -> tuple[Point, ...]:
    """Means of y over about a tenth of the points around each, fewer towards the ends: no lag."""
    kept = _drawable(points)
    sums = list(accumulate((y for _, y in kept), initial=0.0))
    out: list[Point] = []
    for i, (x, _) in enumerate(kept):
        reach = min(len(kept) // 20, i, len(kept) - 1 - i)
        out.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return tuple(out)


def _flat(low: float, high: float) -> bool:
    """Whether a range is too narrow to be divided."""
    return high - low < 1e-9 * max(abs(low), abs(high), 1.0)


def _drawable(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple((x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST)


def _thin(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """At most about MOST_POINTS points: means of equal runs, the last point kept as it is."""
    if len(points) <= MOST_POINTS:
        return points
    run = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return (*means[:-1], points[-1])


def _range(drawn: Sequence[Series]) -> tuple[float, float]:
    """The values of y to show: all of the clear lines, and of faint ones all but the outer 2%."""
    clear = [y for s in drawn if not s.faint for _, y in s.points]
    faint = sorted(y for s in drawn if s.faint for _, y in s.points)
    cut = len(faint) // 50
    shown = clear + faint[cut : len(faint) - cut]
    return min(shown), max(shown)


def _grid(x_ticks: Sequence[float], y_ticks: Sequence[float], frame: _Frame) -> Markup:
    parts = []
    places = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    if round(y_ticks[1] - y_ticks[0], places) != round(y_ticks[1] - y_ticks[0], 12):
        places += 1
    for value in y_ticks:
        y = frame.y(value)
        label = count(value) if abs(value) >= 10_000 else f"{value:.{places}f}"
        parts.append(Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, y, WIDTH - RIGHT, y))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 8, y + 4, label)
        )
    base = HEIGHT - BOTTOM
    for value in x_ticks:
        x = frame.x(value)
        anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
        label = count(value) if value == int(value) else f"{value:g}"
        parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x, base, x, base + 4))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(x, base + 18, anchor, label)
        )
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, base, WIDTH - RIGHT, base))
    return Markup("").join(parts)


def _labels(x_label: str, y_label: str) -> Markup:
    middle = (LEFT + WIDTH - RIGHT) / 2
    below = Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        middle, HEIGHT - 5, x_label
    )
    return below + Markup('<text class="label" x="{}" y="{}">{}</text>').format(4, 12, y_label)


def _line(series: Series, frame: _Frame) -> Markup:
    """A polyline; a single point, and each point of a series with marks, as a dot."""
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    kind = f"line s{series.style % 6}" + (" faint" if series.faint else "")
    out = Markup('<polyline class="{}" points="{}"/>').format(kind, path)
    if series.marks or len(places) == 1:
        for (x, y), (left, below) in zip(series.points, places, strict=True):
            hover = f"{series.name}: {y:.4g} at {count(x)}"
            dot = '<circle class="dot s{}" cx="{}" cy="{}" r="2.6"><title>{}</title></circle>'
            out += Markup(dot).format(series.style % 6, left, below, hover)
    return out
