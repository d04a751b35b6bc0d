"""Preference pairs for DPO: two continuations of one conversation, side by side.

A pair is a prompt and two lists of turns that go on from it. Each side is rendered whole; the mask
covers the assistant tokens of the continuation only, as the prompt is the same on both sides. All
sides are filled up on the right to one length, so that one shape compiles. A pair is dropped, and
counted, when a side is longer than the training context, a side has no assistant tokens, or both
sides are the same.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from nanocode_core.data.permutation import batch_rows, steps
from nanocode_core.errors import UserError
from nanocode_core.tokenizer import Conversation, Tokenizer, Turn, from_json, render, turn_from_json

_ROUND = 64
"""The common length is a multiple of this, and one more for the shift to targets."""


@dataclass(frozen=True)
class Pair:
    """A preference: the conversation up to the point of difference, and the turns after it."""

    prompt: Conversation
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]


@dataclass(frozen=True)
class PairBatch:
    """Pairs as arrays [B, L]; masks are 1 on the tokens whose log-probability counts."""

    chosen: np.ndarray  # int32
    chosen_mask: np.ndarray  # int8
    rejected: np.ndarray  # int32
    rejected_mask: np.ndarray  # int8


@dataclass(frozen=True)
class PreferencePairs:
    """All pairs, and how many were dropped for what."""

    pairs: PairBatch
    too_long: int
    without_assistant: int
    identical: int

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.pairs.chosen)

    @property
    def dropped(self) -> int:
        """Number of pairs left out."""
        return self.too_long + self.without_assistant + self.identical

    def steps(self, epochs: float, batch_pairs: int) -> int:
        """Steps that see every pair `epochs` times."""
        return steps(epochs, batch_pairs, self.count)

    def batch(self, step: int, batch_pairs: int, seed: int) -> PairBatch:
        """The pairs of a step, a pure function of the arguments; each epoch has an order of its own."""
        rows = batch_rows(step, batch_pairs, self.count, seed)
        pairs = self.pairs
        return PairBatch(pairs.chosen[rows], pairs.chosen_mask[rows], pairs.rejected[rows], pairs.rejected_mask[rows])


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a parquet file (columns prompt, chosen, rejected: JSON text).

    Raises:
        UserError: a pair can't be read; the message names file and row.
    """
    pairs = []
    for number, row in enumerate(pq.read_table(file, columns=["prompt", "chosen", "rejected"]).to_pylist()):
        try:
            sides = [tuple(turn_from_json(turn) for turn in json.loads(row[side])) for side in ("chosen", "rejected")]
            pairs.append(Pair(from_json(json.loads(row["prompt"])), sides[0], sides[1]))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: row {number}: {error}; make the synthetic data again") from None
    return pairs


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, sequence: int) -> PreferencePairs:
    """Pairs as arrays of one length: the longest kept side, rounded up, at most sequence + 1.

    Raises:
        UserError: no pair is left.
    """
    kept: list[tuple[_Side, _Side]] = []
    too_long = without_assistant = identical = 0
    for pair in pairs:
        sides = _render(pair.prompt, pair.chosen, tokenizer), _render(pair.prompt, pair.rejected, tokenizer)
        if max(len(ids) for ids, _ in sides) > sequence + 1:
            too_long += 1
        elif not all(any(mask) for _, mask in sides):
            without_assistant += 1
        elif sides[0] == sides[1]:
            identical += 1
        else:
            kept.append(sides)
    if not kept:
        raise UserError(
            f"no preference pair is left: {too_long} too long for model.sequence ({sequence}), {without_assistant}"
            f" without assistant tokens, {identical} identical; raise model.sequence or synthetic.rollouts"
        )
    longest = max(len(ids) for sides in kept for ids, _ in sides)
    length = min(sequence, -(-(longest - 1) // _ROUND) * _ROUND) + 1
    chosen = _stack([sides[0] for sides in kept], length, tokenizer.bos)
    rejected = _stack([sides[1] for sides in kept], length, tokenizer.bos)
    return PreferencePairs(PairBatch(*chosen, *rejected), too_long, without_assistant, identical)


_Side = tuple[list[int], list[int]]


def _render(prompt: Conversation, turns: tuple[Turn, ...], tokenizer: Tokenizer) -> _Side:
    """Ids of prompt and turns, and the mask of the turns' assistant tokens."""
    ids, mask = render(Conversation(prompt.turns + turns, prompt.system), tokenizer)
    start = len(render(prompt, tokenizer)[0])
    return ids, [0] * start + mask[start:]


def _stack(sides: list[_Side], length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N, length], filled up on the right, and masks."""
    tokens, mask = np.full((len(sides), length), fill, np.int32), np.zeros((len(sides), length), np.int8)
    for row, (ids, loss) in enumerate(sides):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, loss
    return tokens, mask
