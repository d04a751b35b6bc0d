"""The forward pass with a key/value cache: many slots, each with a length of its own.

A cache holds, per layer, keys and values [slots, K, C, D]; a slot's first `length` places are valid.
Two functions read it. `prefill` runs a ragged block of new tokens and writes their keys and values.
`decode` runs up to `limit` tokens one by one: within it the cache is read-only and new keys and values go
to a small buffer whose column is the same for all slots, so that no step copies the cache; the
buffer is merged at the end. Both look only at the first `window` places of the cache, a static
number that the caller chooses to cover every length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from nanocode_core.model.attention import masked_attention
from nanocode_core.model.gpt import GPT, Attend, rope
from nanocode_core.model.shape import Shape


class Cache(NamedTuple):
    """State of all slots.

    keys, values: one [slots, K, C, D] a layer. lengths: [slots] valid places.
    logits: [slots, V] float32, of the token that follows each slot's last.
    previous: [slots, d] embedding of each slot's last token (for smear).
    """

    keys: list[Array]
    values: list[Array]
    lengths: Array
    logits: Array
    previous: Array


def empty_cache(shape: Shape, slots: int, context: int) -> Cache:
    """A cache whose slots have length 0."""
    size = (slots, shape.kv_heads, context, shape.head_size)
    return Cache(
        keys=[jnp.zeros(size, shape.compute) for _ in range(shape.depth)],
        values=[jnp.zeros(size, shape.compute) for _ in range(shape.depth)],
        lengths=jnp.zeros(slots, jnp.int32),
        logits=jnp.zeros((slots, shape.vocabulary), jnp.float32),
        previous=jnp.zeros((slots, shape.width), shape.compute),
    )


def prefill(model: GPT, cache: Cache, slots: Array, tokens: Array, counts: Array, window: int) -> Cache:
    """Append tokens[i, :counts[i]] to slot slots[i].

    Args:
        model: the model.
        cache: donated by the caller.
        slots: [n] different slot numbers; a number past the last is a filler row that changes nothing.
        tokens: [n, T], filled up on the right.
        counts: [n], each at least 1.
        window: places of the cache to look at; at least the longest old length of `slots`.
    """
    n, T = tokens.shape
    old = cache.lengths.at[slots].get(mode="fill", fill_value=0)
    positions = old[:, None] + jnp.arange(T)
    # Keys: the first `window` cached places, then the new ones.
    seen = jnp.broadcast_to((jnp.arange(window) < old[:, None])[:, None, :], (n, T, window))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (n, T, T))
    valid = jnp.concatenate([seen, causal], axis=-1)
    of_keys = jnp.concatenate([jnp.broadcast_to(jnp.arange(window), (n, window)), positions], axis=-1)
    back = positions[:, :, None] - of_keys[:, None, :]
    # A place past the count is written nowhere.
    places = jnp.where(jnp.arange(T) < counts[:, None], positions, cache.keys[0].shape[2])

    embedded = model.embed(tokens)
    before = cache.previous.at[slots].get(mode="fill", fill_value=0)
    x = model.smeared(embedded, before, positions == 0)
    keys, values = list(cache.keys), list(cache.values)

    def attends(layer: int) -> Attend:
        mask = _within(valid, back, model.shape.windows[layer])[:, None]

        def attend(q: Array, k: Array, v: Array) -> Array:
            heads_first = [a.transpose(0, 2, 1, 3) for a in (q, k, v)]
            old_k = keys[layer][:, :, :window].at[slots].get(mode="fill", fill_value=0)
            old_v = values[layer][:, :, :window].at[slots].get(mode="fill", fill_value=0)
            keys[layer] = keys[layer].at[slots[:, None], :, places].set(k, mode="drop")
            values[layer] = values[layer].at[slots[:, None], :, places].set(v, mode="drop")
            all_k = jnp.concatenate([old_k, heads_first[1]], axis=2)
            all_v = jnp.concatenate([old_v, heads_first[2]], axis=2)
            return masked_attention(heads_first[0], all_k, all_v, mask).transpose(0, 2, 1, 3)

        return attend

    x = model.trunk(x, tokens, rope(positions, model.shape), attends)

    def last(states: Array) -> Array:
        return jnp.take_along_axis(states, (counts - 1)[:, None, None], axis=1)[:, 0]

    return Cache(
        keys,
        values,
        cache.lengths.at[slots].set(old + counts, mode="drop"),
        cache.logits.at[slots].set(model.logits(last(x)), mode="drop"),
        cache.previous.at[slots].set(last(embedded), mode="drop"),
    )


class Decoded(NamedTuple):
    """The cache after a decode, and what was decoded: tokens [slots, steps], of which counts [slots] are valid."""

    cache: Cache
    tokens: Array
    counts: Array
    running: Array


class Speakers(NamedTuple):
    """Who speaks in a decode, and how.

    Attributes:
        running: [slots] bool; the others stay as they are.
        room: [slots] tokens that a slot may still decode.
        limit: tokens to decode at most, up to the size of the buffer.
        stop: [V] bool; such a token is decoded, cached, and ends its slot.
        temperature: of sampling.
        key: of sampling; the draw of a slot depends on the key, its number and its length alone.
    """

    running: Any
    room: Any
    limit: Any
    stop: Any
    temperature: Any
    key: Array


class _Carry(NamedTuple):
    """What changes from token to token."""

    step: Array
    running: Array
    counts: Array
    tokens: Array
    logits: Array
    previous: Array
    buffers: list[tuple[Array, Array]]


def decode(
    model: GPT,
    cache: Cache,
    now: Speakers,
    steps: int,
    window: int,
    sampled: bool,
) -> Decoded:
    """Decode in lockstep until every slot has stopped, `limit` tokens at most.

    Args:
        model: the model.
        cache: donated by the caller.
        now: who speaks, and until when.
        steps: size of the buffer (static).
        window: see `prefill` (static).
        sampled: False: greedy (static).
    """
    shape = model.shape
    slots = cache.lengths.shape[0]
    size = (slots, shape.kv_heads, steps, shape.head_size)
    buffers = [(jnp.zeros(size, shape.compute), jnp.zeros(size, shape.compute)) for _ in range(shape.depth)]
    old_keys = [keys[:, :, :window] for keys in cache.keys]
    old_values = [values[:, :, :window] for values in cache.values]
    seen = jnp.arange(window) < cache.lengths[:, None]
    layers = model.layers()  # sliced here, not once a token

    def go_on(carry: _Carry) -> Array:
        return jnp.logical_and(carry.step < now.limit, jnp.any(carry.running))

    def one(carry: _Carry) -> _Carry:
        positions = cache.lengths + carry.step
        token = _choose(carry.logits, positions, now.temperature, now.key, sampled)
        tokens = lax.dynamic_update_slice(carry.tokens, token[:, None], (0, carry.step))
        counts = carry.counts + carry.running
        running = carry.running & ~jnp.asarray(now.stop)[token] & (counts < now.room)

        fresh = jnp.broadcast_to(jnp.arange(steps) <= carry.step, (slots, steps))
        valid = jnp.concatenate([seen, fresh], axis=1)
        # Cached places lie behind by length + step, fresh ones by what was decoded since.
        back = jnp.concatenate(
            [
                positions[:, None] - jnp.arange(window),
                jnp.broadcast_to(carry.step - jnp.arange(steps), (slots, steps)),
            ],
            axis=1,
        )
        embedded = model.embed(token[:, None])
        x = model.smeared(embedded, carry.previous, positions[:, None] == 0)
        grown: list[tuple[Array, Array]] = []

        def attends(layer: int) -> Attend:
            mask = _within(valid, back, shape.windows[layer])[:, None, None]

            def attend(q: Array, k: Array, v: Array) -> Array:
                new_k, new_v = carry.buffers[layer]
                new_k = lax.dynamic_update_slice(new_k, k.transpose(0, 2, 1, 3), (0, 0, carry.step, 0))
                new_v = lax.dynamic_update_slice(new_v, v.transpose(0, 2, 1, 3), (0, 0, carry.step, 0))
                grown.append((new_k, new_v))
                return _attend_both(q, old_keys[layer], old_values[layer], new_k, new_v, mask)

            return attend

        x = model.trunk(x, token[:, None], rope(positions[:, None], shape), attends, layers=layers)
        # A slot that has stopped keeps the logits after its last own token.
        logits = jnp.where(carry.running[:, None], model.logits(x[:, 0]), carry.logits)
        previous = jnp.where(carry.running[:, None], embedded[:, 0], carry.previous)
        return _Carry(carry.step + 1, running, counts, tokens, logits, previous, grown)

    zeros = jnp.zeros(slots, jnp.int32)
    start = _Carry(
        jnp.zeros((), jnp.int32),
        now.running & (now.room > 0),
        zeros,
        jnp.zeros((slots, steps), jnp.int32),
        cache.logits,
        cache.previous,
        buffers,
    )
    end = lax.while_loop(go_on, one, start)

    columns = jnp.arange(steps)
    places = jnp.where(columns < end.counts[:, None], cache.lengths[:, None] + columns, cache.keys[0].shape[2])
    rows = jnp.arange(slots)[:, None]

    def merge(old: Array, new: Array) -> Array:
        return old.at[rows, :, places].set(new.transpose(0, 2, 1, 3), mode="drop")

    merged = Cache(
        [merge(old, new) for old, (new, _) in zip(cache.keys, end.buffers, strict=True)],
        [merge(old, new) for old, (_, new) in zip(cache.values, end.buffers, strict=True)],
        cache.lengths + end.counts,
        end.logits,
        end.previous,
    )
    return Decoded(merged, end.tokens, end.counts, end.running)


def _within(valid: Array, back: Array, window: int | None) -> Array:
    """The mask `valid`, less what lies further back than a layer's window."""
    return valid if window is None else valid & (back <= window)


