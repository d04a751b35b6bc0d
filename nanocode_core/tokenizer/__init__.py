"""Byte-level BPE, and conversations as token ids with a loss mask."""

from nanocode_core.tokenizer.conversation import (
    Conversation,
    MalformedTurn,
    ToolCall,
    Turn,
    from_json,
    parse_assistant,
    render,
    render_prompt,
    render_turn,
    to_json,
    turn_from_json,
    turn_mask,
    turn_to_json,
)
from nanocode_core.tokenizer.tokenizer import SPECIAL_NAMES, Tokenizer, special_text

__all__ = [
    "SPECIAL_NAMES",
    "Conversation",
    "MalformedTurn",
    "Tokenizer",
    "ToolCall",
    "Turn",
    "from_json",
    "parse_assistant",
    "render",
    "render_prompt",
    "render_turn",
    "special_text",
    "to_json",
    "turn_from_json",
    "turn_mask",
    "turn_to_json",
]
