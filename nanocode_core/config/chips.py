"""Accelerators: peak FLOP/s, memory and prices, for MFU and cost in plans and reports.

A figure that no source settled is None, and what depends on it is then not shown. Spot prices move:
they are those of the day the table was made, and `Price` says which and where.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """Dollars for one chip and hour; `spot` is the preemptible price."""

    on_demand: float
    spot: float
    date: str
    source: str


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        kinds: beginnings of the names by which JAX knows it (`device.device_kind`), lowercase.
        peak_flops: dense bfloat16 matrix products, FLOP/s; None where MFU makes no sense.
        memory_gib: memory of one chip, GiB.
        bandwidth: bytes per second between chip and memory.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float | None
    memory_gib: float | None
    bandwidth: float | None
    price: Price | None


def _google(on_demand: float, spot: float) -> Price:
    return Price(on_demand, spot, date="2026", source="Google Cloud list prices, us-central1 and us-east1")


_GB = 1e9 / 2**30

CPU = Chip("cpu", ("cpu",), None, None, None, None)

CHIPS: tuple[Chip, ...] = (
    CPU,
    Chip("v5e", ("tpu v5 lite", "tpu v5e", "tpu v5litepod"), 197e12, 16 * _GB, 819e9, _google(1.20, 0.245)),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32.0, 1638e9, _google(2.70, 0.573)),
    # After v5e: "tpu v5" alone is how JAX names a v5p.
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95.0, 2765e9, _google(4.20, 0.93)),
    Chip("tpu7x", ("tpu7x", "tpu v7x"), 2307e12, 192.0, 7380e9, None),
    # NVIDIA's data sheets for the SXM modules print twice the peak: that is with structured sparsity.
    Chip("H100", ("nvidia h100",), 989.4e12, 80 * _GB, 3350e9, None),
    Chip("H200", ("nvidia h200",), 989.4e12, 141 * _GB, 4800e9, None),
)


def find_chip(kind: str) -> Chip | None:
    """The chip of a name ("v6e") or of a JAX device kind ("TPU v6 lite"); None where it isn't known."""
    wanted = kind.strip().lower()
    for chip in CHIPS:
        if wanted == chip.name.lower() or wanted.startswith(chip.kinds):
            return chip
    return None


def utilization(flops_per_second: float, chip: Chip, chips: int = 1) -> float | None:
    """Model FLOPs utilization (MFU), 0 to 1, over all chips; None where the peak isn't known."""
    return flops_per_second / (chip.peak_flops * chips) if chip.peak_flops else None


def dollars(minutes: float, chip: Chip, chips: int = 1, spot: bool = False) -> float | None:
    """What `chips` chips cost for so many minutes; None where the price isn't known."""
    if chip.price is None:
        return None
    return minutes / 60 * chips * (chip.price.spot if spot else chip.price.on_demand)
