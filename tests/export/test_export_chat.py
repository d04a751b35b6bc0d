"""The chat template: its text, and the ids of that, are those of our own `render`."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Backend

from nanocode_core.tokenizer import (
    SPECIAL_NAMES,
    Conversation,
    Tokenizer,
    ToolCall,
    Turn,
    render,
    render_prompt,
    special_text,
)

EXAMPLE = Conversation(
    (
        Turn("user", "Fix a.py\n"),
        Turn("assistant", "Reading.", ToolCall("Read", {"file_path": "a.py", "limit": "2"})),
        Turn("tool", "    1→x = 1 < 2 & '\"'\n"),
        Turn("assistant", "", ToolCall("Bash", {"command": "ls {{ x }} {% raw %}"})),
        Turn("tool", "rejected by user"),
        Turn("user", ""),
        Turn("assistant", " Fine. "),
    ),
    system="Be kind.",
)
QUIET = Conversation((Turn("user", "hi"), Turn("assistant", "", ToolCall("List")), Turn("tool", "")))

pieces = st.sampled_from([special_text(name) for name in SPECIAL_NAMES] + ["\n", "{{", "%}", "'", '"', "→", "<|", "|>"])
texts = st.lists(st.one_of(st.text(max_size=8), pieces), max_size=5).map("".join)
names = texts.filter(bool)
calls = st.builds(ToolCall, names, st.dictionaries(names, texts, max_size=3))
turns = st.one_of(
    st.builds(Turn, st.just("assistant"), texts, st.none() | calls),
    st.builds(Turn, st.sampled_from(["user", "tool"]), texts),
)
conversations = st.builds(
    lambda first, rest, system: Conversation((Turn("user", first), *rest), system),
    texts,
    st.lists(turns, max_size=5),
    texts,
)


class Refused(Exception):
    pass


def refuse(reason: str) -> None:
    raise Refused(reason)


@pytest.fixture(scope="session")
def template(exported: Path) -> jinja2.Template:
    """The template as transformers compiles it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    source = json.loads((exported / "tokenizer_config.json").read_text())["chat_template"]
    return environment.from_string(source)


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """As a client of the OpenAI API holds a conversation, arguments decoded."""
    out: list[dict[str, Any]] = []
    if conversation.system:
        out.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text or None}
        if turn.call:
            function = {"name": turn.call.name, "arguments": turn.call.arguments}
            message["tool_calls"] = [{"id": "0", "type": "function", "function": function}]
        out.append(message)
    return out


@pytest.mark.parametrize("conversation", [EXAMPLE, QUIET, Conversation(())], ids=["long", "quiet", "empty"])
def test_the_template_gives_the_ids_of_render(
    conversation: Conversation, template: jinja2.Template, tokenizer: Tokenizer, exported: Path
) -> None:
    theirs = Backend.from_file(str(exported / "tokenizer.json"))
    text = template.render(messages=messages(conversation))
    assert theirs.encode(text, add_special_tokens=False).ids == render(conversation, tokenizer)[0]
    prompt = template.render(messages=messages(conversation), add_generation_prompt=True)
    assert theirs.encode(prompt, add_special_tokens=False).ids == render_prompt(conversation, tokenizer)


@settings(deadline=None)
@given(conversation=conversations)
def test_the_template_gives_the_text_of_render(
    template: jinja2.Template, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    text = template.render(messages=messages(conversation))
    assert text == tokenizer.decode(render(conversation, tokenizer)[0])


def test_arguments_that_are_no_text_are_written_as_json(template: jinja2.Template) -> None:
    call = {"name": "Read", "arguments": {"limit": 3, "all": True, "path": "a"}}
    text = template.render(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert "<|tool_arg|>limit<|tool_val|>3<|tool_arg|>all<|tool_val|>true<|tool_arg|>path<|tool_val|>a" in text


CALL = {"function": {"name": "Read", "arguments": {}}}
REFUSALS = {
    "unknown role": [{"role": "robot", "content": "x"}],
    "role system": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
    "needs a user message": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}],
    "one tool call": [{"role": "assistant", "tool_calls": [CALL, CALL]}],
    "must be a mapping": [{"role": "assistant", "tool_calls": [{"function": {"name": "R", "arguments": "{}"}}]}],
    "must be a text": [{"role": "user", "content": [{"type": "image"}]}],
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_the_format_lacks_is_refused(reason: str, template: jinja2.Template) -> None:
    with pytest.raises(Refused, match=reason):
        template.render(messages=REFUSALS[reason])


def test_the_special_tokens_of_the_config_exist(exported: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((exported / "tokenizer_config.json").read_text())
    ids = {key: tokenizer.special[config[key].strip("<|>")] for key in ("bos_token", "eos_token", "pad_token")}
    model = json.loads((exported / "config.json").read_text())
    assert ids == {key: model[f"{key}_id"] for key in ids}
