"""The forward pass of both recipes in float64, written from their definition: what the model is held against."""

import math

import numpy as np

from nanocode_core.model.gpt import GPT
from nanocode_core.model.weights import named_arrays


def reference_logits(model: GPT, tokens: np.ndarray) -> np.ndarray:
    """The forward pass of one row, [T] -> [T, V], in float64, feature by feature."""
    shape = model.shape
    p = {name: np.asarray(array, np.float64) for name, array in named_arrays(model).items()}
    T, H, D = len(tokens), shape.heads, shape.head_size

    def n(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    angles = np.arange(T)[:, None] * shape.rope_theta ** (-np.arange(D // 2) / (D // 2))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turn(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)

    x = n(p["embedding"][tokens])
    if shape.smear:
        gate = p["smear_scale"] * sigmoid(x[1:, :24] @ p["smear_gate"])
        x = np.concatenate([x[:1], x[1:] + gate * x[:-1]])
    x0, middle = x, None
    back = np.arange(T)[:, None] - np.arange(T)
    for layer in range(shape.depth):
        w = {k.rsplit(".")[-1]: v for k, v in p.items() if k.startswith(f"blocks.{layer}.")}
        if shape.residual_scalars:
            x = p["keep"][layer] * x + p["blend"][layer] * x0
        h = n(x)
        q, k, v = ((h @ w[name]).reshape(T, -1, D) for name in ("query", "key", "value"))
        # Every second layer, counted from the last.
        if shape.value_embeddings and (shape.depth - 1 - layer) % 2 == 0:
            index = [i for i in range(shape.depth) if (shape.depth - 1 - i) % 2 == 0].index(layer)
            gate = 3 * sigmoid(h[:, :12] @ p["value_gate"][index])
            v = v + gate[..., None] * p["value_embedding"][index][tokens].reshape(T, -1, D)
        q, k = shape.qk_scale * n(turn(q)), shape.qk_scale * n(turn(k))
        k, v = (np.repeat(a, H // shape.kv_heads, axis=1) for a in (k, v))
        short = shape.window_pattern[layer % len(shape.window_pattern)] == "S" and layer < shape.depth - 1
        seen = (back >= 0) & (back <= (128 if short else T))
        scores = np.where(seen, np.einsum("qhd,khd->hqk", q, k) / math.sqrt(D), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(T, -1) @ w["output"]
        x = x + np.square(np.maximum(n(x) @ w["up"], 0)) @ w["down"]
        if layer == shape.depth // 2:
            middle = x
    if shape.backout:
        x = x - p["backout_scale"] * middle
    logits = n(x) @ p["head"].T
    return shape.softcap * np.tanh(logits / shape.softcap) if shape.softcap else logits
