"""Splash attention compiled for TPUs that aren't here: do its blocks fit the on-chip memory?"""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'nanocode[tpu]'"
    ),
]

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from nanocode_core.model.attention import choose_attention

topology = topologies.get_topology_desc(
    platform="tpu", topology_name=sys.argv[1] + ":2x4", chips_per_host_bounds=(2, 4, 1)
)
mesh = topologies.make_mesh(topology, (2, 2, 2), ("data", "fsdp", "tensor"))
rows, heads = PartitionSpec(("data", "fsdp")), PartitionSpec(("data", "fsdp"), None, "tensor")
attention = choose_attention("tpu", mesh)

for length, size, kv_heads, window, dtype in [
    (1024, 256, 4, None, "bfloat16"),
    (2048, 256, 4, 512, "bfloat16"),
    (4096, 256, 4, None, "bfloat16"),
    (4096, 256, 4, 1024, "float32"),
    (4096, 128, 2, 1024, "bfloat16"),
    (1000, 64, 1, None, "bfloat16"),
]:
    def array(*shape, dtype=dtype, spec=heads):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    q = array(8, length, 4, size)
    k = array(8, length, kv_heads, size, spec=heads if kv_heads > 1 else rows)
    for segments in (None, array(8, length, dtype="int32", spec=rows))[: 2 if window else 1]:
        def loss(q, k, v, segments):
            return attention(q, k, v, segments, window).astype(jnp.float32).sum()

        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, segments).compile().as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 2, text  # one kernel forward, one backward
print("done")
"""


@pytest.mark.parametrize("chip", ["v6e", "v5e"])
def test_splash_compiles_for_the_lengths_and_heads_of_the_presets(chip: str) -> None:
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": f"{chip}-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_LOG_DIR": "disabled",
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, chip], env=os.environ | environment, capture_output=True, text=True, timeout=290
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.endswith("done\n")