def _attend_both(q: Array, old_k: Array, old_v: Array, new_k: Array, new_v: Array, mask: Array) -> Array:
    """Attention of one query a slot, q [slots, 1, H, D], over cached and new places, without joining them.

    mask: [slots, 1, 1, window + steps]. Returns [slots, 1, H, D].
    """
    slots, _, H, D = q.shape
    K = old_k.shape[1]
    q = q.reshape(slots, K, H // K, D)
    scores = [jnp.einsum("skgd,skcd->skgc", q, k, preferred_element_type=jnp.float32) for k in (old_k, new_k)]
    weights = jax.nn.softmax(jnp.where(mask, jnp.concatenate(scores, axis=-1) * D**-0.5, -1e30), axis=-1)
    weights = weights.astype(old_v.dtype)
    window = old_k.shape[2]
    out = jnp.einsum("skgc,skcd->skgd", weights[..., :window], old_v)
    out = out + jnp.einsum("skgc,skcd->skgd", weights[..., window:], new_v)
    return out.reshape(slots, 1, H, D)


def _choose(logits: Array, positions: Array, temperature: Array, key: Array, sampled: bool) -> Array:
    """The next token of each slot: the likeliest, or a draw."""
    if not sampled:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    numbers = jnp.arange(len(positions))
    keys = jax.vmap(lambda slot, place: jax.random.fold_in(jax.random.fold_in(key, slot), place))(numbers, positions)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)
