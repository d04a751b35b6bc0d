from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nanocode_core.data.packing import Tally, pack

BOS = 0
lengths = st.lists(st.integers(0, 70), max_size=60)


def numbered_documents(sizes: list[int]) -> list[np.ndarray]:
    """Documents whose ids, from 1 on, occur once in all of them together."""
    starts = np.cumsum([1, *sizes])
    return [np.arange(start, start + size, dtype=np.uint16) for start, size in zip(starts, sizes, strict=False)]


@settings(max_examples=200)
@given(sizes=lengths, row=st.integers(2, 40), buffer=st.integers(1, 12))
def test_every_token_is_packed_once_or_counted(sizes: list[int], row: int, buffer: int):
    documents, tally = numbered_documents(sizes), Tally()
    rows = list(pack(documents, row, BOS, tally, buffer))
    assert all(len(packed) == row and packed[0] == BOS for packed in rows)
    assert all(packed.dtype == np.uint16 for packed in rows)
    counts = Counter(np.concatenate([*rows, np.empty(0, np.uint16)]).tolist())
    assert all(count == 1 for id_, count in counts.items() if id_ != BOS)
    pieces = sum(max(1, -(-size // (row - 1))) for size in sizes)
    assert tally.packed + tally.cropped + tally.unfinished == sum(sizes) + pieces
    assert (tally.documents, tally.rows, tally.packed) == (len(sizes), len(rows), len(rows) * row)
    assert tally.unfinished < row


@given(sizes=lengths, row=st.integers(2, 40), buffer=st.integers(1, 12))
def test_between_two_bos_lies_the_text_of_one_document(sizes: list[int], row: int, buffer: int):
    document_of = {int(id_): n for n, ids in enumerate(numbered_documents(sizes)) for id_ in ids}
    for packed in pack(numbered_documents(sizes), row, BOS, Tally(), buffer):
        for part in np.split(packed, np.flatnonzero(packed == BOS))[1:]:
            text = part[1:].tolist()
            assert text == list(range(text[0], text[0] + len(text))) if text else True
            assert len({document_of[id_] for id_ in text}) <= 1


@given(sizes=lengths, row=st.integers(2, 40), buffer=st.integers(1, 12))
def test_rows_are_filled_as_a_search_by_hand_would(sizes: list[int], row: int, buffer: int):
    waiting: list[list[int]] = []
    for document in numbered_documents(sizes):
        ids = document.tolist()
        waiting += [[BOS, *ids[start : start + row - 1]] for start in range(0, max(1, len(ids)), row - 1)]
    expected = []
    filled: list[int] = []
    while waiting:
        seen = waiting[:buffer]
        fitting = [piece for piece in seen if len(piece) <= row - len(filled)]
        # the first of the longest that fit, else the last of the shortest
        best = max(fitting, key=len) if fitting else min(reversed(seen), key=len)
        waiting.remove(best)
        filled += best[: row - len(filled)]
        if len(filled) == row:
            expected.append(filled)
            filled = []
    assert [packed.tolist() for packed in pack(numbered_documents(sizes), row, BOS, Tally(), buffer)] == expected


def test_long_files_lose_almost_nothing():
    sizes = np.random.default_rng(0).integers(100, 20_000, 200).tolist()
    documents = [np.ones(size, np.uint16) for size in sizes]
    tally = Tally()
    for _ in pack(documents, 513, BOS, tally):
        pass
    assert tally.cropped < 0.05 * tally.packed
