"""Conversations for supervised fine-tuning, packed whole into rows.

Best-fit decreasing: conversations from the longest to the shortest, each into the fullest row that
still holds it. None is cut: one longer than a row is dropped and counted. In a row, conversations
are numbered from 1 in `segments`; attention stays inside a segment, and `positions` start anew with
each. What is left of a row is padding: segment 0, mask 0, position 0. Padding attends to itself only,
so no attention row is empty.
"""

import json
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from nanocode_core.data.permutation import batch_rows, steps
from nanocode_core.errors import UserError
from nanocode_core.tokenizer import Conversation, Tokenizer, from_json, render


@dataclass(frozen=True)
class ConversationBatch:
    """Rows of conversations, all arrays [B, T + 1].

    Inputs are [:, :-1], targets [:, 1:]; the loss of a target counts where its `mask` is 1.
    """

    tokens: np.ndarray  # int32
    mask: np.ndarray  # int8, 1 where the model has to predict this token
    segments: np.ndarray  # int32, conversation in the row from 1; 0: padding
    positions: np.ndarray  # int32, from 0 in each conversation


@dataclass(frozen=True)
class PackedConversations:
    """All rows, and how many conversations are in them; `dropped` were longer than a row."""

    rows: ConversationBatch
    conversations: int
    dropped: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows.tokens)

    def steps(self, epochs: float, batch_sequences: int) -> int:
        """Steps that see every row `epochs` times."""
        return steps(epochs, batch_sequences, self.count)

    def batch(self, step: int, batch_sequences: int, seed: int) -> ConversationBatch:
        """The rows of a step, a pure function of the arguments; each epoch has an order of its own."""
        chosen = batch_rows(step, batch_sequences, self.count, seed)
        rows = self.rows
        return ConversationBatch(rows.tokens[chosen], rows.mask[chosen], rows.segments[chosen], rows.positions[chosen])


def read_conversations(file: Path) -> list[Conversation]:
    """The conversations of a rollouts parquet file (column `conversation`, JSON text).

    Raises:
        UserError: a conversation can't be read; the message names file and row.
    """
    conversations = []
    for number, text in enumerate(pq.read_table(file, columns=["conversation"]).column(0).to_pylist()):
        try:
            conversations.append(from_json(json.loads(text)))
        except ValueError as error:
            raise UserError(f"{file}: row {number}: {error}; make the synthetic data again") from None
    return conversations


def pack_conversations(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, sequence: int
) -> PackedConversations:
    """Pack conversations into rows of sequence + 1 tokens.

    Raises:
        UserError: not one of them fits into a row.
    """
    length = sequence + 1
    rendered = [render(conversation, tokenizer) for conversation in conversations]
    fitting = [pair for pair in rendered if len(pair[0]) <= length]
    if not fitting:
        raise UserError(
            f"no conversation of {len(rendered)} fits into model.sequence ({sequence}) tokens; raise model.sequence"
        )
    bins = best_fit_decreasing([len(ids) for ids, _ in fitting], length)
    shape = (len(bins), length)
    tokens = np.full(shape, tokenizer.bos, np.int32)
    mask, segments, positions = np.zeros(shape, np.int8), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, members in enumerate(bins):
        start = 0
        for segment, member in enumerate(members, 1):
            ids, loss = fitting[member]
            here = slice(start, start + len(ids))
            tokens[row, here], mask[row, here], segments[row, here] = ids, loss, segment
            positions[row, here] = np.arange(len(ids))
            start += len(ids)
    rows = ConversationBatch(tokens, mask, segments, positions)
    return PackedConversations(rows, len(fitting), len(rendered) - len(fitting))


def best_fit_decreasing(lengths: Sequence[int], space: int) -> list[list[int]]:
    """Bins of at most `space`, as indices into lengths; no length may be above `space`."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free space, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        place = bisect_left(room, (lengths[item], -1))
        if place < len(room):
            free, chosen = room.pop(place)
        else:
            free, chosen = space, len(bins)
            bins.append([])
        bins[chosen].append(item)
        insort(room, (free - lengths[item], chosen))
    return bins
