"""Conversations become turns to show, well formed or not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.report.transcript import call_view, diff_lines, turns_of

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
odd_turns = st.fixed_dictionaries({}, optional={"role": json_values, "text": json_values, "call": json_values})


@given(json_values | st.fixed_dictionaries({"turns": st.lists(odd_turns | json_values, max_size=4)}))
def test_any_json_value_gives_turns(value) -> None:
    for turn in turns_of(value):
        assert turn.role in ("user", "assistant", "tool")
        assert isinstance(turn.text, str)


def test_an_edit_is_shown_as_a_diff() -> None:
    arguments = {"file_path": "shop/cart.py", "old_string": "a = 1\nb = 2", "new_string": "a = 1\nb = 3"}
    call = call_view({"name": "Edit", "arguments": arguments})
    assert call.title == "shop/cart.py"
    assert call.diff_text == " a = 1\n-b = 2\n+b = 3"


def test_a_new_file_is_all_additions() -> None:
    call = call_view({"name": "Edit", "arguments": {"file_path": "a.py", "new_string": "x = 1\ny = 2"}})
    assert call.diff_text == "+x = 1\n+y = 2"


@pytest.mark.parametrize(
    ("name", "arguments", "title", "code"),
    [
        ("Bash", {"command": "python run.py"}, "", "$ python run.py"),
        ("Read", {"file_path": "a.py", "offset": "3"}, "a.py  offset 3", ""),
        ("Grep", {"pattern": "def f", "path": "src"}, "def f  path src", ""),
        ("Grep", {"pattern": "two\nlines"}, "", "pattern: two\nlines"),
        ("Edit", {"file_path": "a.py"}, "a.py", ""),
        ("Dance", {"new_string": "x\ny"}, "", "new_string: x\ny"),
    ],
)
def test_other_calls_show_all_of_their_arguments(name, arguments, title, code) -> None:
    call = call_view({"name": name, "arguments": arguments})
    assert (call.name, call.title, call.code) == (name, title, code)


@given(st.text("ab\n", max_size=30), st.text("ab\n", max_size=30))
def test_a_diff_holds_both_sides(old: str, new: str) -> None:
    diff = diff_lines(old, new)
    assert [line.text for line in diff if line.sign in " -"] == old.splitlines()
    assert [line.text for line in diff if line.sign in " +"] == new.splitlines()
