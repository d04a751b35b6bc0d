"""Logits and gradients of the recipe `nanocode` against a second implementation, in float64.

The reference reads an export (config.json, model.safetensors) and is written after the description of
transformers' `NanoChatForCausalLM` alone. It runs on NumPy; under jax's float64 it is differentiated.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from nanocode_core.export.directory import export_directory
from nanocode_core.export.nanochat import tensors
from nanocode_core.model.gpt import GPT
from nanocode_core.tokenizer.train import train
from nanocode_core.training.objectives import next_token, packed_rows, paired_rows, preference, whole_rows

VOCABULARY = 290

Weights = dict[str, Any]
Config = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reference") / "tokenizer.json"
    train([__doc__ * 20], VOCABULARY).save(str(file))
    return file


@pytest.fixture
def export(tokenizer_file: Path, tmp_path: Path) -> Callable[[GPT], tuple[Config, Weights]]:
    """The files of an export, read as any other program would: config and float64 arrays."""

    def run(model: GPT) -> tuple[Config, Weights]:
        export_directory(model, tokenizer_file, tmp_path / "export", replace=True)
        arrays = load_file(tmp_path / "export" / "model.safetensors")
        config = json.loads((tmp_path / "export" / "config.json").read_text())
        return config, {name: array.astype(np.float64) for name, array in arrays.items()}

    return run


# The reference. `xp` is numpy or jax.numpy.


def rms(xp: Any, x: Any) -> Any:
    return x / xp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def turned(xp: Any, x: Any, places: Any, theta: float) -> Any:
    """[B, T, heads, D]: each pair (i, i + D / 2) turned clockwise by place / theta^(2 i / D)."""
    D = x.shape[-1]
    angle = places[..., None, None] / theta ** (2 * np.arange(D // 2) / D)
    a, b = x[..., : D // 2], x[..., D // 2 :]
    cos, sin = xp.cos(angle), xp.sin(angle)
    return xp.concatenate([a * cos + b * sin, b * cos - a * sin], -1)


def attended(xp: Any, config: Config, w: Weights, x: Any, places: Any, may_see: Any) -> Any:
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config["rope_parameters"]["rope_theta"]
    B, T, d = x.shape
    q, k, v = ((x @ w[f"{name}_proj.weight"].T).reshape(B, T, -1, d // heads) for name in "qkv")
    q, k = (rms(xp, turned(xp, part, places, theta)) for part in (q, k))
    k, v = (xp.repeat(part, heads // shared, axis=2) for part in (k, v))
    scores = xp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(d // heads)
    weights = xp.exp(xp.where(may_see, scores - scores.max(-1, keepdims=True), -np.inf))
    out = xp.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return out.reshape(B, T, d) @ w["o_proj.weight"].T


def reference(xp: Any, config: Config, weights: Weights, ids: Any, segments: Any = None, places: Any = None) -> Any:
    """Logits [B, T, V] of ids [B, T]."""
    T = ids.shape[1]
    places = np.arange(T)[None] if places is None else places
    may_see = np.tril(np.ones((T, T), bool))
    if segments is not None:
        may_see = may_see & (segments[:, None, :, None] == segments[:, None, None, :])
    x = rms(xp, weights["model.embed_tokens.weight"][ids])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = {n.removeprefix(f"{prefix}self_attn."): w for n, w in weights.items() if n.startswith(prefix)}
        x = x + attended(xp, config, attention, rms(xp, x), places, may_see)
        inner = xp.maximum(rms(xp, x) @ weights[f"{prefix}mlp.fc1.weight"].T, 0) ** 2
        x = x + inner @ weights[f"{prefix}mlp.fc2.weight"].T
    logits = rms(xp, x) @ weights["lm_head.weight"].T
    cap = config["final_logit_softcapping"]
    return logits if cap is None else cap * xp.tanh(logits / cap)


def surprises(xp: Any, config: Config, weights: Weights, batch: dict[str, Any]) -> Any:
    """-log p(target) [B, T], in nats."""
    logits = reference(xp, config, weights, batch["inputs"], batch.get("segments"), batch.get("positions"))
    top = logits.max(-1, keepdims=True)
    logs = logits - top - xp.log(xp.exp(logits - top).sum(-1, keepdims=True))
    return -xp.take_along_axis(logs, batch["targets"][..., None], -1)[..., 0]


# Logits


FORMS = {
    "mha": {"kv_heads": 4},
    "mha-uncapped": {"kv_heads": 4, "softcap": 0.0, "rope_theta": 100_000.0},
    "gqa": {"depth": 3, "width": 64},
    "gqa-uncapped": {"softcap": 0.0, "mlp_ratio": 3},
    "one-kv-head": {"kv_heads": 1, "softcap": 30.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_the_reference_at_any_length(
    form: str, make_model: Callable[..., GPT], export: Callable[[GPT], tuple[Config, Weights]]
) -> None:
    model = make_model(vocabulary=VOCABULARY, **FORMS[form])
    config, weights = export(model)
    forward = nnx.jit(lambda model, ids: model(ids))
    random = np.random.default_rng(1)
    for length in (1, 40, 200):  # also beyond the training context, and across blocks of attention
        ids = random.integers(0, VOCABULARY, (2, length))
        found = np.asarray(forward(model, ids))
        expected = reference(np, config, weights, ids)
        assert np.abs(expected).max() > 1
        assert np.abs(found - expected).max() < 1e-4


# Gradients


def packed_batch() -> dict[str, Any]:
    """Two rows of three segments and padding; part of the places count."""
    random = np.random.default_rng(2)
    tokens = random.integers(0, VOCABULARY, (2, 50))
    segments = np.array([[1] * 20 + [2] * 7 + [3] * 15 + [0] * 8, [1] * 5 + [2] * 30 + [3] * 15])
    starts = np.array([[0] * 20 + [20] * 7 + [27] * 15 + [42] * 8, [0] * 5 + [5] * 30 + [35] * 15])
    return packed_rows(tokens, random.integers(0, 2, tokens.shape), segments, np.arange(50) - starts)


def whole_batch() -> dict[str, Any]:
    return whole_rows(np.random.default_rng(3).integers(0, VOCABULARY, (3, 49)))


WAYS: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "scanned, small chunks": {"scan": True, "loss_places": 32},
    "recomputed": {"remat": "full"},
    "scanned, recomputed but attention": {"scan": True, "remat": "attention"},
}


def gradients(model: GPT, objective: Callable[[GPT, Any], Any], batch: Any) -> tuple[float, Weights]:
    """Loss, and its gradients by the names and in the layouts of the export."""
    graph, params = nnx.split(model, nnx.Param)
    run = jax.jit(jax.value_and_grad(lambda params: objective(nnx.merge(graph, params), batch)[0]))
    loss, found = run(params)
    return float(loss), tensors(nnx.merge(graph, found), "float32")


def in_float64(loss: Callable[[Weights], Any], weights: Weights) -> tuple[float, Weights]:
    """The reference's loss and gradients."""
    with jax.enable_x64(True):
        value, found = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, weights))
        assert value.dtype == jnp.float64
        return float(value), {name: np.asarray(array) for name, array in found.items()}


