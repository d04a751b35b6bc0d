import dataclasses
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanocode_core.model.attention import SAVED, Attention, blocked, choose_attention, plain
from nanocode_core.model.attention.gpu import obstacle
from nanocode_core.model.attention.tpu import blocks, splash

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    length: int = 300
    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    window: int | None = None
    segmented: bool = False

    def inputs(self, dtype: type = np.float32) -> tuple[Arrays, np.ndarray, np.ndarray | None]:
        """(q, k, v), the gradient of the output, segments."""
        random = np.random.default_rng(4)
        shapes = [
            (2, self.length, heads, self.size) for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads)
        ]
        q, k, v, d_out = (random.normal(size=shape).astype(dtype) for shape in shapes)
        segments = np.sort(random.integers(0, 4, (2, self.length)), axis=1) if self.segmented else None
        return (q, k, v), d_out, segments


def reference(case: Case) -> Arrays:
    """Output and gradients of q, k, v in float64: head by head, with the derivative of softmax written out."""
    (q, k, v), d_out, segments = case.inputs()
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
    out, d_q, d_k, d_v = (np.zeros_like(x) for x in (q, q, k, v))
    group, scale = case.heads // case.kv_heads, case.size**-0.5
    for b, h in product(range(len(q)), range(case.heads)):
        back = np.arange(case.length)[:, None] - np.arange(case.length)
        seen = (back >= 0) & (back <= (case.length if case.window is None else case.window))
        if segments is not None:
            seen &= segments[b][:, None] == segments[b]
        scores = np.where(seen, q[b, :, h] @ k[b, :, h // group].T * scale, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[b, :, h] = weights @ v[b, :, h // group]
        d_weights = d_out[b, :, h] @ v[b, :, h // group].T
        d_scores = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True))
        d_q[b, :, h] = d_scores @ k[b, :, h // group] * scale
        d_k[b, :, h // group] += d_scores.T @ q[b, :, h] * scale
        d_v[b, :, h // group] += weights.T @ d_out[b, :, h]
    return out, d_q, d_k, d_v


def computed(attention: Attention, case: Case, dtype: str = "float32") -> Arrays:
    inputs, d_out, segments = case.inputs()

    @jax.jit
    def run(inputs: tuple[jax.Array, ...], d_out: jax.Array) -> tuple[jax.Array, ...]:
        ids = None if segments is None else jnp.asarray(segments)
        out, back = jax.vjp(lambda *x: attention(*x, ids, case.window), *inputs)
        return (out, *back(d_out))

    results = run(tuple(jnp.asarray(x, dtype) for x in inputs), jnp.asarray(d_out, dtype))
    assert all(x.dtype == dtype for x in results)
    return tuple(np.asarray(x, np.float64) for x in results)


def interpreted(*arguments: jax.Array | int | None) -> jax.Array:
    """`splash` without a TPU."""
    return splash(*arguments, interpret=True)  # type: ignore[arg-type]


def largest_error(one: Arrays, other: Arrays) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


CASES = [
    Case(),
    Case(kv_heads=4, segmented=True),
    Case(kv_heads=1, window=0),
    Case(kv_heads=4, window=20),
    Case(window=20, segmented=True),
    Case(kv_heads=1, window=200, segmented=True),
    Case(window=1000),
]


@pytest.mark.parametrize("path", [plain, blocked])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_equal_the_definition(path: Attention, case: Case) -> None:
    assert largest_error(computed(path, case), reference(case)) < 2e-5


@pytest.mark.parametrize("length", [1, 65, 520])
@pytest.mark.parametrize("window", [None, 70])
def test_blocks_join_at_every_length(length: int, window: int | None) -> None:
    case = Case(length=length, window=window, heads=2, size=4)
    assert largest_error(computed(blocked, case), reference(case)) < 2e-5


@pytest.mark.parametrize(
    "case",
    [
        Case(256, 2, 2, 64),
        Case(300, 4, 2, 64, segmented=True),
        Case(300, 4, 1, 96, window=100),
        Case(640, 2, 2, 128, window=300, segmented=True),
    ],
    ids=str,
)
def test_splash_equals_the_definition(case: Case) -> None:
    assert largest_error(computed(interpreted, case), reference(case)) < 2e-5


@pytest.mark.parametrize("path", [plain, blocked])
def test_bfloat16_stays_near_the_definition(path: Attention) -> None:
    case = Case(segmented=True, window=100)
    for half, exact in zip(computed(path, case, "bfloat16"), reference(case), strict=True):
        assert np.abs(half - exact).mean() < 0.01 * np.abs(exact).mean() + 0.003


@pytest.mark.parametrize("path", [plain, blocked])
def test_large_scores_do_not_overflow(path: Attention) -> None:
    case = Case(length=70, window=30)
    (q, k, v), _, _ = case.inputs()
    out = path(*(jnp.asarray(x) for x in (q * 100, k * 100, v)), None, case.window)
    assert bool(jnp.isfinite(out).all())


def test_blocked_computes_less_than_plain_and_less_still_in_a_window() -> None:
    shape = jax.ShapeDtypeStruct((1, 2048, 2, 64), "float32")

    def flops(path: Attention, window: int | None) -> float:
        def loss(q: jax.Array) -> jax.Array:
            return path(q, q, q, None, window).sum()

        cost = jax.jit(jax.grad(loss)).lower(shape).cost_analysis()
        assert cost
        return float(cost["flops"])

    whole, full, narrow = flops(plain, None), flops(blocked, None), flops(blocked, 256)
    assert full < 0.7 * whole
    assert narrow < 0.35 * full


@pytest.mark.parametrize("path", [blocked, interpreted])
def test_the_saved_name_keeps_what_only_the_forward_pass_can_compute(
    path: Attention, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept(policy: Callable[..., bool]) -> str:
        layer = jax.checkpoint(lambda q: path(jnp.sin(q), q, q).sum(), policy=policy)
        jax.ad_checkpoint.print_saved_residuals(layer, jnp.ones((1, 256, 2, 64)))
        return capsys.readouterr().out

    policies = jax.checkpoint_policies
    name, nothing = kept(policies.save_only_these_names(SAVED)), kept(policies.nothing_saveable)
    normalisers = r"f32\[1,2,\d+(,1)?\]"
    assert re.search(normalisers, name)
    assert not re.search(normalisers, nothing)


def test_every_platform_has_its_kernel_and_a_name() -> None:
    names = [choose_attention(platform).__name__ for platform in ("cpu", "tpu", "gpu")]
    assert names == ["blocked", "splash", "cudnn"]
    with pytest.raises(ValueError, match="cpu, gpu or tpu"):
        choose_attention("abacus")


def test_what_the_kernel_cannot_compute_is_said_and_left_to_plain() -> None:
    (q, k, v), _, _ = Case().inputs()
    with pytest.warns(UserWarning, match="cudnn to plain.*bfloat16 and float16, not in float32"):
        out = choose_attention("gpu")(q, k, v)  # type: ignore[arg-type]
    assert jnp.array_equal(out, plain(*map(jnp.asarray, (q, k, v))))


def test_limits_of_cudnn() -> None:
    def q(size: int, dtype: str = "bfloat16") -> jax.Array:
        return jnp.zeros((1, 4, 2, size), dtype)

    assert obstacle(q(64), None, None) is None
    assert obstacle(q(256), None, 9.0) is None
    assert "up to 128" in (obstacle(q(256), None, 8.0) or "")
    assert "multiple of 8" in (obstacle(q(60), None, 9.0) or "")
    assert "float32" in (obstacle(q(64, "float32"), None, 9.0) or "")
    assert "Ampere" in (obstacle(q(64), None, 7.5) or "")
    assert "mask" in (obstacle(q(64), jnp.zeros((1, 4), int), 9.0) or "")


@pytest.mark.parametrize("window", [None, 16])
def test_cudnn_lowers_for_cuda_with_its_mask(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # there is none here
    q = jax.ShapeDtypeStruct((2, 128, 4, 64), "bfloat16")
    k = jax.ShapeDtypeStruct((2, 128, 2, 64), "bfloat16")
    attention = choose_attention("gpu")

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, None, window).astype(jnp.float32).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax") == 2
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert "CAUSAL" in text
    assert f"sliding_window_length\\22: {0 if window is None else window + 1}," in text


def test_block_sizes_of_splash_divide_the_row() -> None:
    assert blocks(4096) == (1024, 1024, 128)
    assert blocks(2048)[::2] == (512, 256)
    assert blocks(1024)[::2] == (256, 256)
    for length in range(128, 5000, 128):
        queries, keys, at_once = blocks(length)
        assert length % queries == length % keys == keys % at_once == at_once % 128 == 0


ON_A_MESH = """
import sys
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
sys.path.insert(0, sys.argv[1])
from test_attention import Case, choose_attention, computed, interpreted, largest_error, reference
from nanocode_core.model.attention.divided import divided
import warnings
warnings.simplefilter("error")

def mesh(*sizes):
    return Mesh(np.array(jax.devices()).reshape(sizes), ("data", "fsdp", "tensor"))

for sizes, case in [
    ((2, 1, 2), Case(128, 4, 2, 64, segmented=True)),
    ((1, 2, 2), Case(128, 4, 1, 64, window=50)),  # one key/value head, two devices for heads
]:
    exact = reference(case)
    assert largest_error(computed(choose_attention("cpu", mesh(*sizes)), case), exact) < 2e-5
    assert largest_error(computed(divided(interpreted, mesh(*sizes)), case), exact) < 2e-5

sharding = NamedSharding(mesh(2, 1, 2), PartitionSpec(("data", "fsdp"), None, "tensor"))
q = jax.ShapeDtypeStruct((4, 128, 4, 64), "float32", sharding=sharding)
text = jax.jit(lambda q: choose_attention("cpu", sharding.mesh)(q, q, q)).lower(q).compile().as_text()
assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))

warnings.simplefilter("default")
with warnings.catch_warnings(record=True) as caught:
    computed(choose_attention("cpu", mesh(4, 1, 1)), Case(16))
assert "2 rows can't be divided over 4 devices" in str(caught[0].message), caught
print("done")
"""


def test_rows_and_heads_are_divided_over_a_mesh_and_nothing_is_sent() -> None:
    assert run_python(ON_A_MESH, os.path.dirname(__file__), XLA_FLAGS="--xla_force_host_platform_device_count=4")


def run_python(program: str, *arguments: str, **environment: str) -> bool:
    """Whether the program ends with "done"."""
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.endswith("done\n")
