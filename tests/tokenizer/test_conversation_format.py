import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.tokenizer import (
    SPECIAL_NAMES,
    Conversation,
    MalformedTurn,
    Tokenizer,
    ToolCall,
    Turn,
    from_json,
    parse_assistant,
    render,
    render_prompt,
    render_turn,
    special_text,
    to_json,
)

pieces = st.sampled_from([special_text(name) for name in SPECIAL_NAMES] + ["\n", "    1→", "'", '"', "→", "\t"])
texts = st.lists(st.one_of(st.text(max_size=8), pieces), max_size=6).map("".join)
names = texts.filter(bool)
calls = st.builds(ToolCall, names, st.dictionaries(names, texts, max_size=4))
assistants = st.builds(Turn, st.just("assistant"), texts, st.none() | calls)
turns = st.one_of(assistants, st.builds(Turn, st.sampled_from(["user", "tool"]), texts))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    drawn = tuple(draw(st.lists(turns, max_size=6)))
    if any(turn.role == "user" for turn in drawn):
        return Conversation(drawn, draw(texts))
    return Conversation(drawn)


EXAMPLE = Conversation(
    (
        Turn("user", "Fix <|bos|> in a.py"),
        Turn("assistant", "Reading.", ToolCall("Read", {"file_path": "a.py", "limit": "2"})),
        Turn("tool", "    1→x = 1"),
        Turn("assistant", "", ToolCall("Bash", {"command": "ls"})),
        Turn("tool", "rejected by user"),
        Turn("user", "no"),
        Turn("assistant", "Fine."),
    ),
    system="Be kind.",
)


def test_the_format_token_by_token(tokenizer: Tokenizer):
    ids, _ = render(EXAMPLE, tokenizer)
    assert tokenizer.decode(ids) == (
        "<|bos|><|user_start|>Be kind.\n\nFix <|bos|> in a.py<|user_end|>"
        "<|assistant_start|>Reading.<|tool_call_start|>Read<|tool_arg|>file_path<|tool_val|>a.py"
        "<|tool_arg|>limit<|tool_val|>2<|tool_call_end|><|assistant_end|>"
        "<|tool_result_start|>    1→x = 1<|tool_result_end|>"
        "<|assistant_start|><|tool_call_start|>Bash<|tool_arg|>command<|tool_val|>ls<|tool_call_end|><|assistant_end|>"
        "<|tool_result_start|>rejected by user<|tool_result_end|><|user_start|>no<|user_end|>"
        "<|assistant_start|>Fine.<|assistant_end|>"
    )
    assert ids.count(tokenizer.bos) == 1


def test_the_loss_falls_on_what_the_assistant_writes(tokenizer: Tokenizer):
    ids, mask = render(EXAMPLE, tokenizer)
    assert len(ids) == len(mask)
    learnt = tokenizer.decode([id_ for id_, loss in zip(ids, mask, strict=True) if loss])
    assert learnt == (
        "Reading.<|tool_call_start|>Read<|tool_arg|>file_path<|tool_val|>a.py"
        "<|tool_arg|>limit<|tool_val|>2<|tool_call_end|><|assistant_end|>"
        "<|tool_call_start|>Bash<|tool_arg|>command<|tool_val|>ls<|tool_call_end|><|assistant_end|>"
        "Fine.<|assistant_end|>"
    )


@given(conversation=conversations())
def test_render_is_the_concatenation_of_its_turns(tokenizer: Tokenizer, conversation: Conversation):
    parts = [render_turn(turn, tokenizer) for turn in conversation.merged()]
    ids, mask = render(conversation, tokenizer)
    assert ids == [tokenizer.bos, *(id_ for part in parts for id_ in part)]
    assert render_prompt(conversation, tokenizer) == [*ids, tokenizer.assistant_start]
    expected = [0]
    for turn, part in zip(conversation.turns, parts, strict=True):
        expected += [int(turn.role == "assistant" and place > 0) for place in range(len(part))]
    assert mask == expected


@given(turn=assistants)
def test_an_assistant_turn_is_parsed_back(tokenizer: Tokenizer, turn: Turn):
    start, *generated = render_turn(turn, tokenizer)
    assert start == tokenizer.assistant_start
    parsed = parse_assistant(generated, tokenizer)
    assert parsed == turn
    assert parsed.call is None or list(parsed.call.arguments.items()) == list(
        (turn.call or parsed.call).arguments.items()
    )


