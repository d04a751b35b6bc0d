"""The transformer: decoder-only, the original nanocode's architecture.

Embedding, RMSNorm, then `depth` blocks x += attention(norm(x)), x += mlp(norm(x)), a last norm, an
untied head, logits capped softly. Norms are parameter-free and in float32, nothing has a bias,
queries and keys are normalised per head after their rotation, the MLP's nonlinearity is relu(x)^2.
Matrices are [in, out]; embedding and head are [V, d]. Master weights are float32, activations
`Shape.compute`. Letters: B rows, T places, d width, H heads, K key/value heads, D head size, V vocabulary.

What attends to what is the caller's: a block is given an `Attend` function of (q, k, v), so that
training (whole rows) and decoding (a cache) share every weight and product.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from nanocode_core.config.model import Model as ModelConfig
from nanocode_core.model.attention import Attention, choose_attention

Attend = Callable[[Array, Array, Array], Array]
"""q [B, T, H, D], k and v [B, T, K, D] -> [B, T, H, D]."""


@dataclass(frozen=True)
class Shape:
    """Everything that decides the model's arrays and its function."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp_ratio: int
    vocabulary: int
    sequence: int
    """Training context; the function itself has no limit."""
    rope_theta: float
    softcap: float
    compute: str

    @property
    def head_size(self) -> int:
        """D."""
        return self.width // self.heads

    @classmethod
    def of(cls, config: ModelConfig, vocabulary: int) -> "Shape":
        """The shape a config asks for, with the vocabulary of its tokenizer."""
        return cls(
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads or config.heads,
            mlp_ratio=config.mlp_ratio,
            vocabulary=vocabulary,
            sequence=config.sequence,
            rope_theta=config.rope_theta,
            softcap=config.softcap,
            compute=config.compute,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for model.json."""
        return asdict(self)


def norm(x: Array) -> Array:
    """RMSNorm over the last axis, without parameters, computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def rope(positions: Array, shape: Shape) -> tuple[Array, Array]:
    """Cosines and sines of the rotations at integer positions [..., T]: each [..., T, 1, D / 2]."""
    half = shape.head_size // 2
    frequencies = shape.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotate the pairs (x[i], x[i + D / 2]) of the last axis by MINUS the angle, as `nanochat` does."""
    cos, sin = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)
    return turned.astype(x.dtype)


class Block(nnx.Module):
    """One layer: attention and MLP, each on a residual branch."""

    def __init__(self, shape: Shape, key: Array) -> None:
        d, kv = shape.width, shape.kv_heads * shape.head_size
        keys = jax.random.split(key, 4)
        self.shape = shape
        self.query = nnx.Param(_uniform(keys[0], d, d))
        self.key = nnx.Param(_uniform(keys[1], d, kv))
        self.value = nnx.Param(_uniform(keys[2], d, kv))
        self.output = nnx.Param(jnp.zeros((d, d)))
        self.up = nnx.Param(_uniform(keys[3], d, shape.mlp_ratio * d))
        self.down = nnx.Param(jnp.zeros((shape.mlp_ratio * d, d)))

    def __call__(self, x: Array, turn: tuple[Array, Array], attend: Attend) -> Array:
        """Map x [B, T, d] to [B, T, d]; `turn` are the rotations of the T places."""
        B, T, d = x.shape
        D = self.shape.head_size
        h = norm(x)
        q = norm(rotate((h @ self._cast(self.query)).reshape(B, T, -1, D), turn))
        k = norm(rotate((h @ self._cast(self.key)).reshape(B, T, -1, D), turn))
        v = (h @ self._cast(self.value)).reshape(B, T, -1, D)
        x = x + attend(q, k, v).reshape(B, T, d) @ self._cast(self.output)
        hidden = jnp.square(jax.nn.relu(norm(x) @ self._cast(self.up)))
        return x + hidden @ self._cast(self.down)

    def _cast(self, weight: nnx.Param[Array]) -> Array:
        return weight[...].astype(self.shape.compute)


class GPT(nnx.Module):
    """The model. Parameters: embedding, blocks[i].{query, key, value, output, up, down}, head."""

    def __init__(self, shape: Shape, seed: int) -> None:
        """Initialise: embedding N(0, 1), head N(0, 0.001^2), matrices uniform, branch outputs zero.

        With zero outputs each block starts as the identity, and with a small head the first loss
        is log(V).
        """
        keys = jax.random.split(jax.random.key(seed), shape.depth + 2)
        self.shape = shape
        self.embedding = nnx.Param(jax.random.normal(keys[0], (shape.vocabulary, shape.width)))
        self.head = nnx.Param(jax.random.normal(keys[1], (shape.vocabulary, shape.width)) * 1e-3)
        self.blocks = nnx.List([Block(shape, key) for key in keys[2:]])

    def embed(self, tokens: Array) -> Array:
        """Look up tokens [...]: the normalised embeddings [..., d] that enter the first block."""
        return norm(self.embedding[...][tokens].astype(self.shape.compute))

    def hidden(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        attention: Attention | None = None,
    ) -> Array:
        """The normalised states that the head reads.

        Args:
            tokens: [B, T] ids.
            segments: [B, T]; a token attends only within its segment. None: the row is one.
            positions: [B, T] places within the segment, for the rotation. None: 0 ... T - 1.
            attention: default: the one chosen for the platform.

        Returns:
            [B, T, d] in the compute type.
        """
        attend: Attend = partial(_attend, attention or choose_attention(), segments)
        turn = rope(jnp.arange(tokens.shape[1]) if positions is None else positions, self.shape)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, turn, attend)
        return norm(x)

    def logits(self, hidden: Array) -> Array:
        """Capped logits [..., V], float32, of hidden [..., d]."""
        return cap(hidden @ self.head[...].astype(hidden.dtype).T, self.shape.softcap)

    def __call__(self, tokens: Array, segments: Array | None = None, positions: Array | None = None) -> Array:
        """Logits [B, T, V] of every place. Training and scoring use the losses in head.py instead."""
        return self.logits(self.hidden(tokens, segments, positions))


def cap(logits: Array, softcap: float) -> Array:
    """Return softcap * tanh(logits / softcap) in float32; softcap 0: unchanged."""
    logits = logits.astype(jnp.float32)
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def _attend(attention: Attention, segments: Array | None, q: Array, k: Array, v: Array) -> Array:
    return attention(q, k, v, segments)


def _uniform(key: Array, fan_in: int, fan_out: int) -> Array:
    """Uniform on +-sqrt(3 / fan_in): standard deviation 1 / sqrt(fan_in)."""
    bound = (3.0 / fan_in) ** 0.5
    return jax.random.uniform(key, (fan_in, fan_out), minval=-bound, maxval=bound)
