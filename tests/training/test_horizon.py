import math

import pytest

from nanocode_core.config import load_config
from nanocode_core.model.flops import count_parameters
from nanocode_core.model.shape import Shape
from nanocode_core.training.horizon import Horizon, horizon


def run_of(preset: str, *sets: str) -> tuple[Horizon, Shape]:
    config = load_config(preset, sets)
    shape = Shape.of(config.model, config.tokenizer.vocabulary)
    return horizon(config, shape), shape


def test_d24_of_the_original_takes_its_steps() -> None:
    run, shape = run_of("d24")
    assert run.batch_sequences * shape.sequence == 2**20
    # The original: 10.7B tokens in 10,241 steps.
    assert run.steps == pytest.approx(10_241, rel=0.01)
    assert (run.rate_scale, run.decay_scale) == (1.0, 1.0)


def test_the_modern_reference_is_its_own_measure() -> None:
    run, shape = run_of("d12", "recipe=modern")
    counts = count_parameters(shape)
    assert run.batch_sequences * shape.sequence == 2**19
    assert run.rate_scale == 1
    assert run.decay_scale == pytest.approx(1, rel=0.01)
    assert run.steps == math.ceil(12 * (counts["matrices"] + counts["head"]) / 2**19)


def test_deeper_models_take_larger_batches_and_less_decay() -> None:
    runs = [run_of(preset, "recipe=modern") for preset in ("d6", "d12", "d20", "d24")]
    sizes = [run.batch_sequences * shape.sequence for run, shape in runs]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    for (run, _), size in zip(runs, sizes, strict=True):
        assert math.log2(size).is_integer()
        assert run.rate_scale == pytest.approx(max(1, math.sqrt(size / 2**19)))
    decays = [run.decay_scale for run, _ in runs]
    assert decays == sorted(decays, reverse=True)


def test_what_is_set_counts_before_what_follows() -> None:
    run, _ = run_of("d12", "recipe=modern", "training.batch_sequences=64", "training.steps=7")
    assert (run.batch_sequences, run.steps) == (64, 7)
    assert run.rate_scale == 1
    assert run.decay_scale == pytest.approx(64 * 1024 / 2**19, rel=0.01)
    run, shape = run_of("demo", "training.tokens=100000")
    assert run.steps == math.ceil(100_000 / (8 * shape.sequence))
