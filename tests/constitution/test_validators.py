import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.config import PROJECT
from nanocode_core.constitution import validators
from nanocode_core.constitution.critic import critique
from nanocode_core.constitution.families import FAMILIES
from nanocode_core.constitution.soul import Rules, Soul
from nanocode_core.tokenizer.conversation import Conversation, ToolCall, Turn

RULES = Soul.load(PROJECT / "SOUL.md").rules
READ = ToolCall("Read", {"file_path": "a.py"})
CALLED = (Turn("user", "go"), Turn("assistant", "reading.", READ), Turn("tool", "    1→x = 1"))
END = Turn("assistant", "done.")


def reasons(*turns: Turn, rules: Rules = RULES) -> list[str]:
    return [flaw.reason for flaw in validators.flaws(Conversation(turns), rules)]


def test_a_proper_conversation():
    assert reasons(*CALLED, END) == []


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((), "does not begin with the user"),
        ((END,), "does not begin with the user"),
        (CALLED[:2], "has no last word"),
        ((*CALLED[:2], END), "a call without its result"),
        ((Turn("user", "go"), Turn("tool", "x"), END), "a result without a call"),
        ((*CALLED, END, END), "an assistant turn that nobody asked for"),
        ((*CALLED, Turn("assistant", " ")), "says nothing"),
        ((*CALLED, Turn("assistant", "see <|bos|>.")), "format text in the prose"),
        ((*CALLED, Turn("assistant", "it says\n    1→x = 1")), "format text in the prose"),
        (
            (Turn("user", "go"), Turn("assistant", "x.", ToolCall("Write", {})), Turn("tool", "error: no"), END),
            "unknown tool",
        ),
        (
            (
                *CALLED,
                Turn(
                    "assistant",
                    "ok.",
                    ToolCall("Edit", {"file_path": "a.py", "old_string": "    1→x = 1", "new_string": "y"}),
                ),
                Turn("tool", "error: no"),
                END,
            ),
            "edits with line numbers",
        ),
        ((*CALLED[:2], Turn("tool", "rejected by user"), END), "goes on after a rejection without the user"),
        (
            (
                *CALLED[:2],
                Turn("tool", "rejected by user"),
                Turn("user", "no"),
                Turn("assistant", "again.", READ),
                CALLED[2],
                END,
            ),
            "sends a rejected call again",
        ),
    ],
)
def test_structural_flaws(turns, reason):
    assert any(found.startswith(reason) for found in reasons(*turns))


_ARGUMENTS = st.dictionaries(
    st.sampled_from(["file_path", "old_string", "new_string", "pattern", "limit", "x"]), st.text(max_size=9)
)
_CALLS = st.builds(ToolCall, st.sampled_from(["Read", "Edit", "Grep", "Bash", "Nothing"]), _ARGUMENTS)
_TEXTS = st.text(max_size=30) | st.sampled_from(
    ["rejected by user", "error: x", "a.py:1:x", "<|bos|>", "I", "?", '"', "`"]
)
_TURNS = st.builds(Turn, st.sampled_from(["user", "tool"]), _TEXTS) | st.builds(
    Turn, st.just("assistant"), _TEXTS, st.none() | _CALLS
)


@given(st.lists(_TURNS, max_size=8))
def test_wild_conversations_never_raise(turns):
    found = validators.flaws(Conversation(tuple(turns)), RULES)
    assert all(0 <= flaw.turn <= len(turns) for flaw in found)
    answer = critique(FAMILIES["set_constant"].task(0, 0), turns, RULES)
    assert 1 <= answer["rating"] <= 10
    assert (answer["rating"] == 10) == (not answer["reasons"])
