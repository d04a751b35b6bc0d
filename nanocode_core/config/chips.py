"""Accelerator chips: peak FLOP/s, memory and prices, for MFU and cost in plans and reports.

A figure that no source settled is None, and what depends on it is then not shown. What a chip can do
stands here; what it costs moves, and stands in a file: `prices.toml` beside this one, over which the
file that NANOCODE_PRICES names is laid.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanocode_core.errors import UserError


@dataclass(frozen=True)
class Price:
    """Dollars for one chip and hour; `spot` is the preemptible price, None where there is none."""

    on_demand: float
    spot: float | None
    date: str
    source: str


Prices = Mapping[str, Price]
"""By the name of the chip."""


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

    @property
    def price(self) -> Price | None:
        """By the price file in force; None where it doesn't name the chip."""
        return prices_in_force().get(self.name)


_GB = 1e9 / 2**30

CPU = Chip("cpu", ("cpu",), None, None, None)

CHIPS: tuple[Chip, ...] = (
    CPU,
    Chip("v5e", ("tpu v5 lite", "tpu v5e", "tpu v5litepod"), 197e12, 16 * _GB, 819e9),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32.0, 1638e9),
    # After v5e: "tpu v5" alone is how JAX names a v5p.
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95.0, 2765e9),
    Chip("tpu7x", ("tpu7x", "tpu v7x"), 2307e12, 192.0, 7380e9),
    # NVIDIA's data sheets for the SXM modules print twice the peak: that is with structured sparsity.
    Chip("H100", ("nvidia h100",), 989.4e12, 80 * _GB, 3350e9),
    Chip("H200", ("nvidia h200",), 989.4e12, 141 * _GB, 4800e9),
)

LIST = Path(__file__).with_name("prices.toml")


def find_chip(kind: str) -> Chip | None:
    """The chip of a name ("v6e") or of a JAX device kind ("TPU v6 lite"); None where it isn't known."""
    wanted = kind.strip().lower()
    for chip in CHIPS:
        if wanted == chip.name.lower() or wanted.startswith(chip.kinds):
            return chip
    return None


def load_prices(path: str | Path | None = None) -> Prices:
    """The package's prices, with those of the file at `path` laid over them.

    Raises:
        UserError: the file can't be read, or a line in it isn't a price; names the file and the place.
    """
    prices = dict(_read_prices(LIST))
    if path is not None:
        prices.update(_read_prices(Path(path)))
    return prices


def prices_in_force() -> Prices:
    """The package's prices, with those of the file that NANOCODE_PRICES names laid over them."""
    return _cached(os.environ.get("NANOCODE_PRICES") or None)


_cached = cache(load_prices)


def _read_prices(path: Path) -> dict[str, Price]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"prices {path}: {error}; write a TOML table a chip, like {LIST}") from None
    return {_chip_name(path, name): _price(path, name, table) for name, table in tables.items()}


def _chip_name(path: Path, name: str) -> str:
    for chip in CHIPS:
        if chip.name.lower() == name.lower():
            return chip.name
    raise UserError(f"prices {path}: no chip is named {name!r}; choose from {', '.join(c.name for c in CHIPS)}")


def _price(path: Path, name: str, table: Any) -> Price:
    def dollars_an_hour(field: str) -> float:
        value = table[field]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(f"prices {path}: {name}.{field} must be dollars per chip and hour (got {value!r})")
        return float(value)

    known = {"on_demand", "spot", "date", "source"}
    if not isinstance(table, dict) or "on_demand" not in table or not set(table) <= known:
        raise UserError(f"prices {path}: [{name}] needs on_demand and may have {', '.join(sorted(known))}")
    spot = dollars_an_hour("spot") if "spot" in table else None
    return Price(dollars_an_hour("on_demand"), spot, str(table.get("date", "undated")), str(table.get("source", path)))


def utilization(flops_per_second: float, chip: Chip, chips: int = 1) -> float | None:
    """Model FLOPs utilization (MFU), 0 to 1, over all chips; None where the peak isn't known."""
    return flops_per_second / (chip.peak_flops * chips) if chip.peak_flops else None


def dollars(
    minutes: float, chip: Chip, chips: int = 1, spot: bool = False, prices: Prices | None = None
) -> float | None:
    """What `chips` chips cost for so many minutes; None where the price isn't known."""
    price = (prices_in_force() if prices is None else prices).get(chip.name)
    rate = None if price is None else price.spot if spot else price.on_demand
    return None if rate is None else minutes / 60 * chips * rate
