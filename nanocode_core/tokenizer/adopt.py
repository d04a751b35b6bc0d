"""Making a tokenizer that the user brings fit for conversations.

What may stay: any byte-level BPE (GPT-2, GPT-4, Llama 3, Qwen and their like), with its ids. What is
changed: missing special tokens are added behind the last id; a normalizer, which would not give
text back byte for byte, goes; so do template, padding, truncation and dropout.
"""

import json
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from nanocode_core.errors import UserError
from nanocode_core.tokenizer.tokenizer import SPECIAL_NAMES, Tokenizer, read_backend, special_text

_PROBE = (
    "a  b\n\n\tc 'LL 1234567 \x00\r\n na\u00efve cafe\u0301 \u2126 \ufb01 \u4f60 \U0001f9d1\u200d\U0001f680 <|bos|> "
)


def adopt(file: Path) -> Backend:
    """The user's tokenizer with the special tokens of the conversation format.

    Raises:
        UserError: the file is not a tokenizer, not a byte-level one, or alters text.
    """
    fields = json.loads(read_backend(file).to_str())
    fields.update(normalizer=None, post_processor=None, padding=None, truncation=None)
    if "dropout" in fields["model"]:
        fields["model"]["dropout"] = None
    ours = {special_text(name) for name in SPECIAL_NAMES}
    for token in fields["added_tokens"]:
        token.update(lstrip=False, rstrip=False)
        token["special"] = token["special"] or token["content"] in ours
    backend = Backend.from_str(json.dumps(fields))
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [special_text(name) for name in SPECIAL_NAMES if special_text(name) not in present]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])
    try:
        tokenizer = Tokenizer(backend)
    except ValueError as error:
        raise UserError(f"tokenizer.path: {file}: {error}; bring a byte-level BPE tokenizer, or leave it out") from None
    if tokenizer.decode(tokenizer.encode(_PROBE)) != _PROBE:
        raise UserError(f"tokenizer.path: {file}: does not give text back unchanged; bring another, or leave it out")
    return backend
