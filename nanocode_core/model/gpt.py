"""The transformer: decoder-only, one model for both recipes.

Embedding, RMSNorm, then `depth` blocks x += attention(norm(x)), x += mlp(norm(x)), a last norm, an
untied head, logits capped softly. Norms are parameter-free and in float32, nothing has a bias,
queries and keys are normalised per head after their rotation, the MLP's nonlinearity is relu(x)^2.
What `modern` adds (value embeddings, windows, smear, scalars, backout) is on or off by `Shape`.
Matrices are [in, out], stacked over the layers: [L, in, out]; embedding and head are [V, d]. Master
weights are float32, activations `Shape.compute`. Letters: B rows, T places, L layers, d width, H heads,
K key/value heads, D head size, V vocabulary.

What attends to what is the caller's: a layer is given an `Attend` function of (q, k, v), so that
training (whole rows) and decoding (a cache) share every weight and product.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from nanocode_core.model.backend import MIDDLE, QKV, UP, Backend, named
from nanocode_core.model.lookup import look_up
from nanocode_core.model.shape import Shape

Attend = Callable[[Array, Array, Array], Array]
"""q [B, T, H, D], k and v [B, T, K, D] -> [B, T, H, D]."""

SMEAR_CHANNELS = 24
GATE_CHANNELS = 12
"""Leading channels of the input that the gates of smear and of the value embeddings read (nanochat)."""


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
        self.up = nnx.Param(shape.up_init * _uniform(keys[3], d, shape.mlp_ratio * d))
        self.down = nnx.Param(jnp.zeros((shape.mlp_ratio * d, d)))

    def __call__(
        self, x: Array, turn: tuple[Array, Array], attend: Attend, extra: Callable[[Array], Array] | None = None
    ) -> Array:
        """Map x [B, T, d] to [B, T, d].

        Args:
            x: the state.
            turn: the rotations of the T places.
            attend: see the module's docstring.
            extra: what the layer's value embedding adds to the values, from the normalised x: [B, T, K, D].
        """
        B, T, d = x.shape
        D, scale = self.shape.head_size, self.shape.qk_scale
        h = norm(x)
        q, k, v = (named(h @ self._cast(weight), QKV) for weight in (self.query, self.key, self.value))
        q, k, v = (x.reshape(B, T, -1, D) for x in (q, k, v))
        q, k = norm(rotate(q, turn)), norm(rotate(k, turn))
        if extra is not None:
            v = v + extra(h)
        if scale != 1:
            q, k = q * scale, k * scale
        x = named(x + attend(q, k, v).reshape(B, T, d) @ self._cast(self.output), MIDDLE)
        hidden = jnp.square(jax.nn.relu(named(norm(x) @ self._cast(self.up), UP)))
        return x + hidden @ self._cast(self.down)

    def _cast(self, weight: nnx.Param[Array]) -> Array:
        return weight[...].astype(self.shape.compute)


class Layer(NamedTuple):
    """The arrays of one layer, or of several stacked: what a scan over the layers slices.

    Fields of a feature that is off, or that this layer has not, are None.
    """

    block: Any
    table: Array | None = None
    """[V, K D]: value embeddings."""
    gate: Array | None = None
    """[12, K]: reads the input, one gate a key/value head."""
    keep: Array | None = None
    """[]: factor on the state (residual scalar)."""
    blend: Array | None = None
    """[]: factor on x0."""


class GPT(nnx.Module):
    """The model.

    Parameters: embedding, head, blocks.{query, key, value, output, up, down}, and by feature
    value_embedding [n, V, K D] and value_gate [n, 12, K] for the n layers that have them, keep and
    blend [L], smear_gate [24, 1] and smear_scale, backout_scale, both [].
    """

    def __init__(self, shape: Shape, seed: int, backend: Backend | None = None) -> None:
        """Initialise: embedding normal, head N(0, 0.001^2), matrices uniform, branch outputs zero.

        With zero outputs each block starts as the identity, and with a small head the first loss
        is log(V). The scalars start as nanochat's.
        """
        L, d, V, kv = shape.depth, shape.width, shape.vocabulary, shape.kv_heads * shape.head_size
        keys = jax.random.split(jax.random.key(seed), L + 2)
        more = jax.random.split(jax.random.fold_in(jax.random.key(seed), L + 2), 3)
        self.shape = shape
        self.backend = backend or Backend.of()
        self.embedding = nnx.Param(shape.embedding_std * jax.random.normal(keys[0], (V, d)))
        self.head = nnx.Param(jax.random.normal(keys[1], (V, d)) * 1e-3)
        self.blocks = nnx.vmap(lambda key: Block(shape, key))(keys[2:])
        if shape.value_embeddings:
            n = len(shape.value_layers)
            tables = jax.vmap(lambda key: _uniform(key, V, kv, fan=d))(jax.random.split(more[0], n))
            self.value_embedding = nnx.Param(tables)
            self.value_gate = nnx.Param(jax.random.uniform(more[1], (n, GATE_CHANNELS, shape.kv_heads)) * 0.02)
        if shape.residual_scalars:
            places = jnp.arange(L, dtype=jnp.float32) / max(L - 1, 1)
            self.keep = nnx.Param(1.15 - 0.10 * places)
            self.blend = nnx.Param(0.20 - 0.15 * places)
        if shape.smear:
            self.smear_gate = nnx.Param(jax.random.uniform(more[2], (SMEAR_CHANNELS, 1)) * 0.02)
            self.smear_scale = nnx.Param(jnp.zeros((), jnp.float32))
        if shape.backout:
            self.backout_scale = nnx.Param(jnp.full((), 0.2, jnp.float32))

    def embed(self, tokens: Array) -> Array:
        """Look up tokens [...]: the normalised embeddings [..., d]."""
        return norm(look_up(self.embedding[...], tokens, self.shape.compute, self.backend))

    def smeared(self, x: Array, before: Array, first: Array) -> Array:
        """The states that enter the first layer.

        Args:
            x: [B, T, d] embeddings.
            before: [B, d] embedding of the token before the first of each row.
            first: [B, T] or [T] bool: places with no token before them.
        """
        if not self.shape.smear:
            return x
        previous = jnp.concatenate([before[:, None], x[:, :-1]], axis=1)
        gate = jax.nn.sigmoid(x[..., :SMEAR_CHANNELS] @ self.smear_gate[...].astype(x.dtype))
        gate = gate * self.smear_scale[...].astype(x.dtype)
        return x + jnp.where(first[..., None], 0, gate * previous)

    def hidden(self, tokens: Array, segments: Array | None = None, positions: Array | None = None) -> Array:
        """The normalised states that the head reads.

        Args:
            tokens: [B, T] ids.
            segments: [B, T]; a token attends only within its segment. None: the row is one.
            positions: [B, T] places within the segment, for the rotation. None: 0 ... T - 1.

        Returns:
            [B, T, d] in the compute type.
        """
        attention = self.backend.attention
        places = jnp.arange(tokens.shape[1]) if positions is None else positions
        embedded = self.backend.rows(self.embed(tokens))
        x = self.smeared(embedded, jnp.zeros_like(embedded[:, 0]), places == 0)

        @cache
        def within(window: int | None) -> Attend:
            return lambda q, k, v: attention(q, k, v, segments, window)

        def attends(layer: int) -> Attend:
            return within(self.shape.windows[layer])

        return self.trunk(x, tokens, rope(places, self.shape), attends, pure=True)

    def trunk(
        self,
        x: Array,
        tokens: Array,
        turn: tuple[Array, Array],
        attends: Callable[[int], Attend],
        pure: bool = False,
        layers: Sequence[Layer] | None = None,
    ) -> Array:
        """All layers and the last norm: [B, T, d] to [B, T, d].

        Args:
            x: the states that enter.
            tokens: [B, T] ids, for the value embeddings.
            turn: the rotations of the places.
            attends: layer number -> Attend. In a scan it is called for the layers of one period only.
            pure: an Attend has no effect beside its result. Layers that share one are then traced once: in
                `lax.scan` over the periods of equal layers, or one by one, as the backend says.
            layers: `self.layers()`, where the caller has them.
        """
        x0, mid, middle, period = x, x, self.shape.depth // 2, self.shape.period
        scanned = pure and self.backend.scan and period < self.shape.depth

        @cache
        def apply(attend: Attend) -> Callable[..., Array]:
            layer = self.backend.recomputed(partial(self._layer, attend))
            return jax.jit(layer) if pure and not scanned else layer

        if scanned:

            def body(state: tuple[Array, Array], group: tuple[tuple[Layer, ...], Array]) -> tuple[Any, None]:
                x, mid = state
                for number, layer in enumerate(group[0]):
                    x = apply(attends(number))(layer, x, x0, tokens, turn)
                    if self.shape.backout:
                        mid = jnp.where(group[1] * period + number == middle, x, mid)
                return (x, mid), None

            start = (x, mid if self.shape.backout else jnp.zeros(()))
            (x, mid), _ = lax.scan(body, start, (self._grouped(), jnp.arange(self.shape.depth // period)))
        else:
            for number, layer in enumerate(layers or self.layers()):
                x = apply(attends(number))(layer, x, x0, tokens, turn)
                mid = x if number == middle else mid
        if self.shape.backout:
            x = x - self.backout_scale[...].astype(x.dtype) * mid
        return norm(x)

    def layers(self) -> list[Layer]:
        """The layers one by one."""
        _, stacked = nnx.split(self.blocks)
        shape = self.shape
        blocks = _unstacked(stacked, shape.depth)
        tables, gates = [None] * shape.depth, [None] * shape.depth
        if shape.value_embeddings:
            pairs = _unstacked((self.value_embedding[...], self.value_gate[...]), len(shape.value_layers))
            for i, (table, gate) in zip(shape.value_layers, pairs, strict=True):
                tables[i], gates[i] = table, gate
        scalars = shape.residual_scalars
        return [
            Layer(
                blocks[i],
                table=tables[i],
                gate=gates[i],
                keep=self.keep[...][i] if scalars else None,
                blend=self.blend[...][i] if scalars else None,
            )
            for i in range(shape.depth)
        ]

    def logits(self, hidden: Array) -> Array:
        """Capped logits [..., V], float32, of hidden [..., d]."""
        return cap(hidden @ self.head[...].astype(hidden.dtype).T, self.shape.softcap)

    def __call__(self, tokens: Array, segments: Array | None = None, positions: Array | None = None) -> Array:
        """Logits [B, T, V] of every place. Training and scoring use the losses in head.py instead."""
        return self.logits(self.hidden(tokens, segments, positions))

    def _layer(
        self, attend: Attend, layer: Layer, x: Array, x0: Array, tokens: Array, turn: tuple[Array, Array]
    ) -> Array:
        """One layer with its residual scalars and value embedding."""
        if layer.keep is not None and layer.blend is not None:
            x = layer.keep.astype(x.dtype) * x + layer.blend.astype(x.dtype) * x0

        def gated(h: Array) -> Array:
            assert layer.gate is not None
            assert layer.table is not None
            gate = 3 * jax.nn.sigmoid(h[..., :GATE_CHANNELS] @ layer.gate.astype(h.dtype))
            found = look_up(layer.table, tokens, self.shape.compute, self.backend)
            return gate[..., None] * found.reshape(*tokens.shape, self.shape.kv_heads, self.shape.head_size)

        block = nnx.merge(nnx.graphdef(self.blocks), layer.block)
        out: Array = block(x, turn, attend, None if layer.table is None else gated)
        return out

    def _grouped(self) -> tuple[Layer, ...]:
        """The layers of one period, each stacked over the periods: what a scan runs over."""
        shape, period = self.shape, self.shape.period
        _, stacked = nnx.split(self.blocks)

        def every(array: Array, first: int) -> Array:
            return array.reshape(shape.depth // period, period, *array.shape[1:])[:, first]

        def of_values(array: Array, first: int) -> Array | None:
            mine = [i for i in shape.value_layers if i < period]
            if first not in mine:
                return None
            return array.reshape(shape.depth // period, len(mine), *array.shape[1:])[:, mine.index(first)]

        return tuple(
            Layer(
                jax.tree.map(lambda array, i=i: every(array, i), stacked),
                table=of_values(self.value_embedding[...], i) if shape.value_embeddings else None,
                gate=of_values(self.value_gate[...], i) if shape.value_embeddings else None,
                keep=every(self.keep[...], i) if shape.residual_scalars else None,
                blend=every(self.blend[...], i) if shape.residual_scalars else None,
            )
            for i in range(period)
        )


def cap(logits: Array, softcap: float) -> Array:
    """Return softcap * tanh(logits / softcap) in float32; softcap 0: unchanged."""
    logits = logits.astype(jnp.float32)
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def _unstacked(tree: Any, count: int) -> list[Any]:
    """The slices of a tree of arrays [count, ...]; their gradients are joined by one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part[0] for part in lax.split(leaf, [1] * count)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[i] for part in parts]) for i in range(count)]


def _uniform(key: Array, rows: int, columns: int, fan: int | None = None) -> Array:
    """Uniform on +-sqrt(3 / fan), `fan` being the rows by default: standard deviation 1 / sqrt(fan)."""
    bound = (3.0 / (fan or rows)) ** 0.5
    return jax.random.uniform(key, (rows, columns), minval=-bound, maxval=bound)
