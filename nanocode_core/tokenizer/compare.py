"""Bytes per token: how much text a context of given length holds under different tokenizers."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from nanocode_core.tokenizer.documents import texts, validation
from nanocode_core.tokenizer.samples import SAMPLES

_VALIDATION_DOCUMENTS = 500
_VALIDATION_CHARACTERS = 1_000_000


def comparison_texts(corpus: Path) -> dict[str, list[str]]:
    """The texts to measure on: the fixed samples, and the start of each source's validation text."""
    held_out = {}
    for source, file in validation(corpus).items():
        taken, left = [], _VALIDATION_CHARACTERS
        for text in islice(texts(file), _VALIDATION_DOCUMENTS):
            taken.append(text[:left])
            left -= len(taken[-1])
            if not left:
                break
        held_out[f"{source} validation"] = taken
    return {**{name: [text] for name, text in SAMPLES.items()}, **held_out}


def measure(name: str, backend: Backend, measured: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One row of the table: bytes per token of each text (None where it is empty), 4 digits kept."""
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    row: dict[str, float | None] = {}
    for text, parts in measured.items():
        size = sum(len(part.encode()) for part in parts)
        encoded = backend.encode_batch_fast(list(parts), add_special_tokens=False)
        tokens = sum(len(encoding.ids) for encoding in encoded)
        row[text] = round(size / tokens, 4) if tokens else None
    return {"name": name, "vocabulary": backend.get_vocab_size(), "bytes_per_token": row}
