"""A seeded permutation of 0 ... n-1 that is computed point by point, in constant memory.

A Feistel network permutes the numbers of 2k bits, for the smallest such domain that holds n; a
result outside 0 ... n-1 is put through again until it falls inside ("cycle walking", Black and
Rogaway 2002: Ciphers with arbitrary finite domains), which keeps it a bijection. Fewer than four
rounds of walking are needed on average. It is a shuffle, not a cipher.
"""

import math

import numpy as np

_ROUNDS = 6


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the permutation of range(n) that belongs to `key` sends each index.

    Args:
        index: integers [...] in 0 ... n-1.
        n: size of the domain, at most 2**62.
        key: any non-negative integer.

    Returns:
        int64 [...].
    """
    if n <= 0 or (index.size and (index.min() < 0 or index.max() >= n)):
        raise ValueError(f"index out of range for {n} rows")
    bits = max(1, -(-(n - 1).bit_length() // 2))
    round_keys = _round_keys(key)
    out = _feistel(index.astype(np.uint64).ravel(), bits, round_keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], bits, round_keys)
    return out.astype(np.int64).reshape(index.shape)


def batch_rows(step: int, batch: int, n: int, seed: int) -> np.ndarray:
    """The rows of a step: int64 [batch], a pure function of the arguments.

    Steps walk through an endless stream of epochs, each a permutation of the n rows of its own,
    drawn from (seed, epoch). No row is lost or repeated in an epoch; a batch may span several.
    """
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs, index = np.divmod(position, n)
    rows = np.empty_like(position)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permute(index[here], n, (seed << 32) + int(epoch))
    return rows


def steps(epochs: float, batch: int, n: int) -> int:
    """Steps in which each of n rows is seen `epochs` times, rounded up."""
    return max(1, math.ceil(epochs * n / batch - 1e-9))


def _feistel(value: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    """One pass over uint64 values of 2 * bits bits."""
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(bits)
    left, right = value >> shift, value & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _round_keys(key: int) -> np.ndarray:
    seeds = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    return np.asarray(seeds, dtype=np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
