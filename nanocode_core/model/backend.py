"""How the model is computed on a platform and its devices; never what it computes.

A `Backend` travels with the model as static data: attention, layers in a scan or one by one, what the
backward pass computes again, and the mesh over which arrays are spread. Mesh axes are `data`,
`fsdp` and `tensor`; rows of a batch lie over `ROWS`, the first two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nanocode_core.model.attention import SAVED, Attention, choose_attention

ROWS = ("data", "fsdp")
QKV, MIDDLE, UP = "qkv", "middle", "up"
"""Names of what a remat policy may keep, beside what attention names itself (`SAVED`): the raw products that
queries, keys and values are made of, the state between attention and MLP, the MLP's first product."""

Remat = Literal["none", "products", "attention", "full"]


@dataclass(frozen=True)
class Backend:
    """See the module's docstring.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        mesh: None: one device, or arrays that lie wherever they lie.
        remat: what the backward pass of a layer computes again.
        scan: layers in `lax.scan`: compile time does not depend on the depth. One by one otherwise,
            which on a CPU saves copies of weights and activations (LOG.md).
        loss_places: places whose logits exist at the same time on a device.
    """

    platform: str
    mesh: Mesh | None = None
    remat: Remat = "none"
    scan: bool = True
    loss_places: int = 4096

    @classmethod
    def of(cls, platform: str | None = None, mesh: Mesh | None = None, remat: Remat | None = None) -> "Backend":
        """What suits a platform; default: where jax computes."""
        platform = platform or jax.default_backend()
        cpu = platform == "cpu"
        # A TPU computes what is elementwise again faster than it writes and reads it.
        remat = remat or ("products" if platform == "tpu" else "none")
        return cls(platform, mesh, remat, scan=not cpu, loss_places=1024 if cpu else 4096)

    @property
    def attention(self) -> Attention:
        """The platform's attention."""
        return choose_attention(self.platform, self.mesh)

    @property
    def spread(self) -> bool:
        """Whether arrays lie over several devices."""
        return self.mesh is not None and self.mesh.size > 1

    def replicated(self, x: Array) -> Array:
        """`x`, whole on every device."""
        return self._constrained(x, PartitionSpec())

    def rows(self, x: Array) -> Array:
        """`x` [B, ...], its rows over the devices."""
        return self._constrained(x, PartitionSpec(ROWS))

    def recomputed(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer` under the remat policy."""
        if self.remat == "none":
            return layer
        kept = {"products": (SAVED, QKV, MIDDLE, UP), "attention": (SAVED,), "full": ()}[self.remat]
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        return jax.checkpoint(layer, policy=policy, prevent_cse=not self.scan)

    def _constrained(self, x: Array, spec: PartitionSpec) -> Array:
        if self.mesh is None or not self.spread:
            return x
        out: Array = jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
        return out


def named(x: Array, name: str) -> Array:
    """`x`, under a name for the remat policy."""
    out: Array = checkpoint_name(x, name)
    return out
