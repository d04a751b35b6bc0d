"""Next-token losses at the head, without the logits of all places at once.

The head is a third of a small model's work and its logits are the largest array of a training
step. So the places with a weight are gathered, and the rest skipped; they are taken in chunks; and
the gradient of a weighted sum is computed in the forward pass, chunk by chunk, while the logits are
there (three products instead of the four of recomputation). The weights themselves get no gradient:
a loss that is not linear in the log-probabilities (DPO) passes its derivative as weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from nanocode_core.model.gpt import cap

CHUNK = 1024
"""Places whose logits exist at the same time."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_loss(hidden: Array, head: Array, targets: Array, weights: Array, softcap: float) -> tuple[Array, Array]:
    """Sum over places of weight x -log p(target), differentiable in hidden and head only.

    Args:
        hidden: [N, d] normalised states.
        head: [V, d], float32.
        targets: [N] ids.
        weights: [N] float32; places of weight 0 cost nothing.
        softcap: of the logits; 0: none.

    Returns:
        The weighted sum, and the losses [N] in nats (0 where the weight is 0), which carry no gradient.
    """
    total, losses, _, _ = _chunked(hidden, head, targets, weights, softcap, gradients=False)
    return total, losses


def token_losses(hidden: Array, head: Array, targets: Array, mask: Array, softcap: float) -> Array:
    """-log p(target) in nats at the places where mask [N] is not 0, else 0; no gradient. Returns [N]."""
    return lax.stop_gradient(weighted_loss(hidden, head, targets, (mask != 0).astype(jnp.float32), softcap)[1])


def _forward(
    hidden: Array, head: Array, targets: Array, weights: Array, softcap: float
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    total, losses, d_hidden, d_head = _chunked(hidden, head, targets, weights, softcap, gradients=True)
    return (total, losses), (d_hidden, d_head)


def _backward(
    softcap: float, saved: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    d_hidden, d_head = saved
    scale = cotangents[0]
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale, None, None


weighted_loss.defvjp(_forward, _backward)


def _chunked(
    hidden: Array, head: Array, targets: Array, weights: Array, softcap: float, *, gradients: bool
) -> tuple[Array, Array, Array, Array]:
    """(weighted sum, losses [N], gradients of the sum by hidden [N, d] and head [V, d])."""
    targets, weights = jnp.asarray(targets), jnp.asarray(weights)
    N = len(hidden)
    size = min(CHUNK, N)
    chunks = -(-N // size)
    count = jnp.count_nonzero(weights)
    # Places with a weight first, in order; the tail repeats place N, which gathers a zero row.
    order = jnp.nonzero(weights, size=chunks * size, fill_value=N)[0]
    head_cast = head.astype(hidden.dtype)

    def body(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        total, losses, d_hidden, d_head = carry
        places = lax.dynamic_slice(order, (i * size,), (size,))
        x = hidden.at[places].get(mode="fill", fill_value=0)
        target = targets.at[places].get(mode="fill", fill_value=0)
        weight = weights.at[places].get(mode="fill", fill_value=0)
        logits = cap(jnp.einsum("nd,vd->nv", x, head_cast), softcap)
        top = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        normaliser = jnp.sum(exponentials, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)
        loss = (jnp.log(normaliser) + top - chosen)[:, 0]
        total = total + jnp.sum(weight * loss)
        losses = losses.at[places].set(loss, mode="drop")
        if gradients:
            scale = weight[:, None]
            if softcap:  # d cap(z) / dz = 1 - tanh(z / softcap)^2
                scale = scale * (1 - jnp.square(logits / softcap))
            hot = jnp.arange(head.shape[0]) == target[:, None]
            d_logits = ((exponentials / normaliser - hot) * scale).astype(hidden.dtype)
            d_hidden = d_hidden.at[places].set(d_logits @ head_cast, mode="drop")
            d_head = d_head + jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
        return total, losses, d_hidden, d_head

    start = (
        jnp.zeros((), jnp.float32),
        jnp.zeros((N,), jnp.float32),
        jnp.zeros_like(hidden) if gradients else jnp.zeros((), hidden.dtype),
        jnp.zeros_like(head) if gradients else jnp.zeros(()),
    )
    end: tuple[Array, Array, Array, Array] = lax.fori_loop(0, -(-count // size), body, start)
    return end
