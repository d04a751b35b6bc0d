"""Generation with a KV cache: a fixed number of slots, each a conversation that grows.

`reset` empties a slot, `extend` appends tokens to slots (ragged), `generate` lets slots speak in
lockstep until a stop token, `stream` yields one slot's tokens as they come. Everything a slot was
given or has said is in the cache, so the next turn costs only its own tokens. Programs have static
shapes; lengths are rounded up to a few sizes, so that few compile. Greedy decoding is
deterministic; which slots run together can move the last bits of the logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from nanocode_core.errors import UserError
from nanocode_core.model.cache import Cache, Decoded, Speakers, decode, empty_cache, prefill
from nanocode_core.model.gpt import GPT

DECODE_STEPS = 32
"""Tokens decoded in one call of the device, at most."""
STREAM_STEPS = 4
SMALLEST_EXTENSION = 32
SMALLEST_WINDOW = 128
"""The smallest number of new tokens, and of visible places of the cache, that programs are compiled for."""


# Compiled once for all engines of one shape: the graph definition holds a model's structure, not its arrays.
@partial(jax.jit, static_argnames=("graph", "window"), donate_argnames="cache")
def _extend(graph: Any, params: Any, cache: Cache, slots: Array, tokens: Array, counts: Array, *, window: int) -> Cache:
    return prefill(nnx.merge(graph, params), cache, slots, tokens, counts, window)


@partial(jax.jit, static_argnames=("graph", "steps", "window", "sampled"), donate_argnames="cache")
def _speak(graph: Any, params: Any, cache: Cache, now: Speakers, *, steps: int, window: int, sampled: bool) -> Decoded:
    return decode(nnx.merge(graph, params), cache, now, steps, window, sampled)


class Engine:
    """Slots of a KV cache, and the compiled programs that work on them."""

    def __init__(self, model: GPT, batch: int = 1, context: int | None = None) -> None:
        """Make empty slots.

        Args:
            model: the model; its arrays are shared, not copied.
            batch: slots.
            context: tokens a slot can hold; default: the training context.
        """
        self.batch = batch
        self.context = context or model.shape.sequence
        self.lengths = [0] * batch
        self._graph, self._params = nnx.split(model, nnx.Param)
        self._vocabulary = model.shape.vocabulary
        self._cache: Cache = empty_cache(model.shape, batch, self.context)

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        self.lengths[slot] = 0
        self._cache = self._cache._replace(lengths=self._cache.lengths.at[slot].set(0))

    def room(self, slot: int) -> int:
        """Tokens that still fit into a slot."""
        return self.context - self.lengths[slot]

    def next_logits(self, slot: int) -> Array:
        """Logits [V] of the token that follows a slot's last one."""
        return self._cache.logits[slot]

    def extend(self, additions: Mapping[int, Sequence[int]]) -> None:
        """Append token ids to slots, {slot: ids}, all of them in one pass.

        Raises:
            UserError: a slot has no room for its ids.
        """
        filled = {slot: list(ids) for slot, ids in additions.items() if len(ids)}
        if not filled:
            return
        for slot, ids in filled.items():
            if len(ids) > self.room(slot):
                raise UserError(
                    f"{len(ids)} tokens do not fit: {self.lengths[slot]} of the context's {self.context} are used; "
                    "start a new conversation or shorten the input"
                )
        rows = _round_up(len(filled), 1, self.batch, factor=4)
        length = _round_up(max(map(len, filled.values())), SMALLEST_EXTENSION, self.context)
        # Filler rows point past the last slot, each at a place of its own.
        slots = np.arange(self.batch, self.batch + rows, dtype=np.int32)
        tokens, counts = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
        for row, (slot, ids) in enumerate(filled.items()):
            slots[row], counts[row] = slot, len(ids)
            tokens[row, : len(ids)] = ids
        used = max(self.lengths[slot] for slot in filled)
        window = _round_up(used, SMALLEST_WINDOW, self.context) if used else 0
        self._cache = _extend(self._graph, self._params, self._cache, slots, tokens, counts, window=window)
        for slot, ids in filled.items():
            self.lengths[slot] += len(ids)

    def generate(
        self,
        slots: Sequence[int],
        max_new: int,
        stop: AbstractSet[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Let slots speak until each has said a stop token (included), `max_new` tokens, or is full.

        Args:
            slots: slot numbers; each must have been extended since its reset.
            max_new: tokens a slot, at most.
            stop: ids that end a slot.
            temperature: 0: greedy.
            seed: of sampling.

        Returns:
            The new ids of each of `slots`, in their order.
        """
        said: list[list[int]] = [[] for _ in range(self.batch)]
        for tokens in self._chunks(slots, max_new, stop, temperature, seed, DECODE_STEPS):
            for slot, ids in tokens.items():
                said[slot] += ids
        return [said[slot] for slot in slots]

    def stream(
        self,
        ids: Sequence[int],
        max_new: int,
        stop: AbstractSet[int],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Append ids to slot 0 and yield what it says, token by token; the stop token included."""
        self.extend({0: ids})
        for tokens in self._chunks([0], max_new, stop, temperature, seed, STREAM_STEPS):
            yield from tokens[0]

    def _chunks(
        self, slots: Sequence[int], max_new: int, stop: AbstractSet[int], temperature: float, seed: int, steps: int
    ) -> Iterator[dict[int, list[int]]]:
        """Decode chunk after chunk; yields the new ids of the slots that were running."""
        for slot in slots:
            if not self.lengths[slot]:
                raise ValueError(f"slot {slot} is empty: extend it first")
        stops = np.zeros(self._vocabulary, bool)
        stops[list(stop)] = True
        key = jax.random.key(seed)
        running = np.zeros(self.batch, bool)
        running[list(slots)] = True
        left = max_new
        while left > 0 and running.any():
            room = np.array([self.room(slot) for slot in range(self.batch)], np.int32)
            active = [slot for slot in range(self.batch) if running[slot]]
            window = _round_up(max(self.lengths[slot] for slot in active), SMALLEST_WINDOW, self.context)
            result = _speak(
                self._graph,
                self._params,
                self._cache,
                Speakers(running, room, np.int32(min(left, steps)), stops, np.float32(temperature), key),
                steps=steps,
                window=window,
                sampled=temperature > 0,
            )
            self._cache = result.cache
            tokens, counts, running = (np.asarray(x) for x in (result.tokens, result.counts, result.running))
            left -= steps
            for slot in active:
                self.lengths[slot] += int(counts[slot])
            yield {slot: tokens[slot, : counts[slot]].tolist() for slot in active}


def complete(model: GPT, prompts: Sequence[Sequence[int]], max_new: int, stop: AbstractSet[int]) -> list[list[int]]:
    """Greedy continuations of prompts, side by side."""
    engine = Engine(model, batch=len(prompts))
    engine.extend(dict(enumerate(prompts)))
    return engine.generate(range(len(prompts)), max_new, stop)


def _round_up(value: int, smallest: int, largest: int, factor: int = 2) -> int:
    """The least of smallest, smallest * factor, ..., largest that is not below value."""
    size = smallest
    while size < value:
        size *= factor
    return min(size, largest)
