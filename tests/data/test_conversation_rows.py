import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanocode_core.data.conversations import best_fit_decreasing, pack_conversations, read_conversations
from nanocode_core.errors import UserError
from nanocode_core.tokenizer import Conversation, Tokenizer, ToolCall, Turn, render, to_json

SEQUENCE = 96


def conversation(seed: int) -> Conversation:
    draw = random.Random(seed)

    def words() -> str:
        return " ".join(draw.choices(["mend", "the", "file", "a.py", "line 42", "naïve"], k=draw.randint(1, 10)))

    turns = [Turn("user", words()), Turn("assistant", words(), ToolCall("Read", {"file_path": words()}))]
    turns += [Turn("tool", words()), Turn("assistant", words())] * draw.randint(1, 2)
    return Conversation(tuple(turns), system=words())


CONVERSATIONS = [conversation(seed) for seed in range(60)]


@given(lengths=st.lists(st.integers(1, 50), max_size=80), space=st.integers(50, 90))
def test_bins_hold_each_item_once_and_overflow_never(lengths: list[int], space: int):
    bins = best_fit_decreasing(lengths, space)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    fills = [sum(lengths[item] for item in members) for members in bins]
    assert all(0 < fill <= space for fill in fills)
    assert sum(2 * fill <= space for fill in fills) <= 1  # two such bins would have been one


def test_rows_hold_whole_conversations_with_mask_and_positions(tokenizer: Tokenizer):
    packed = pack_conversations(CONVERSATIONS, tokenizer, SEQUENCE)
    rows = packed.rows
    assert rows.tokens.shape == rows.mask.shape == rows.segments.shape == rows.positions.shape
    assert rows.tokens.shape == (packed.count, SEQUENCE + 1)
    found = Counter()
    for row in range(packed.count):
        for segment in range(1, rows.segments[row].max() + 1):
            here = rows.segments[row] == segment
            assert (np.diff(np.flatnonzero(here)) == 1).all()
            assert rows.positions[row, here].tolist() == list(range(here.sum()))
            found[tuple(rows.tokens[row, here].tolist()), tuple(rows.mask[row, here].tolist())] += 1
    rendered = [render(one, tokenizer) for one in CONVERSATIONS]
    fitting = [(tuple(ids), tuple(mask)) for ids, mask in rendered if len(ids) <= SEQUENCE + 1]
    assert 0 < len(fitting) < len(rendered)
    assert found == Counter(fitting)
    assert (packed.conversations, packed.dropped) == (len(fitting), len(rendered) - len(fitting))


def test_padding_is_segment_zero_and_never_learnt(tokenizer: Tokenizer):
    rows = pack_conversations(CONVERSATIONS, tokenizer, SEQUENCE).rows
    padding = rows.segments == 0
    assert padding.any()
    assert not rows.mask[padding].any()
    assert not rows.positions[padding].any()
    assert not (np.diff(padding.astype(int), axis=1) < 0).any()  # only at the end of a row


def test_no_target_with_loss_lies_across_a_boundary(tokenizer: Tokenizer):
    rows = pack_conversations(CONVERSATIONS, tokenizer, SEQUENCE).rows
    crossing = rows.segments[:, 1:] != rows.segments[:, :-1]
    assert crossing.any()
    assert not rows.mask[:, 1:][crossing].any()


def test_batches_are_pure_and_epochs_complete(tokenizer: Tokenizer):
    packed, again = (pack_conversations(CONVERSATIONS, tokenizer, SEQUENCE) for _ in range(2))
    size = 4
    assert packed.steps(1.0, size) == -(-packed.count // size)
    assert packed.steps(2.5, size) == -(-5 * packed.count // (2 * size))
    stream = np.concatenate([packed.batch(step, size, 9).tokens for step in range(packed.steps(1.0, size))])
    assert sorted(map(tuple, stream[: packed.count].tolist())) == sorted(map(tuple, packed.rows.tokens.tolist()))
    for step in (5, 0, 3):
        one, two = packed.batch(step, size, 9), again.batch(step, size, 9)
        for name in ("tokens", "mask", "segments", "positions"):
            assert (getattr(one, name) == getattr(two, name)).all()


def test_nothing_that_fits_is_the_users_error(tokenizer: Tokenizer):
    with pytest.raises(UserError, match=r"model\.sequence \(8\)"):
        pack_conversations(CONVERSATIONS, tokenizer, 8)


def test_reading_rollouts(tmp_path: Path):
    file = tmp_path / "rollouts.parquet"
    rows = [{"id": str(n), "conversation": json.dumps(to_json(one))} for n, one in enumerate(CONVERSATIONS)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert read_conversations(file) == CONVERSATIONS
    pq.write_table(pa.Table.from_pylist([rows[0], {"id": "x", "conversation": '{"turns": 1}'}]), file)
    with pytest.raises(UserError, match=r"rollouts\.parquet: row 1: .*turns"):
        read_conversations(file)
