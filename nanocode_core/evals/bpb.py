"""Bits per byte: of each validation source of a tokens artifact, and of the agent's side of held-out rollouts.

Sources are measured by a flat protocol (data/rows.py): windows of the training length over the
source's stream, each id but the first a target once. The bytes counted are the bytes of the text, so
figures compare across tokenizers.
"""

from pathlib import Path

from nanocode_core.data.conversations import pack_conversations, read_conversations
from nanocode_core.data.rows import TokenRows
from nanocode_core.model.gpt import GPT
from nanocode_core.model.scoring import bits_per_byte, slices
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.objectives import whole_rows
from nanocode_core.training.sft import rollout_bits_per_byte

Measured = dict[str, float | int]


def source_bpb(model: GPT, tokens: Path, source: str, limit: int, tokenizer: Tokenizer) -> Measured:
    """Bits per byte of one validation source, and the bytes it was measured on.

    Args:
        tokens: folder of the tokens artifact.
        limit: validation tokens, at most.
    """
    windows = TokenRows(tokens).validation(source, limit)
    measured = int(tokenizer.token_bytes[windows[:, 1:]].sum())
    return {"bpb": bits_per_byte(model, slices(whole_rows(windows)), tokenizer.token_bytes), "bytes": measured}


def rollout_bpb(model: GPT, rollouts: Path, tokenizer: Tokenizer) -> Measured:
    """Bits per byte of the assistant's prose and calls in the rollouts of a parquet file."""
    packed = pack_conversations(read_conversations(rollouts), tokenizer, model.shape.sequence)
    return {"bpb": rollout_bits_per_byte(model, packed, tokenizer), "rollouts": packed.conversations}
