"""The training losses as sums over rows: next-token prediction, and preference optimization (DPO).

A prediction batch is a mapping of arrays [B, T]: `inputs`, `targets`, `weights` (they add up to one
over the global batch), and for packed rows `segments` and `positions`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from nanocode_core.model.gpt import GPT
from nanocode_core.model.head import token_losses, weighted_loss

Batch = Mapping[str, Any]
Objective = Callable[[GPT, Batch], tuple[Array, dict[str, Array]]]
"""(model, rows) -> (weighted loss, further sums for the metrics); both add up over micro-batches."""

HostBatch = dict[str, NDArray[Any]]


def whole_rows(rows: NDArray[Any]) -> HostBatch:
    """The prediction batch of unpacked rows [B, T + 1]: every place predicts the next token."""
    rows = rows.astype(np.int32)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    weights = np.full(inputs.shape, 1 / inputs.size, np.float32)
    return {"inputs": inputs, "targets": targets, "weights": weights}


def packed_rows(tokens: NDArray[Any], mask: NDArray[Any], segments: NDArray[Any], positions: NDArray[Any]) -> HostBatch:
    """The prediction batch of packed sequences, all [B, T + 1]; its own arrays are [B, T].

    A place predicts the next one where that is of the same segment and the mask marks it as to be
    learned. Segment 0 is padding. The weights are equal and add up to one (0 where nothing is marked).
    """
    learned = (mask[:, 1:] != 0) & (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
    return {
        "inputs": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "weights": learned.astype(np.float32) / np.float32(max(1, learned.sum())),
        "segments": segments[:, :-1].astype(np.int32),
        "positions": positions[:, :-1].astype(np.int32),
    }


def paired_rows(
    chosen: NDArray[Any], chosen_mask: NDArray[Any], rejected: NDArray[Any], rejected_mask: NDArray[Any]
) -> HostBatch:
    """The batch of preference pairs, sides [P, L + 1] filled up on the right.

    Its first axis is pairs: `inputs`, `targets` and `weights` (0 or 1) are [P, 2, L], chosen first;
    `share` [P] is each pair's part of the mean loss.
    """
    tokens = np.stack([chosen, rejected], axis=1).astype(np.int32)
    mask = np.stack([chosen_mask, rejected_mask], axis=1)
    return {
        "inputs": tokens[:, :, :-1],
        "targets": tokens[:, :, 1:],
        "weights": (mask[:, :, 1:] != 0).astype(np.float32),
        "share": np.full(len(tokens), 1 / len(tokens), np.float32),
    }


def next_token(model: GPT, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Weighted mean of -log p(target), in nats; the objective of pretraining and SFT."""
    hidden, targets, weights = _states(model, batch)
    # Unpacked rows (pretraining) learn at every place.
    dense = "segments" not in batch
    total, _ = weighted_loss(hidden, model.head[...], targets, weights, model.shape.softcap, model.backend, dense)
    return total, {}


def preference(kind: Literal["ipo", "sigmoid"], beta: float) -> Objective:
    """The objective of DPO on paired rows with `reference` [P, 2] added.

    With margin m = (log p(chosen) - log p(rejected)) - the same under the reference model, each
    log-probability summed over the side's assistant tokens:
    ipo: (m - 1 / (2 beta))^2 (Azar et al. 2023); sigmoid: -log sigmoid(beta m) (Rafailov et al. 2023).
    """

    def objective(model: GPT, batch: Batch) -> tuple[Array, dict[str, Array]]:
        P, _, L = batch["inputs"].shape
        sides = {name: batch[name].reshape(2 * P, L) for name in ("inputs", "targets", "weights")}
        hidden, targets, weights = _states(model, sides)
        head, softcap = model.head[...], model.shape.softcap
        # The loss is not linear in the log-probabilities. Its derivative by each of them comes from
        # a first pass over the head; weighted by that, the second pass has the right gradient.
        nats = token_losses(
            lax.stop_gradient(hidden), lax.stop_gradient(head), targets, weights, softcap, model.backend
        )
        logprobs = -jnp.sum(nats.reshape(P, 2, L), axis=-1)

        def mean_loss(logprobs: Array) -> tuple[Array, Array]:
            ratio = logprobs - batch["reference"]
            margins = ratio[:, 0] - ratio[:, 1]
            return jnp.sum(batch["share"] * preference_loss(kind, beta, margins)), margins

        (loss, margins), slope = jax.value_and_grad(mean_loss, has_aux=True)(logprobs)
        by_token = weights * jnp.repeat(-slope.reshape(-1), L)
        linear, _ = weighted_loss(hidden, head, targets, by_token, softcap, model.backend)
        share = batch["share"]
        sums = {"margin": jnp.sum(share * margins), "margin_positive": jnp.sum(share * (margins > 0))}
        return linear + lax.stop_gradient(loss - linear), sums

    return objective


def preference_loss(kind: Literal["ipo", "sigmoid"], beta: float, margins: Array) -> Array:
    """The loss of each pair from its margin in nats; see `preference`."""
    if kind == "ipo":
        return jnp.square(margins - 1 / (2 * beta))
    return -jax.nn.log_sigmoid(beta * margins)


def _states(model: GPT, batch: Batch) -> tuple[Array, Array, Array]:
    """Hidden states [N, d], targets [N] and weights [N] of all places of a batch."""
    hidden = model.hidden(batch["inputs"], batch.get("segments"), batch.get("positions"))
    return hidden.reshape(-1, hidden.shape[-1]), batch["targets"].reshape(-1), batch["weights"].reshape(-1)
