"""Pair accuracy: how often a model finds the accepted rollout more likely than the draft it replaced.

Compared are summed log-probabilities of the assistant's tokens, without a reference model, so that
the figure says something about every model, the base model included.
"""

from pathlib import Path

import numpy as np

from nanocode_core.data.preferences import encode_pairs, read_pairs
from nanocode_core.evals.rates import Rate, rate
from nanocode_core.model.gpt import GPT
from nanocode_core.tokenizer import Tokenizer
from nanocode_core.training.dpo import pair_logprobs


def pair_accuracy(model: GPT, file: Path, tokenizer: Tokenizer) -> Rate:
    """The share of the pairs in a parquet file whose chosen side the model prefers; a tie counts as not."""
    pairs = encode_pairs(read_pairs(file), tokenizer, model.shape.sequence)
    logprobs = pair_logprobs(model, pairs)
    return rate(int(np.sum(logprobs[:, 0] > logprobs[:, 1])), pairs.count)
