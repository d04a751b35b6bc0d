"""Does the training step fit a slice, and with how many sequences at once on a device?

A device has its share of the global batch; it computes `micro` sequences at a time and adds the
gradients up, so micro must divide the share. More at a time is faster until memory ends. What fits
is asked from the compiler, and since a compilation takes minutes, by bisection over the divisors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanocode_core.planning.protocol import Outcome

Compile = Callable[[int], Outcome]
"""Sequences at once on a device -> what the compiler said."""


@dataclass(frozen=True)
class Fit:
    """What the compilations showed.

    Attributes:
        micro: the most sequences at once on a device that fit; None: not even one does.
        outcome: of that many, or of one where none fits.
        tried: every size that was compiled, ascending.
    """

    micro: int | None
    outcome: Outcome
    tried: tuple[tuple[int, Outcome], ...]


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def largest_fit(sizes: Sequence[int], compile_at: Compile, first: int | None = None) -> Fit:
    """Bisect for the largest of `sizes` (ascending) that fits, assuming that what is smaller fits too.

    Args:
        sizes: to choose from, at least one.
        compile_at: see `Compile`.
        first: where to start, one of the sizes; default: in the middle.
    """
    tried: dict[int, Outcome] = {}
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] doesn't
    place = sizes.index(first) if first is not None else len(sizes) // 2
    while high - low > 1:
        outcome = tried[sizes[place]] = compile_at(sizes[place])
        low, high = (place, high) if outcome.fits else (low, place)
        place = (low + high) // 2
    micro = sizes[low] if low >= 0 else None
    return Fit(micro, tried[sizes[max(low, 0)]], tuple(sorted(tried.items())))
