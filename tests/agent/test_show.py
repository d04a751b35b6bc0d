import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.agent.show import printable, show_call, show_raw, show_result
from nanocode_core.tokenizer import ToolCall


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("Bash", {"command": "ls -l"}, "● $ ls -l"),
        ("Read", {"file_path": "a.py"}, "● Read a.py"),
        ("Read", {"file_path": "a.py", "offset": "3", "limit": "5"}, "● Read a.py offset=3 limit=5"),
        ("Grep", {"pattern": "def f", "path": "src", "-A": "2"}, '● Grep "def f" in src -A=2'),
        ("Edit", {"file_path": "n.py", "new_string": "x = 1\ny"}, "● Edit n.py (new file)\n  + x = 1\n  + y"),
        (
            "Edit",
            {"file_path": "a.py", "old_string": "a\nb\nc", "new_string": "a\nB\nc"},
            "● Edit a.py\n    a\n  - b\n  + B\n    c",
        ),
        ("Bash", {"command": "ls", "extra": "x"}, "● Bash command=ls extra=x"),
        ("Nope", {}, "● Nope "),
    ],
)
def test_calls_read_as_what_they_do(name, arguments, shown):
    assert show_call(ToolCall(name, arguments)).plain == shown


def test_a_diff_is_coloured():
    shown = show_call(ToolCall("Edit", {"file_path": "a", "old_string": "old", "new_string": "new"}))
    assert {str(span.style): shown.plain[span.start : span.end].strip() for span in shown.spans}["red"] == "- old"
    assert {str(span.style): shown.plain[span.start : span.end].strip() for span in shown.spans}["green"] == "+ new"


def test_a_long_result_is_shortened_and_says_by_how_much():
    shown = show_result("\n".join(f"line {number}" for number in range(100)), lines=5).plain.split("\n")
    assert shown[-1].strip() == "... 95 more lines"
    assert len(shown) == 6


@pytest.mark.parametrize("result", ["error: no such file: a", "rejected by user"])
def test_failures_stand_out(result):
    assert show_result(result).style == "red"
    assert show_result("fine").style == "dim"


@given(st.text())
def test_no_control_character_reaches_the_terminal(text):
    shown = printable(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    assert printable("\x1b[2J\x07\x9b1m") == "␛[2J␇\ufffd1m"


@given(
    st.text(min_size=1),
    st.dictionaries(st.text(min_size=1), st.text()),
    st.sampled_from(["Edit", "Bash", "Read", "Grep"]),
)
def test_any_call_can_be_shown(name, arguments, tool):
    for call in (ToolCall(name, arguments), ToolCall(tool, {**arguments, "file_path": "a", "new_string": name})):
        assert "\x1b" not in show_call(call).plain


def test_the_rendered_conversation_has_one_turn_a_line():
    shown = show_raw("<|bos|><|user_start|>hi<|user_end|><|assistant_start|>yo<|assistant_end|>").plain
    assert shown == "<|bos|>\n<|user_start|>hi<|user_end|>\n<|assistant_start|>yo<|assistant_end|>"
