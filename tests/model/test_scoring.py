import math

import jax
import numpy as np
import pytest

from nanocode_core.model import scoring
from nanocode_core.model.gpt import GPT
from nanocode_core.model.scoring import bits_per_byte, sequence_logprobs, slices


def batch(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 97, (rows, 33)).astype(np.int32)
    weights = (random.random((rows, 32)) < 0.5).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def direct(model: GPT, data: dict[str, np.ndarray]) -> np.ndarray:
    log = np.asarray(jax.nn.log_softmax(model(data["inputs"])), np.float64)
    return np.take_along_axis(log, data["targets"][..., None], axis=-1)[..., 0]


def test_bits_per_byte_against_its_definition(model: GPT) -> None:
    data = batch(5)
    token_bytes = np.random.default_rng(1).integers(0, 6, 97).astype(np.int32)
    sizes = token_bytes[data["targets"]] * (data["weights"] != 0)
    expected = -direct(model, data)[sizes > 0].sum() / math.log(2) / sizes.sum()
    assert bits_per_byte(model, [data], token_bytes) == pytest.approx(expected, rel=1e-5)


def test_slices_do_not_change_a_result(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(5)
    token_bytes = np.ones(97, np.int32)
    whole = bits_per_byte(model, [data], token_bytes)
    monkeypatch.setattr(scoring, "CPU_TOKENS", 64)
    pieces = list(slices(data))
    assert [len(piece["inputs"]) for piece in pieces] == [2, 2, 2]
    assert bits_per_byte(model, pieces, token_bytes) == pytest.approx(whole, rel=1e-5)


def test_sequence_logprobs_are_the_sums_of_the_weighted_targets(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CPU_TOKENS", 64)
    data = batch(5)
    expected = (direct(model, data) * data["weights"]).sum(axis=1)
    assert sequence_logprobs(model, data) == pytest.approx(expected, rel=1e-4)
