from collections.abc import Callable

import numpy as np
import pytest

from nanocode_core.errors import UserError
from nanocode_core.model.engine import Engine, complete
from nanocode_core.model.gpt import GPT


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, length).tolist()


LogitsOf = Callable[[GPT, list[int]], np.ndarray]
Greedy = Callable[[list[int], int], list[int]]


@pytest.fixture
def greedy(model: GPT, logits_of: LogitsOf) -> Greedy:
    """Greedy decoding without a cache: the whole row again for every token."""

    def run(ids: list[int], count: int) -> list[int]:
        full = list(ids)
        for _ in range(count):
            full.append(int(logits_of(model, full)[-1].argmax()))
        return full[len(ids) :]

    return run


def slot_logits(engine: Engine, slot: int) -> np.ndarray:
    return np.asarray(engine.next_logits(slot))


def test_ragged_slots_say_what_the_full_forward_says(model: GPT, greedy: Greedy, logits_of: LogitsOf) -> None:
    prompts = {0: prompt(0, 3), 1: prompt(1, 20), 2: prompt(2, 11)}
    engine = Engine(model, batch=3, context=64)
    engine.extend(prompts)
    for slot, ids in prompts.items():
        assert np.abs(slot_logits(engine, slot) - logits_of(model, ids)[-1]).max() < 1e-4
    said = engine.generate([0, 1, 2], 40, stop=set())
    for slot, ids in prompts.items():
        assert said[slot] == greedy(ids, 40)
        full = [*ids, *said[slot]]
        assert np.abs(slot_logits(engine, slot) - logits_of(model, full)[-1]).max() < 1e-4
        assert engine.lengths[slot] == len(ids) + 40


def test_turns_can_be_added_to_some_slots_while_others_wait(model: GPT, greedy: Greedy, logits_of: LogitsOf) -> None:
    engine = Engine(model, batch=2, context=64)
    first, second, more = prompt(3, 9), prompt(4, 13), prompt(5, 7)
    engine.extend({0: first, 1: second})
    [said] = engine.generate([1], 6, stop=set())
    waiting = slot_logits(engine, 0)
    engine.extend({1: more})
    assert np.array_equal(slot_logits(engine, 0), waiting)
    assert np.abs(waiting - logits_of(model, first)[-1]).max() < 1e-4
    full = [*second, *said, *more]
    assert np.abs(slot_logits(engine, 1) - logits_of(model, full)[-1]).max() < 1e-4
    assert engine.generate([0, 1], 5, stop=set()) == [greedy(first, 5), greedy(full, 5)]


def test_a_slot_ends_at_its_stop_token_and_the_others_go_on(model: GPT, greedy: Greedy, logits_of: LogitsOf) -> None:
    prompts = [prompt(6, 5), prompt(7, 8)]
    free = [greedy(ids, 30) for ids in prompts]
    stop = free[0][4]
    engine = Engine(model, batch=2, context=64)
    engine.extend(dict(enumerate(prompts)))
    said = engine.generate([0, 1], 30, stop={stop})
    for got, all_of_it in zip(said, free, strict=True):
        end = all_of_it.index(stop) + 1 if stop in all_of_it else 30
        assert got == all_of_it[:end]
    # The stop token is part of the conversation, so the next turn builds on it.
    assert engine.lengths[0] == 5 + len(said[0])
    full = [*prompts[0], *said[0]]
    assert np.abs(slot_logits(engine, 0) - logits_of(model, full)[-1]).max() < 1e-4


def test_a_full_slot_ends_and_a_too_long_addition_is_refused(model: GPT) -> None:
    engine = Engine(model, batch=1, context=24)
    engine.extend({0: prompt(8, 20)})
    with pytest.raises(UserError, match="5 tokens do not fit: 20 of the context's 24"):
        engine.extend({0: [1] * 5})
    assert len(engine.generate([0], 50, stop=set())[0]) == 4
    assert engine.room(0) == 0
    assert engine.generate([0], 50, stop=set()) == [[]]


def test_a_reset_slot_forgets(model: GPT, greedy: Greedy) -> None:
    engine = Engine(model, batch=2, context=64)
    engine.extend({0: prompt(9, 30), 1: prompt(10, 30)})
    engine.reset(0)
    engine.extend({0: prompt(11, 4)})
    assert engine.generate([0], 10, stop=set()) == [greedy(prompt(11, 4), 10)]


def test_streaming_equals_generating(model: GPT, greedy: Greedy) -> None:
    stop = greedy(prompt(12, 6), 12)[11]
    engine = Engine(model, batch=1, context=64)
    streamed = list(engine.stream(prompt(12, 6), 30, stop={stop}))
    assert streamed == complete(model, [prompt(12, 6)], 30, stop={stop})[0]
    assert streamed[-1] == stop


def test_a_stream_left_early_keeps_what_was_decoded(model: GPT) -> None:
    engine = Engine(model, batch=1, context=64)
    stream = engine.stream(prompt(13, 6), 30, stop=set())
    next(stream)
    stream.close()
    assert engine.lengths[0] > 6
    engine.reset(0)
    assert len(list(engine.stream(prompt(13, 6), 9, stop=set()))) == 9


def test_sampling_repeats_with_its_seed(model: GPT, greedy: Greedy) -> None:
    def sample(seed: int, temperature: float = 1.0) -> list[list[int]]:
        engine = Engine(model, batch=2, context=64)
        engine.extend({0: prompt(14, 6), 1: prompt(14, 6)})
        return engine.generate([0, 1], 20, stop=set(), temperature=temperature, seed=seed)

    one, same, other = sample(1), sample(1), sample(2)
    assert one == same != other
    assert one[0] != one[1]
    assert sample(1, temperature=1e-4)[0] == greedy(prompt(14, 6), 20)


def test_sampling_follows_the_probabilities(model: GPT) -> None:
    engine = Engine(model, batch=64, context=16)
    engine.extend({slot: [5] for slot in range(64)})
    temperature = 4.0
    logits = slot_logits(engine, 0) / temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    counts = np.zeros(97)
    for seed in range(20):
        for slot in range(64):
            engine.reset(slot)
        engine.extend({slot: [5] for slot in range(64)})
        for [token] in engine.generate(range(64), 1, stop=set(), temperature=temperature, seed=seed):
            counts[token] += 1
    # Total variation between 1,280 draws and the distribution; a wrong one is several times further off.
    assert np.abs(counts / counts.sum() - expected).sum() / 2 < 0.13


def test_an_empty_slot_cannot_speak(model: GPT) -> None:
    with pytest.raises(ValueError, match="slot 0 is empty"):
        Engine(model, batch=1, context=16).generate([0], 1, stop=set())
