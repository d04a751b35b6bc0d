"""Rates with what they were computed from, and how figures are rounded."""

from collections.abc import Iterable
from typing import Any

DIGITS = 6

Rate = dict[str, float | int | None]


def rate(count: int, of: int) -> Rate:
    """A share with its numerator and denominator; None where nothing was counted."""
    return {"rate": round(count / of, DIGITS) if of else None, "count": count, "of": of}


def share(values: Iterable[bool]) -> Rate:
    """The share of true values."""
    kept = list(values)
    return rate(sum(kept), len(kept))


def rounded(value: Any) -> Any:
    """A JSON value with every float rounded to six digits."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
