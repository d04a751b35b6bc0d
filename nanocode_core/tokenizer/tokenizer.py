"""Text to token ids and back, byte for byte.

A tokenizer is one `tokenizer.json` (Hugging Face `tokenizers` format): byte-level BPE plus the
special tokens of the conversation format. `encode` never yields a special token, whatever the text
holds: "<|bos|>" in a file that is read comes out as plain characters. Special tokens enter only by
id, in `conversation.py`. `decode` joins raw bytes; ids that are no valid UTF-8 show as U+FFFD.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from nanocode_core.errors import UserError
from nanocode_core.tokenizer import bytelevel

SPECIAL_NAMES = (
    "bos",
    "user_start",
    "user_end",
    "assistant_start",
    "assistant_end",
    "tool_call_start",
    "tool_call_end",
    "tool_arg",
    "tool_val",
    "tool_result_start",
    "tool_result_end",
)
"""The special tokens; in a tokenizer trained here their ids are 0 to 10, in this order."""

_SURROGATES = re.compile("[\ud800-\udfff]")


def special_text(name: str) -> str:
    """How a special token is written: special_text("bos") is "<|bos|>"."""
    return f"<|{name}|>"


class Tokenizer:
    """Byte-level BPE with the special tokens of the conversation format.

    Attributes:
        vocabulary: number of token ids, special ones included.
        special: id of each special token, by name.
        token_bytes: int32 [vocabulary], the length in bytes of each token's text; 0 for special ones.
        bos, user_start, ...: the ids in `special`.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        """Take over a `tokenizers.Tokenizer`.

        Raises:
            ValueError: it is not byte-level or lacks a special token.
        """
        backend.encode_special_tokens = True  # "encode" here means: as plain text, never as the special id
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._bytes, specials = raw_tokens(backend)
        self.vocabulary = len(self._bytes)
        self.special = {}
        for name in SPECIAL_NAMES:
            if special_text(name) not in specials:
                raise ValueError(f"the special token {special_text(name)} is missing")
            self.special[name] = specials[special_text(name)]
        self._special_ids = frozenset(specials.values())
        lengths = [0 if id_ in self._special_ids else len(raw) for id_, raw in enumerate(self._bytes)]
        self.token_bytes = np.array(lengths, dtype=np.int32)
        self.token_bytes.flags.writeable = False
        self.bos = self.special["bos"]
        self.user_start = self.special["user_start"]
        self.user_end = self.special["user_end"]
        self.assistant_start = self.special["assistant_start"]
        self.assistant_end = self.special["assistant_end"]
        self.tool_call_start = self.special["tool_call_start"]
        self.tool_call_end = self.special["tool_call_end"]
        self.tool_arg = self.special["tool_arg"]
        self.tool_val = self.special["tool_val"]
        self.tool_result_start = self.special["tool_result_start"]
        self.tool_result_end = self.special["tool_result_end"]

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer in `path`: a tokenizer.json, or a directory with one.

        Raises:
            UserError: the file is missing or is not such a tokenizer.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(read_backend(file))
        except ValueError as error:
            raise UserError(f"{file}: {error}; put it through the tokenizer stage (tokenizer.path) first") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through the constructor: the backend alone would forget how it treats special tokens."""
        return _restore, (self._backend.to_str(),)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens. Lone surrogates, which are no text, count as U+FFFD."""
        ids: list[int] = self._backend.encode(_SURROGATES.sub("\ufffd", text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all the threads of the process."""
        clean = [_SURROGATES.sub("\ufffd", text) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(clean, add_special_tokens=False)]

    def raw(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; a special token gives its written form. For streaming, feed these to a decoder."""
        return b"".join(self._bytes[id_] for id_ in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; the exact inverse of `encode` for its own output."""
        return self.raw(ids).decode("utf-8", "replace")

    def is_special(self, id_: int) -> bool:
        """Whether an id is a special token: one that text can't hold."""
        return id_ in self._special_ids


def _restore(json: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json))


def read_backend(file: Path) -> tokenizers.Tokenizer:
    """The `tokenizers.Tokenizer` in a file.

    Raises:
        UserError: there is no such file, or it does not hold a tokenizer.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{file}: no such file; give the path of a tokenizer.json") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a tokenizer.json (it is not text); give a Hugging Face tokenizer.json") from None
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises the bare class
        raise UserError(f"{file}: not a tokenizer.json ({error}); give a Hugging Face tokenizer.json") from None


def raw_tokens(backend: tokenizers.Tokenizer) -> tuple[list[bytes], dict[str, int]]:
    """The raw bytes of every id, and the ids of the special tokens by their text.

    An id that no token has (some vocabularies have gaps) gets no bytes.

    Raises:
        ValueError: the vocabulary is not spelled in the byte-level alphabet, or a byte is missing.
    """
    added = backend.get_added_tokens_decoder()
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (1 + max([*vocabulary.values(), *added], default=0))
    for spelled, id_ in vocabulary.items():
        if id_ in added:
            table[id_] = added[id_].content.encode()
            continue
        raw = bytelevel.to_bytes(spelled)
        if raw is None:
            raise ValueError(f"not a byte-level tokenizer (token {spelled!r})")
        table[id_] = raw
    missing = [byte for byte, character in enumerate(bytelevel.alphabet()) if character not in vocabulary]
    if missing:
        raise ValueError(f"not a byte-level tokenizer (no token for byte {missing[0]:#04x})")
    return table, {token.content: id_ for id_, token in added.items() if token.special}
