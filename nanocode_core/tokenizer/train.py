"""Training a byte-level BPE tokenizer.

Text is split by GPT-4's pattern, with numbers in groups of at most two digits, and merges never
cross a split. All 256 bytes are in the vocabulary, so every text can be encoded. Equal texts give
equal files: merges are ordered by count, ties by the ids of the pair.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nanocode_core.tokenizer.bytelevel import alphabet
from nanocode_core.tokenizer.tokenizer import SPECIAL_NAMES, special_text

SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+"  # a word, with one character (mostly the space) before it
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*"  # punctuation, with the line ends after it
    r"|\s*[\r\n]"
    r"|\s+(?!\S)"  # white space up to the last one, which belongs to the next word
    r"|\s+"
)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train on texts; `vocabulary` counts special tokens (ids from 0) and bytes.

    The result has fewer tokens where the texts hold fewer different pairs.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[special_text(name) for name in SPECIAL_NAMES],
        initial_alphabet=list(alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend
