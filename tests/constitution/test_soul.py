from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.config import PROJECT
from nanocode_core.constitution.soul import Rules, Soul, lowercase_prose, parse_rules, sentences, violations
from nanocode_core.errors import UserError
from nanocode_core.tokenizer.conversation import Conversation, ToolCall, Turn

SOUL = Soul.load(PROJECT / "SOUL.md")


def talk(*turns: Turn) -> Conversation:
    return Conversation((Turn("user", "set LIMIT to 3"), *turns))


def say(text: str, name: str = "", **arguments: str) -> Turn:
    return Turn("assistant", text, ToolCall(name, arguments) if name else None)


def test_the_rules_of_our_own_soul():
    rules = SOUL.rules
    assert (rules.lowercase, rules.sentences, rules.words) == (True, 4, 60)
    assert (rules.question, rules.read_before_edit, rules.repeats) == ("unsure", True, 2)
    assert "let me know if" in rules.never_say
    assert "what a great" in rules.never_say


def test_user_edits():
    text = SOUL.text.replace("lowercase prose: yes", "lowercase prose: no").replace('"as an ai"', '"as an ai", "Yo Ho"')
    text = text.replace("- words in a turn, at most: 60", "- likes: tea\n- words in a turn, at most: many\n")
    rules = parse_rules(text)
    assert not rules.lowercase
    assert "yo ho" in rules.never_say
    assert rules.words is None
    assert rules.sentences == 4
    assert parse_rules("no rules here") == Rules()


@given(st.text(max_size=200) | st.lists(st.sampled_from(SOUL.text.splitlines())).map("\n".join))
def test_no_text_breaks_the_parser(text):
    parse_rules(text)
    parse_rules("## what a script can check\n" + text)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_missing_empty_or_broken_file(tmp_path: Path, content):
    path = tmp_path / "SOUL.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"SOUL\.md .*; write who the agent is there"):
        Soul.load(path)


@pytest.mark.parametrize(
    ("text", "lowercase"),
    [
        ("done, MAX_SIZE is 4 in app/x.py now.", True),
        ("it's fine. all good.", True),
        ('hm, `Foo Bar` says "Hello There".', True),
        ("NameError in x.py, fixing it.", True),
        ("Python runs it. JSON is fine.", True),
        ("my friend Ada wrote it.", True),
        ("```\nX = 1\nY = 2\n```\nthat's all.", True),
        ("", True),
        ("Done.", False),
        ("it works. Now the rest.", False),
        ("i think I did it", False),
        ("first line\nSecond line", False),
        ("A new file then: x.py.", False),
    ],
)
def test_lowercase_prose(text, lowercase):
    assert lowercase_prose(text) is lowercase


def test_sentences_ignore_dots_in_names():
    assert sentences("see app/x.py and 3.14. then stop. ok?") == 3


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([say("Done.")], "prose is not lowercase"),
        ([say("great question! it's 3.")], "says 'great question'"),
        ([say("a. b. c. d. e.")], "more than 4 sentences"),
        ([say("word " * 61)], "more than 60 words"),
        ([say("done. want more?")], "ends with a question"),
        ([say("ok.", "Edit", file_path="a.py", old_string="x", new_string="y")], "edits a.py without reading it"),
    ],
)
def test_violations_are_found(turns, reason):
    assert violations(talk(*turns), SOUL) == [reason]


def test_a_question_is_fine_when_unsure_or_rejected():
    assert violations(talk(say("i'm not sure: A_B or A_C?")), SOUL) == []
    read = (say("reading.", "Read", file_path="a.py"), Turn("tool", "rejected by user"), Turn("user", "no"))
    assert violations(talk(*read, say("what would you like?")), SOUL) == ["ends with a question"]
    assert violations(talk(*read[:2], say("what would you like?")), SOUL) == []


def test_reading_counts_by_read_grep_and_own_files_only_when_it_worked():
    change = say("ok.", "Edit", file_path="a.py", old_string="x", new_string="y")
    shown, end = Turn("tool", "    1→y"), say("done.")
    for look in (
        (say("r.", "Read", file_path="a.py"), Turn("tool", "    1→x")),
        (say("g.", "Grep", pattern="x"), Turn("tool", "a.py:1:x")),
        (say("n.", "Edit", file_path="a.py", new_string="x"), Turn("tool", "    1→x")),
    ):
        assert violations(talk(*look, change, shown, end), SOUL) == []
    failed = (say("r.", "Read", file_path="a.py"), Turn("tool", "error: no such file: a.py"))
    assert violations(talk(*failed, change, shown, end), SOUL) == ["edits a.py without reading it"]


def test_repeats():
    call = (say("again.", "Read", file_path="a.py"), Turn("tool", "    1→x"))
    assert violations(talk(*call, *call, say("done.")), SOUL) == []
    assert violations(talk(*call, *call, *call, say("done.")), SOUL) == ["sends the same call 3 times in a row"]
