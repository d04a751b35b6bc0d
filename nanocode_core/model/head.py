"""Next-token losses at the head, without the logits of all places at once.

The head is a third of a small model's work and its logits are the largest array of a training
step. So they are taken in chunks of places, and the gradient of a weighted sum is computed in the
forward pass, chunk by chunk, while the logits are there (three products instead of the four of
recomputation). Where few places have a weight (`dense` off) these are gathered and the rest skipped.
The weights themselves get no gradient: a loss that is not linear in the log-probabilities (DPO)
passes its derivative as weights. On several devices each takes its own places; sums and the
head's gradient are added up.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from nanocode_core.model.backend import ROWS, Backend
from nanocode_core.model.gpt import cap


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_loss(
    hidden: Array, head: Array, targets: Array, weights: Array, softcap: float, backend: Backend, dense: bool = False
) -> tuple[Array, Array]:
    """Sum over places of weight x -log p(target), differentiable in hidden and head only.

    Args:
        hidden: [N, d] normalised states; on several devices N lies over them.
        head: [V, d], float32.
        targets: [N] ids.
        weights: [N] float32.
        softcap: of the logits; 0: none.
        backend: where it runs.
        dense: compute every place; else places of weight 0 cost nothing, and gathering the others a little.

    Returns:
        The weighted sum, and the losses [N] in nats (0 where the weight is 0), which carry no gradient.
    """
    total, losses = _spread(backend, partial(_chunked, softcap, backend.loss_places, dense, False), (), ())(
        hidden, head, targets, weights
    )
    return total, losses


def token_losses(
    hidden: Array, head: Array, targets: Array, mask: Array, softcap: float, backend: Backend, dense: bool = False
) -> Array:
    """-log p(target) in nats at the places where mask [N] is not 0, else 0; no gradient. Returns [N]."""
    weights = (mask != 0).astype(jnp.float32)
    return lax.stop_gradient(weighted_loss(hidden, head, targets, weights, softcap, backend, dense)[1])


def _forward(
    hidden: Array, head: Array, targets: Array, weights: Array, softcap: float, backend: Backend, dense: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    compute = partial(_chunked, softcap, backend.loss_places, dense, True)
    total, losses, d_hidden, d_head = _spread(backend, compute, (P(ROWS),), (P(),))(hidden, head, targets, weights)
    return (total, losses), (d_hidden, d_head)


def _backward(
    softcap: float, backend: Backend, dense: bool, saved: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    d_hidden, d_head = saved
    scale = cotangents[0]
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale, None, None


weighted_loss.defvjp(_forward, _backward)


def _spread(backend: Backend, compute: Callable[..., Any], rows: tuple[P, ...], sums: tuple[P, ...]) -> Any:
    """`compute` on the places of each device: outputs (sum, by place, *rows by place, *sums)."""
    if backend.mesh is None or not backend.spread:
        return lambda hidden, head, targets, weights: compute(hidden, head.astype(hidden.dtype), targets, weights)

    def local(hidden: Array, head: Array, targets: Array, weights: Array) -> tuple[Array, ...]:
        total, losses, *gradients = compute(hidden, head, targets, weights)
        by_place, added = gradients[: len(rows)], gradients[len(rows) :]
        return (lax.psum(total, ROWS), losses, *by_place, *(lax.psum(x, ROWS) for x in added))

    mapped = jax.shard_map(
        local,
        mesh=backend.mesh,
        in_specs=(P(ROWS), P(), P(ROWS), P(ROWS)),
        out_specs=(P(), P(ROWS), *rows, *sums),
        check_vma=False,
    )
    # The cast before the copy to every device: half the bytes.
    return lambda hidden, head, targets, weights: mapped(hidden, head.astype(hidden.dtype), targets, weights)


def _chunked(
    softcap: float,
    places: int,
    dense: bool,
    gradients: bool,
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
) -> tuple[Array, ...]:
    """(weighted sum, losses [N]), and with gradients those of the sum by hidden [N, d] and head [V, d]."""
    targets, weights = jnp.asarray(targets), jnp.asarray(weights)
    N, d = hidden.shape
    size = min(places, N)
    d_start = jnp.zeros(head.shape, jnp.float32) if gradients else jnp.zeros(())

    if dense and N % size == 0:

        def step(carry: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[Any, Any]:
            total, d_head = carry
            loss, d_x, d_more = _chunk(*part, head, softcap, gradients)
            out = (loss, d_x) if gradients else (loss,)
            return (total + jnp.sum(part[2] * loss), d_head + d_more), out

        parts = (hidden.reshape(-1, size, d), targets.reshape(-1, size), weights.reshape(-1, size))
        (total, d_head), (losses, *d_hidden) = lax.scan(step, (jnp.zeros((), jnp.float32), d_start), parts)
        losses = jnp.where(weights != 0, losses.reshape(N), 0)
        return (total, losses, d_hidden[0].reshape(N, d), d_head) if gradients else (total, losses)

    count = jnp.count_nonzero(weights)
    # Places with a weight first, in order; the tail repeats place N, which gathers a zero row.
    order = jnp.nonzero(weights, size=-(-N // size) * size, fill_value=N)[0]

    def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        total, losses, d_hidden, d_head = carry
        chosen = lax.dynamic_slice(order, (i * size,), (size,))
        x, target, weight = (a.at[chosen].get(mode="fill", fill_value=0) for a in (hidden, targets, weights))
        loss, d_x, d_more = _chunk(x, target, weight, head, softcap, gradients)
        losses = losses.at[chosen].set(loss, mode="drop")
        if gradients:
            d_hidden = d_hidden.at[chosen].set(d_x, mode="drop")
        return total + jnp.sum(weight * loss), losses, d_hidden, d_head + d_more

    d_rows = jnp.zeros_like(hidden) if gradients else jnp.zeros(())
    start = (jnp.zeros((), jnp.float32), jnp.zeros((N,), jnp.float32), d_rows, d_start)
    total, losses, d_rows, d_head = lax.fori_loop(0, -(-count // size), body, start)
    return (total, losses, d_rows, d_head) if gradients else (total, losses)


def _chunk(
    x: Array, target: Array, weight: Array, head: Array, softcap: float, gradients: bool
) -> tuple[Array, Array, Array]:
    """Losses [n] of places x [n, d], and the gradients of their weighted sum by x and head (zeros [] without)."""
    logits = cap(jnp.einsum("nd,vd->nv", x, head), softcap)
    top = jnp.max(logits, axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    normaliser = jnp.sum(exponentials, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)
    loss = (jnp.log(normaliser) + top - chosen)[:, 0]
    if not gradients:
        return loss, jnp.zeros(()), jnp.zeros(())
    scale = weight[:, None]
    if softcap:  # d cap(z) / dz = 1 - tanh(z / softcap)^2
        scale = scale * (1 - jnp.square(logits / softcap))
    hot = jnp.arange(head.shape[0]) == target[:, None]
    d_logits = ((exponentials / normaliser - hot) * scale).astype(x.dtype)
    d_head = jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
    return loss, d_logits @ head, d_head
