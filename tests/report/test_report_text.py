"""Wild text becomes printable, figures become readable."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanocode_core.report import text

wild = st.text(st.characters())


@given(wild)
@example("\x00\x1b[31mred\x1b[0m\x7f\x9b")
@example("\ud800 lone")
@example("abc\u202edcba")
def test_visible_text_is_encodable_and_free_of_control_characters(value: str) -> None:
    shown = text.visible(value)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_ordinary_text_stays_as_it_is(value: str) -> None:
    assert text.visible(value) == value


def test_control_characters_are_told_apart() -> None:
    assert text.visible("a\x00b\x1b[1mc\td\ne") == "a␀b␛[1mc\td\ne"


@given(wild)
def test_a_fence_is_longer_than_every_run_of_backticks_inside(value: str) -> None:
    lines = text.fence(value).split("\n")
    marks = lines[0]
    assert set(marks) == {"`"}
    assert lines[-1] == marks
    assert all(marks not in line for line in lines[1:-1])


@given(wild)
def test_a_markdown_cell_is_one_line_without_live_markup(value: str) -> None:
    cell = text.escape_markdown(value)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(\\\\)*[|<>`*]", cell)


@pytest.mark.parametrize("missing", [None, "12", True, float("nan"), float("inf"), [], {}, 10**400])
@pytest.mark.parametrize("show", [text.decimal, text.count, text.percent, text.minutes, text.money, text.moment])
def test_what_is_no_figure_is_a_dash(show, missing) -> None:
    assert show(missing) == text.DASH


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.count(950), "950"),
        (text.count(12_345), "12,345"),
        (text.count(2_634_112), "2.63M"),
        (text.count(10_700_000_000), "10.7B"),
        (text.percent(0.9567), "95.7%"),
        (text.decimal(1.23456), "1.235"),
        (text.minutes(0.35), "21 s"),
        (text.minutes(13.24), "13.2 min"),
        (text.minutes(558), "9.3 h"),
        (text.money(3.4), "$3.40"),
        (text.moment(1_795_417_200), "2026-11-23 07:00 UTC"),
    ],
)
def test_figures_read_well(shown: str, expected: str) -> None:
    assert shown == expected
