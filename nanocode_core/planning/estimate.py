"""What can be reckoned without a compiler: hours, dollars, and an estimate of the memory.

Time = FLOPs / (chips x peak x MFU). The memory estimate adds up, for one device, what is known
exactly (its share of parameters and optimizer state), the gradients, the arrays that the forward
pass keeps for the backward pass, and what is at work at the fullest moment: one layer going
backward, or a chunk of logits. The factors were fitted to compilations for v6e; an estimate is
named so wherever it is shown.
"""

from dataclasses import dataclass

from nanocode_core.config import Config
from nanocode_core.config.chips import Prices, dollars
from nanocode_core.planning.accelerators import Accelerator
from nanocode_core.planning.protocol import Facts, Mesh, State

KEPT = {"none": 25.5, "products": 10.0, "attention": 2.0, "full": 1.0}
"""Arrays [rows, T, d] in the compute type that a layer keeps for the backward pass, by remat policy."""
WORKING = 31.0
"""The same of the one layer that is going backward."""
LOGIT_BYTES = 14
"""For each of the logits that exist at the same time, gradients included."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device; `kept` and `working` as in the module's docstring."""

    parameters: int
    optimizer: int
    gradients: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """All together."""
        return self.parameters + self.optimizer + self.gradients + self.kept + self.working


def estimate_memory(config: Config, facts: Facts, state: State, mesh: Mesh, micro: int, share: int) -> Memory:
    """Estimate the memory of one device.

    Args:
        config: shape and compute type.
        facts: its remat policy and loss chunk on the accelerator.
        state: of the training on one device.
        mesh: along `tensor` the arrays of a layer are cut, too.
        micro: sequences a device computes at once.
        share: sequences a device has of the batch; with several goes the gradients are there twice.
    """
    model = config.model
    item = 2 if model.compute == "bfloat16" else 4
    array = item * micro * model.sequence * model.width / mesh.tensor
    # Tables are cast, and gathered, whole on every device; value embeddings need as much again, and more,
    # for their gradients.
    values = facts.parameters.get("value_embeddings", 0)
    tables = item * (facts.parameters["embedding"] + facts.parameters["head"] + values) + (item + 4) * values
    per_layer = KEPT[facts.remat] + (0.5 if model.value_embeddings else 0.0)
    logits = LOGIT_BYTES * min(facts.loss_places, micro * model.sequence) * config.tokenizer.vocabulary
    return Memory(
        parameters=state.parameters,
        optimizer=state.optimizer,
        gradients=state.parameters * (1 if micro == share else 2),
        kept=int(array * per_layer * model.depth) + (tables if mesh.devices > 1 else 0),
        working=int(max(array * WORKING, logits)),
    )


@dataclass(frozen=True)
class Cost:
    """Time and money of the pretraining; None where the chip's peak or price isn't known."""

    hours: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    on_demand: float | None
    spot: float | None


def cost(facts: Facts, accelerator: Accelerator, mfu: float, prices: Prices) -> Cost:
    """Reckon time and money from a utilization between 0 and 1."""
    chip, chips = accelerator.chip, accelerator.chips
    if chip.peak_flops is None:
        return Cost(None, None, None, None, None)
    tokens_per_second = chips * chip.peak_flops * mfu / facts.flops_per_token
    seconds = facts.tokens / tokens_per_second
    return Cost(
        hours=seconds / 3600,
        tokens_per_second=tokens_per_second,
        step_seconds=facts.tokens_per_step / tokens_per_second,
        on_demand=dollars(seconds / 60, chip, chips, prices=prices),
        spot=dollars(seconds / 60, chip, chips, spot=True, prices=prices),
    )


def gib(number_of_bytes: float) -> str:
    """Bytes as GiB with two places."""
    return f"{number_of_bytes / 2**30:.2f} GiB"
