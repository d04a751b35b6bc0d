"""The features of the recipe `modern`: against float64, in packed rows, in the cache, in a scan."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from float64_reference import reference_logits

from nanocode_core.model.engine import Engine
from nanocode_core.model.gpt import GPT, rope
from nanocode_core.model.head import weighted_loss
from nanocode_core.model.weights import load_model, named_arrays, save_model

FEATURES = {
    "qk_scale": 1.2,
    "window_pattern": "SSL",
    "value_embeddings": True,
    "smear": True,
    "residual_scalars": True,
    "backout": True,
}
# Windows are 128 at the least, so rows have to be longer than that to meet one.
SIZE = {"depth": 4, "kv_heads": 2, "sequence": 512, **FEATURES}

Make = Callable[..., GPT]


@nnx.jit
def forward(model: GPT, *inputs: np.ndarray) -> jax.Array:
    return model(*inputs)


@pytest.fixture(scope="module")
def modern(make_model: Make) -> GPT:
    return make_model(**SIZE)


@pytest.mark.parametrize("feature", [*FEATURES, "all", "none"])
def test_each_feature_equals_the_float64_reference(make_model: Make, feature: str) -> None:
    off = {name: field.default for name, field in type(make_model().shape).__dataclass_fields__.items()}
    changes = dict(SIZE)
    if feature != "all":
        changes |= {name: off[name] for name in FEATURES if name != feature}
    model = make_model(**changes)
    tokens = np.random.default_rng(1).integers(0, 97, 200)
    assert np.abs(np.asarray(forward(model, tokens[None]))[0] - reference_logits(model, tokens)).max() < 1e-4


def test_each_feature_matters(modern: GPT) -> None:
    tokens = np.random.default_rng(2).integers(0, 97, (1, 200))
    whole = np.asarray(forward(modern, tokens))
    for change in ({"qk_scale": 1.0}, {"window_pattern": "L"}):
        other = GPT(dataclasses.replace(modern.shape, **change), seed=0)
        nnx.update(other, nnx.state(modern, nnx.Param))
        assert np.abs(np.asarray(forward(other, tokens)) - whole).max() > 1e-3


def test_packed_segments_equal_separate_rows(modern: GPT) -> None:
    random = np.random.default_rng(3)
    first, second = random.integers(0, 97, 150), random.integers(0, 97, 170)
    row = np.concatenate([first, second])[None]
    segments, positions = np.array([[1] * 150 + [2] * 170]), np.array([[*range(150), *range(170)]])
    packed = np.asarray(forward(modern, row, segments, positions))[0]
    alone = [np.asarray(forward(modern, part[None]))[0] for part in (first, second)]
    assert np.abs(packed - np.concatenate(alone)).max() < 1e-4


def test_the_cache_says_what_the_full_forward_says_across_a_window(modern: GPT) -> None:
    random = np.random.default_rng(4)
    first, short, more = (random.integers(0, 97, size).tolist() for size in (100, 5, 60))
    engine = Engine(modern, batch=2, context=256)
    engine.extend({0: first, 1: short})
    said = engine.generate([0, 1], 30, stop=set())
    engine.extend({0: more})
    [last] = engine.generate([0], 20, stop=set())
    for slot, ids in ((0, [*first, *said[0], *more, *last]), (1, [*short, *said[1]])):
        logits = np.asarray(forward(modern, np.array(ids)[None]))[0]
        assert np.abs(np.asarray(engine.next_logits(slot)) - logits[-1]).max() < 1e-4
    full = [*first, *said[0], *more, *last]
    logits = np.asarray(forward(modern, np.array(full)[None]))[0]
    assert full[-20:] == logits[-21:-1].argmax(-1).tolist()


@pytest.mark.parametrize("changes", [{"depth": 4, "window_pattern": "SL"}, {"depth": 3, **dict.fromkeys(FEATURES)}])
def test_a_scan_over_the_layers_and_every_remat_policy_change_nothing(make_model: Make, changes: dict) -> None:
    plain = {"qk_scale": 1.0, "window_pattern": "L"}
    changes = {k: plain.get(k, False) if v is None else v for k, v in {**SIZE, **changes}.items()}
    base = make_model(**changes)
    assert base.shape.period < base.shape.depth
    tokens = np.random.default_rng(5).integers(0, 97, (2, 160))
    targets = np.roll(tokens, -1, 1).reshape(-1)

    def loss(model: GPT) -> jax.Array:
        hidden = model.hidden(tokens).reshape(-1, model.shape.width)
        weights = np.ones(targets.size, np.float32)
        return weighted_loss(hidden, model.head[...], targets, weights, 15.0, model.backend, True)[0]

    results = {}
    for scan in (False, True):
        for remat in ("none", "attention", "full"):
            backend = dataclasses.replace(base.backend, scan=scan, remat=remat)
            model = GPT(base.shape, seed=0, backend=backend)
            nnx.update(model, nnx.state(base, nnx.Param))
            results[scan, remat] = nnx.jit(nnx.value_and_grad(loss))(model)
    value, gradients = results.pop((False, "none"))
    for other, same in results.values():
        assert float(other) == pytest.approx(float(value), rel=1e-6)
        for one, two in zip(jax.tree.leaves(gradients), jax.tree.leaves(same), strict=True):
            assert np.abs(one - two).max() <= 2e-5 * max(1.0, float(np.abs(one).max()))


def test_layers_that_share_their_attention_are_traced_once(modern: GPT) -> None:
    """Once with a value embedding and once without; one by one where an Attend may have effects, as in decoding."""
    shape, traced = modern.shape, 0

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal traced
        traced += 1
        return q

    def run(pure: bool) -> jax.Array:
        tokens = jnp.zeros((1, 4), jnp.int32)
        turn = rope(jnp.arange(4), shape)
        return modern.trunk(modern.embed(tokens), tokens, turn, lambda layer: attend, pure=pure)

    assert not modern.backend.scan
    one_by_one = run(pure=False)
    assert traced == shape.depth > 2
    traced = 0
    assert np.allclose(run(pure=True), one_by_one, atol=1e-6)
    assert traced == 2


def test_a_modern_model_survives_its_files(modern: GPT, tmp_path) -> None:
    save_model(modern, tmp_path)
    again = load_model(tmp_path)
    assert again.shape == modern.shape
    for name, array in named_arrays(modern).items():
        assert np.array_equal(named_arrays(again)[name], array)
