"""Charts are well-formed SVG inside their frame, whatever the points are."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.report.chart import HEIGHT, MOST_POINTS, RIGHT, WIDTH, Series, line_chart, smooth, ticks

values = st.floats(allow_nan=True, allow_infinity=True)
points = st.lists(st.tuples(values, values), max_size=60).map(lambda p: tuple(sorted(p, key=lambda xy: str(xy))))


@given(st.lists(points, max_size=4), st.text(st.characters(categories=("L", "P", "S"))))
def test_any_points_and_names_give_well_formed_svg_inside_the_frame(lines, name) -> None:
    svg = line_chart([Series(name, line, i, marks=i == 0) for i, line in enumerate(lines)], name, name, name)
    if svg is None:
        assert not any(abs(x) < 1e15 and abs(y) < 1e15 for line in lines for x, y in line)
        return
    root = ElementTree.fromstring(svg)
    for line in root.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


@given(
    st.floats(-1e12, 1e12, allow_nan=False), st.floats(0, 1e12, allow_nan=False), st.integers(min_value=2, max_value=9)
)
def test_ticks_enclose_the_range_at_equal_distances(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    step = found[1] - found[0]
    assert 2 <= len(found) <= most + 3
    assert found[0] <= low + step * 1e-6
    assert found[-1] >= low + span - step * 1e-6
    assert all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in itertools.pairwise(found))


def test_ticks_are_round() -> None:
    assert ticks(0.93, 3.2, 5) == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert ticks(0, 1000, 5) == [0, 200, 400, 600, 800, 1000]


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    line = tuple((float(i), math.sin(i / 500) + 3) for i in range(10_000))
    svg = line_chart([Series("loss", line)], "loss", "step", "loss")
    assert svg is not None
    pairs = ElementTree.fromstring(svg).find("polyline").attrib["points"].split()  # type: ignore[union-attr]
    assert len(pairs) <= MOST_POINTS
    assert float(pairs[-1].split(",")[0]) == pytest.approx(WIDTH - RIGHT)


def test_names_are_escaped() -> None:
    svg = line_chart([Series("<script>", ((0, 1), (1, 2)), marks=True)], '"><b>', "x", "y")
    assert svg is not None
    assert "<script" not in svg
    assert "<b>" not in svg


def test_smoothing_keeps_the_ends_and_straight_lines() -> None:
    line = [(float(i), 2.5 - 0.01 * i) for i in range(100)]
    assert list(smooth(line)) == [pytest.approx(point) for point in line]
    noisy = [(float(i), float(i % 2)) for i in range(100)]
    ends = smooth(noisy)
    assert (ends[0], ends[-1]) == (noisy[0], noisy[-1])
    assert all(0.4 < y < 0.6 for _, y in ends[10:-10])
    assert smooth([(0.0, 7.0), (1.0, float("nan")), (2.0, 1.0)]) == ((0.0, 7.0), (2.0, 1.0))
