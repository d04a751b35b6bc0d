"""How well a model predicts given text: losses per token, bits per byte, log-probabilities of sequences.

All work on prediction batches, mappings of arrays [B, T]: `inputs` and `targets` (ids), `weights`
(0: not counted), and for packed rows `segments` and `positions`. Sums are taken on the host in
float64 in the order of the batches, so a result depends only on the model and the batches.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from nanocode_core.model.gpt import GPT
from nanocode_core.model.head import token_losses

Batch = Mapping[str, Any]

CPU_TOKENS = 2048
ACCELERATOR_TOKENS = 32_768
"""Tokens scored at once."""


@nnx.jit
def losses(model: GPT, batch: Batch) -> Array:
    """-log p in nats of every target with a weight, else 0: [B, T] float32."""
    hidden = model.hidden(batch["inputs"], batch.get("segments"), batch.get("positions"))
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets, weights = batch["targets"].reshape(-1), batch["weights"].reshape(-1)
    found = token_losses(flat, model.head[...], targets, weights, model.shape.softcap, model.backend)
    return found.reshape(batch["inputs"].shape)


def bits_per_byte(model: GPT, batches: Iterable[Batch], token_bytes: NDArray[np.int32]) -> float:
    """Bits the model needs per byte of the text behind the weighted targets.

    Unlike the loss per token it does not depend on the tokenizer. Special tokens stand for no text
    and count on neither side.

    Args:
        model: the model.
        batches: prediction batches.
        token_bytes: [V] bytes of each id's text, 0 for special tokens.
    """
    nats, length = 0.0, 0
    for batch in batches:
        size = token_bytes[batch["targets"]] * (np.asarray(batch["weights"]) != 0)
        nats += float(np.sum(np.asarray(losses(model, dict(batch)), np.float64)[size > 0]))
        length += int(size.sum())
    return nats / math.log(2) / max(1, length)


def sequence_logprobs(model: GPT, batch: Batch) -> NDArray[np.float64]:
    """Summed log-probability of the weighted targets of each row: [N] nats, at most 0."""
    parts = [-np.sum(np.asarray(losses(model, part), np.float64), axis=1) for part in slices(batch)]
    return np.concatenate(parts)[: len(batch["inputs"])]


def slices(batch: Batch) -> Iterator[dict[str, NDArray[Any]]]:
    """A large batch in pieces of one shape (so that one program serves all), filled up with rows of weight 0."""
    count, length = batch["inputs"].shape
    budget = CPU_TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_TOKENS
    size = max(1, budget // length)
    for start in range(0, count, size):
        part = {name: np.asarray(array[start : start + size]) for name, array in batch.items()}
        missing = size - len(part["inputs"])
        yield {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in part.items()}
