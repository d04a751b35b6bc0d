import jax
import numpy as np
import pytest
from flax import nnx

from nanocode_core.agent.writer import Writer
from nanocode_core.model.gpt import GPT
from nanocode_core.model.shape import Shape

STOP = {0}


@pytest.fixture(scope="module")
def model():
    """Weights far from the initial ones, so that what it writes depends on all it has read."""
    graph, params = nnx.split(GPT(Shape(1, 32, 2, 2, 2, 64, 64, 10_000.0, 15.0, "float32"), 0), nnx.Param)
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype("float32"), params))


def watched(model, monkeypatch, slots=1):
    writer, taken = Writer(model, STOP, slots=slots), []
    extend = writer._engine.extend
    monkeypatch.setattr(
        writer._engine,
        "extend",
        lambda new: (taken.append({slot: len(ids) for slot, ids in new.items()}), extend(new))[1],
    )
    return writer, taken


def fresh(model, prompt, most):
    return Writer(model, STOP).write([prompt], most)[0]


def test_a_prompt_that_goes_on_costs_only_what_is_new(model, monkeypatch):
    writer, taken = watched(model, monkeypatch)
    first = list(range(10, 30))
    said = writer.write([first], 8)[0]
    second = [*first, *said, 7, 8, 9]
    assert writer.write([second], 8)[0] == fresh(model, second, 8)
    assert taken == [{0: 20}, {0: 3}]


def test_any_other_prompt_starts_anew(model, monkeypatch):
    writer, taken = watched(model, monkeypatch)
    first = list(range(10, 30))
    writer.write([first], 8)
    for other in ([*first[:5], 40, 41], first, first[:4]):
        assert writer.write([other], 8)[0] == fresh(model, other, 8)
    assert [count[0] for count in taken] == [20, 7, 20, 4]


def test_a_stream_that_was_left_early_does_no_harm(model):
    writer = Writer(model, STOP)
    prompt = list(range(10, 30))
    stream = writer.stream(prompt)
    begun = [next(stream), next(stream)]
    stream.close()
    assert begun == fresh(model, prompt, 2)
    second = [*prompt, *begun, 5]
    assert [id_ for id_, _ in zip(writer.stream(second), range(8), strict=False)] == fresh(model, second, 8)


def test_slots_are_independent_and_may_rest(model):
    writer = Writer(model, STOP, slots=3)
    prompts = [[11, 12, 13], None, list(range(20, 40))]
    said = writer.write(prompts, 6)
    assert said[1] == []
    assert said[0] == fresh(model, prompts[0], 6)
    assert said[2] == fresh(model, prompts[2], 6)
    assert writer.write([None, [11, 12, 13], None], 6) == [[], said[0], []]