def assert_close(found: Weights, expected: Weights) -> None:
    """Every element within 1e-5 of the largest of its array."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert scale > 0, name
        assert np.abs(found[name] - array).max() < 1e-5 * scale, name


@pytest.mark.parametrize(
    ("batch", "ways"), [(packed_batch(), list(WAYS)), (whole_batch(), list(WAYS)[:2])], ids=["packed", "whole"]
)
def test_gradients_equal_the_reference_in_every_way_of_computing(
    batch: dict[str, Any],
    ways: list[str],
    make_model: Callable[..., GPT],
    export: Callable[[GPT], tuple[Config, Weights]],
) -> None:
    model = make_model(vocabulary=VOCABULARY)
    config, weights = export(model)
    loss, expected = in_float64(lambda w: (batch["weights"] * surprises(jnp, config, w, batch)).sum(), weights)
    backend = model.backend
    for way in ways:
        model.backend = dataclasses.replace(backend, **WAYS[way])
        value, found = gradients(model, next_token, batch)
        assert value == pytest.approx(loss, rel=1e-5), way
        assert_close(found, expected)


def test_gradients_of_preferences_equal_the_reference(
    make_model: Callable[..., GPT], export: Callable[[GPT], tuple[Config, Weights]]
) -> None:
    random = np.random.default_rng(4)
    sides = random.integers(0, VOCABULARY, (2, 3, 40))
    masks = random.integers(0, 2, (2, 3, 40))
    rows = paired_rows(sides[0], masks[0], sides[1], masks[1]) | {"reference": random.normal(size=(3, 2)) - 100}
    model = make_model(vocabulary=VOCABULARY)
    config, weights = export(model)
    flat = {name: rows[name].reshape(6, 39) for name in ("inputs", "targets", "weights")}

    def expected_loss(w: Weights) -> Any:
        logs = -(flat["weights"] * surprises(jnp, config, w, flat)).sum(-1).reshape(3, 2) - rows["reference"]
        return (((logs[:, 0] - logs[:, 1]) - 1 / (2 * 0.1)) ** 2).mean()

    loss, expected = in_float64(expected_loss, weights)
    value, found = gradients(model, preference("ipo", 0.1), rows | {"reference": rows["reference"].astype(np.float32)})
    assert value == pytest.approx(loss, rel=1e-4)
    assert_close(found, expected)


def test_gradients_predict_how_the_loss_changes(
    make_model: Callable[..., GPT], export: Callable[[GPT], tuple[Config, Weights]]
) -> None:
    """No automatic differentiation on the other side: NumPy's losses a small step apart."""
    model = make_model(vocabulary=VOCABULARY, kv_heads=4)
    config, weights = export(model)
    batch = packed_batch()
    _, found = gradients(model, next_token, batch)

    def loss(moved: Weights) -> float:
        return float((batch["weights"].astype(np.float64) * surprises(np, config, moved, batch)).sum())

    random = np.random.default_rng(5)
    for name, array in weights.items():
        direction = random.normal(size=array.shape)
        direction /= np.linalg.norm(direction)
        ahead, behind = (loss({**weights, name: array + step * direction}) for step in (1e-5, -1e-5))
        slope = (ahead - behind) / 2e-5
        allowed = 1e-6 * float(np.linalg.norm(found[name]))
        assert slope == pytest.approx(float((found[name] * direction).sum()), abs=allowed), name
