"""The tokenizer of an export: tokenizer.json, and the conversation format as a chat template.

The template gives the text whose ids are `conversation.render`'s, for messages as the OpenAI API has
them: roles system (first only), user, assistant, tool; an assistant message holds at most one tool
call, its arguments a mapping. Tools are not listed to the model: it knows its own from training.

A text that spells a special token ("<|bos|>" in a file) becomes that token here, as under every chat
template, while `render` keeps it text. Who needs that sends the ids of `render_prompt` instead.
"""

from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from nanocode_core.tokenizer import Tokenizer, special_text
from nanocode_core.tokenizer.tokenizer import read_backend

CHAT_TEMPLATE = """\
{%- set open = namespace(system='') -%}
{{- '<|bos|>' -}}
{%- for message in messages -%}
    {%- if message.content is string -%}
        {%- set text = message.content -%}
    {%- elif message.content -%}
        {{- raise_exception('the content of a message must be a text') -}}
    {%- else -%}
        {%- set text = '' -%}
    {%- endif -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}
            {{- raise_exception('only the first message can have the role system') -}}
        {%- endif -%}
        {%- set open.system = text -%}
    {%- elif message.role == 'user' -%}
        {{- '<|user_start|>' + (open.system + '\\n\\n' if open.system else '') + text + '<|user_end|>' -}}
        {%- set open.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- '<|assistant_start|>' + text -}}
        {%- set calls = message.tool_calls or [] -%}
        {%- if calls | length > 1 -%}
            {{- raise_exception('an assistant message can hold one tool call') -}}
        {%- endif -%}
        {%- for call in calls -%}
            {%- set function = call.function or call -%}
            {%- set arguments = function.arguments or {} -%}
            {%- if arguments is not mapping -%}
                {{- raise_exception('the arguments of a tool call must be a mapping') -}}
            {%- endif -%}
            {{- '<|tool_call_start|>' + function.name -}}
            {%- for key, value in arguments.items() -%}
                {{- '<|tool_arg|>' + key + '<|tool_val|>' -}}
                {{- value if value is string else value | tojson -}}
            {%- endfor -%}
            {{- '<|tool_call_end|>' -}}
        {%- endfor -%}
        {{- '<|assistant_end|>' -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|tool_result_start|>' + text + '<|tool_result_end|>' -}}
    {%- else -%}
        {{- raise_exception('unknown role; roles are system, user, assistant, tool') -}}
    {%- endif -%}
{%- endfor -%}
{%- if open.system -%}
    {{- raise_exception('system text needs a user message') -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""


def tokenizer_json(file: Path) -> str:
    """The content of the export's tokenizer.json, from the artifact's.

    The same ids, and bos in front of a plain text that is encoded with special tokens: documents
    began with it in training. (The chat template writes its own bos.)
    """
    backend = read_backend(file)
    bos = special_text("bos")
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    text: str = backend.to_str(pretty=True)
    return text + "\n"


def tokenizer_config(sequence: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; `sequence` is the training context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special_text("bos"),
        "eos_token": special_text("assistant_end"),
        "pad_token": special_text("bos"),
        "model_max_length": sequence,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json: greedy as our agent, up to the end of a turn or a document."""
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": [tokenizer.assistant_end, tokenizer.bos],
        "pad_token_id": tokenizer.bos,
        "do_sample": False,
    }