@given(conversation=conversations())
def test_json_round_trip(conversation: Conversation):
    assert from_json(json.loads(json.dumps(to_json(conversation)))) == conversation


MALFORMED = {
    "cut off": ["hi"],
    "cut off before": [],
    "<|tool_arg|> in the text": ["hi", "tool_arg", "x", "assistant_end"],
    "<|bos|> in the text": ["bos", "assistant_end"],
    "without its end": ["tool_call_start", "Read", "assistant_end"],
    "without its end ": ["tool_call_start", "Read", "tool_arg", "a", "tool_val", "b", "assistant_end"],
    "out of order": ["tool_call_start", "Read", "tool_val", "b", "tool_call_end", "assistant_end"],
    "out of order ": ["tool_call_start", "Read", "tool_arg", "b", "tool_call_end", "assistant_end"],
    "out of order  ": ["tool_call_start", "R", "user_start", "tool_call_end", "assistant_end"],
    "out of order   ": [
        "tool_call_start",
        "R",
        "tool_call_end",
        "tool_call_start",
        "R",
        "tool_call_end",
        "assistant_end",
    ],
    "text after": ["tool_call_start", "Read", "tool_call_end", "so", "assistant_end"],
    "without a name": ["tool_call_start", "tool_call_end", "assistant_end"],
    "argument without a name": ["tool_call_start", "R", "tool_arg", "tool_val", "v", "tool_call_end", "assistant_end"],
    "the argument 'a' twice": [
        *("tool_call_start", "R", "tool_arg", "a", "tool_val", "1", "tool_arg", "a", "tool_val", "2"),
        *("tool_call_end", "assistant_end"),
    ],
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_malformed_turns_say_why(tokenizer: Tokenizer, reason: str):
    ids = []
    for part in MALFORMED[reason]:
        ids += [tokenizer.special[part]] if part in tokenizer.special else tokenizer.encode(part)
    with pytest.raises(MalformedTurn) as caught:
        parse_assistant(ids, tokenizer)
    assert reason.strip() in caught.value.reason


def test_stray_bytes_pass_in_text_but_not_in_a_call(tokenizer: Tokenizer):
    half = tokenizer.encode("é")[:1]
    if tokenizer.token_bytes[half].sum() > 1:
        half = [next(id_ for id_ in range(11, 300) if tokenizer.raw([id_]) == b"\xc3")]
    assert parse_assistant([*half, tokenizer.assistant_end], tokenizer) == Turn("assistant", "\ufffd")
    call = [tokenizer.tool_call_start, *tokenizer.encode("Bash"), *half, tokenizer.tool_call_end]
    with pytest.raises(MalformedTurn, match="UTF-8"):
        parse_assistant([*call, tokenizer.assistant_end], tokenizer)


@given(ids=st.lists(st.integers(0, 10) | st.integers(60, 90), max_size=12))
def test_any_ids_parse_to_what_renders_alike_or_are_malformed(tokenizer: Tokenizer, ids: list[int]):
    generated = [*ids, tokenizer.assistant_end]
    try:
        turn = parse_assistant(generated, tokenizer)
    except MalformedTurn:
        return
    assert tokenizer.decode(render_turn(turn, tokenizer)[1:]) == tokenizer.decode(generated)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a conversation must be a dict"),
        ({}, "turns must be a list"),
        ({"turns": [1]}, "a turn must be a dict"),
        ({"turns": [{"role": "robot", "text": ""}]}, "unknown role"),
        ({"turns": [{"role": "user"}]}, "text must be a str"),
        (
            {"turns": [{"role": "user", "text": "", "call": {"name": "Read", "arguments": {}}}]},
            "can't hold a tool call",
        ),
        (
            {"turns": [{"role": "assistant", "text": "", "call": {"name": "Read", "arguments": {"limit": 3}}}]},
            "'limit'",
        ),
        ({"turns": [{"role": "assistant", "text": "", "call": {"name": "", "arguments": {}}}]}, "needs a name"),
        ({"turns": [{"role": "assistant", "text": "", "call": {"name": "R", "arguments": {"": ""}}}]}, "empty name"),
        ({"turns": [], "system": 3}, "system text must be a str"),
    ],
)
def test_bad_json_says_which_field(value: object, message: str):
    with pytest.raises(ValueError, match=message):
        from_json(value)


def test_system_text_needs_a_user_turn(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="user turn"):
        render(Conversation((Turn("assistant", "hi"),), "system"), tokenizer)
