import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from nanocode_core.errors import UserError
from nanocode_core.tokenizer import SPECIAL_NAMES, Tokenizer, special_text
from nanocode_core.tokenizer.bytelevel import alphabet, to_bytes
from nanocode_core.tokenizer.train import train

specials = st.sampled_from([special_text(name) for name in SPECIAL_NAMES])
wild = st.lists(st.one_of(st.text(), specials, st.sampled_from(["\n", "    ", "→", "\r\n", "<|", "|>", "12345"]))).map(
    "".join
)


@given(text=wild)
def test_text_comes_back_byte_for_byte(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.raw(ids) == text.encode()
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(text=wild)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str):
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert not any(tokenizer.is_special(id_) for id_ in ids)


@given(texts=st.lists(wild, max_size=5))
def test_a_batch_is_the_single_encodings(tokenizer: Tokenizer, texts: list[str]):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(ids=st.lists(st.integers(0, 999)))
def test_any_ids_can_be_shown(tokenizer: Tokenizer, ids: list[int]):
    assert tokenizer.decode(ids) == tokenizer.raw(ids).decode("utf-8", "replace")


def test_lone_surrogates_count_as_replacement_characters(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\udce4b")) == "a\ufffdb"
    assert tokenizer.encode_batch(["a\udce4b"]) == [tokenizer.encode("a\ufffdb")]


def test_special_tokens_have_fixed_ids_and_no_bytes(tokenizer: Tokenizer):
    assert tokenizer.special == {name: id_ for id_, name in enumerate(SPECIAL_NAMES)}
    assert all(getattr(tokenizer, name) == id_ for name, id_ in tokenizer.special.items())
    assert np.flatnonzero(tokenizer.token_bytes == 0).tolist() == list(range(len(SPECIAL_NAMES)))
    assert tokenizer.vocabulary == len(tokenizer.token_bytes) == 1_000


def test_numbers_split_into_at_most_two_digits():
    numbers = Tokenizer(train(["2026 1234567 42"] * 10, 400))
    pieces = [numbers.decode([id_]) for id_ in numbers.encode("2026 1234567 42")]
    assert pieces == ["20", "26", " ", "12", "34", "56", "7", " ", "42"]


def test_the_alphabet_is_the_one_of_the_tokenizers_library():
    assert sorted(alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert to_bytes("".join(alphabet())) == bytes(range(256))
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "naïve → 你好 \x00\x7f\xad"
    assert b"".join(to_bytes(token) or b"" for token in backend.encode(text).tokens) == text.encode()


def test_a_pickled_tokenizer_treats_special_tokens_alike(tokenizer: Tokenizer):
    text = "say <|bos|> <|assistant_start|>"
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_load_takes_a_folder_or_a_file(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(path).encode("def f(): <|bos|>") == tokenizer.encode("def f(): <|bos|>")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{}", b"hello", json.dumps({"version": "1.0"}).encode()])
def test_load_names_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes | None):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        Tokenizer.load(file)


def test_load_refuses_a_tokenizer_without_bytes_or_special_tokens(tmp_path: Path):
    words = Backend(models.WordLevel({"hällo": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(UserError, match="not a byte-level tokenizer"):
        Tokenizer.load(tmp_path / "words.json")
    Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet())}, merges=[])).save(str(tmp_path / "bytes.json"))
    with pytest.raises(UserError, match=re.escape("<|bos|> is missing")):
        Tokenizer.load(tmp_path / "bytes.json")
