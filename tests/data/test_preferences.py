import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode_core.data.preferences import Pair, encode_pairs, read_pairs
from nanocode_core.errors import UserError
from nanocode_core.tokenizer import Conversation, Tokenizer, ToolCall, Turn, render_prompt, to_json, turn_to_json

PROMPT = Conversation(
    (
        Turn("user", "mend a.py"),
        Turn("assistant", "Reading.", ToolCall("Read", {"file_path": "a.py"})),
        Turn("tool", "x"),
    ),
    system="Be kind.",
)


def said(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant", text) for text in texts)


def pairs(count: int) -> list[Pair]:
    return [
        Pair(PROMPT, said("Done. " * (n + 1)), (*said("Sure!"), Turn("user", "and?"), *said("no")))
        for n in range(count)
    ]


def test_the_mask_covers_the_assistant_tokens_after_the_prompt(tokenizer: Tokenizer):
    encoded = encode_pairs(pairs(3), tokenizer, 512)
    prompt = render_prompt(PROMPT, tokenizer)
    arrays = encoded.pairs
    for row in range(3):
        chosen, rejected = arrays.chosen[row], arrays.rejected[row]
        assert chosen[: len(prompt)].tolist() == rejected[: len(prompt)].tolist() == prompt
        assert tokenizer.decode(chosen[arrays.chosen_mask[row] == 1]) == "Done. " * (row + 1) + "<|assistant_end|>"
        assert tokenizer.decode(rejected[arrays.rejected_mask[row] == 1]) == "Sure!<|assistant_end|>no<|assistant_end|>"


def test_all_sides_have_one_length(tokenizer: Tokenizer):
    arrays = encode_pairs(pairs(20), tokenizer, 512).pairs
    lengths = {array.shape for array in (arrays.chosen, arrays.chosen_mask, arrays.rejected, arrays.rejected_mask)}
    assert len(lengths) == 1
    (_, length) = lengths.pop()
    assert length % 64 == 1
    longest = max(int(mask.nonzero()[0][-1]) + 1 for mask in [*arrays.chosen_mask, *arrays.rejected_mask])
    assert longest <= length < longest + 64
    assert encode_pairs(pairs(20), tokenizer, longest - 1).pairs.chosen.shape[1] == longest


def test_pairs_that_will_not_do_are_dropped_and_counted(tokenizer: Tokenizer):
    good = pairs(1)
    bad = [
        Pair(PROMPT, said("x " * 500), said("y")),
        Pair(PROMPT, said("y"), said("x " * 500)),
        Pair(PROMPT, said("y"), (Turn("user", "hm"),)),
        Pair(PROMPT, (), said("y")),
        Pair(PROMPT, said("same"), said("same")),
    ]
    encoded = encode_pairs([*bad, *good], tokenizer, 300)
    assert (encoded.too_long, encoded.without_assistant, encoded.identical) == (2, 2, 1)
    assert (encoded.count, encoded.dropped) == (1, 5)
    with pytest.raises(UserError, match=r"2 too long .* 2 without assistant tokens, 1 identical"):
        encode_pairs(bad, tokenizer, 300)


def test_batches_are_pure_and_epochs_complete(tokenizer: Tokenizer):
    encoded = encode_pairs(pairs(10), tokenizer, 512)
    assert encoded.steps(1.0, 4) == 3
    stream = [row for step in range(3) for row in encoded.batch(step, 4, 1).chosen.tolist()]
    assert sorted(stream[:10]) == sorted(encoded.pairs.chosen.tolist())
    one, two = encoded.batch(2, 4, 1), encode_pairs(pairs(10), tokenizer, 512).batch(2, 4, 1)
    assert (one.chosen == two.chosen).all()
    assert (one.rejected_mask == two.rejected_mask).all()


def test_reading_pairs(tmp_path: Path):
    def row(pair: Pair) -> dict[str, str]:
        sides = {
            side: json.dumps([turn_to_json(turn) for turn in getattr(pair, side)]) for side in ("chosen", "rejected")
        }
        return {"id": "1", "prompt": json.dumps(to_json(pair.prompt)), **sides}

    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([row(pair) for pair in pairs(5)]), file)
    assert read_pairs(file) == pairs(5)
    for bad in ("nonsense", "3", '[{"role": "user"}]'):
        pq.write_table(pa.Table.from_pylist([{**row(pairs(1)[0]), "chosen": bad}]), file)
        with pytest.raises(UserError, match=r"pairs\.parquet: row 0"):
            read_pairs(file)
