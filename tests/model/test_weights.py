import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanocode_core.errors import UserError
from nanocode_core.model.gpt import GPT
from nanocode_core.model.weights import load_model, named_arrays, save_model


def test_a_saved_model_comes_back_and_saves_to_the_same_bytes(
    model: GPT, tmp_path: Path, logits_of: Callable[[GPT, list[int]], np.ndarray]
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    save_model(model, first)
    again = load_model(first)
    save_model(again, second)
    assert again.shape == model.shape
    for file in ("model.safetensors", "model.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    tokens = list(range(30))
    assert np.array_equal(logits_of(model, tokens), logits_of(again, tokens))


def test_names_are_the_documented_ones(make_model: Callable[..., GPT]) -> None:
    matrices = {f"blocks.0.{name}" for name in ("query", "key", "value", "output", "up", "down")}
    assert set(named_arrays(make_model(depth=1))) == {"embedding", "head", *matrices}


def test_a_missing_file_and_a_wrong_array_are_named(model: GPT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model(tmp_path)
    save_model(model, tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    del arrays["blocks.1.up"]
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"blocks\.1\.up should be \(32, 128\), found nothing"):
        load_model(tmp_path)


def test_another_format_is_refused(model: GPT, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    fields = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**fields, "format": 99}))
    with pytest.raises(UserError, match="format"):
        load_model(tmp_path)
