r"""The order of the rows in training: which of them step $i$ sees, as a pure function of the seed and $i$.

Every epoch is a permutation $\pi_{s,e}$ of the rows, drawn from the seed $s$ and the number $e$ of the epoch. They are
strung together, and step $i$ takes the places $iB, \dots, iB + B - 1$: every batch is full, a batch may span epochs,
and each row comes once per epoch. To go on at step $i$, nothing but $s$ and $i$ need be known.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_seed

Array = np.ndarray[Any, np.dtype[Any]]

LARGE = 2**22
"""Rows above which a permutation is no longer held in memory (32 MiB), but computed place by place."""
ROUNDS = 8
"""Rounds of the Feistel network that computes it."""
BLOCK = 2**16
"""Places that are computed at once."""
_TAG = 0x0DA7A


class Order:
    r"""The row numbers of every batch.

    Up to `LARGE` rows the permutation of an epoch is NumPy's, drawn whole. Above, it is a Feistel network of 8 rounds
    on the smallest $[0, 4^k)$ that holds the rows, where a place that leads outside of them is led on: it takes no
    memory, however many rows there are, and no time to begin in the middle.

    Args:
        n: Number of rows.
        size: Rows of a batch; it may exceed `n`.
        seed: An integer, `>= 0`.

    Raises:
        TypeError, ValueError: `n` or `size` is not a positive integer, `seed` is none or negative.
    """

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed = check_count(n, "n"), check_count(size, "size"), check_seed(seed)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def rows(self, step: int) -> Tensor:
        """The row numbers of step `step = 0, 1, ...`: shape `(size,)`, int64."""
        return torch.from_numpy(self._places(step * self.size, (step + 1) * self.size))

    def epoch(self, step: int) -> float:
        """How many times all rows have been seen before step `step`."""
        return step * self.size / self.n

    def _places(self, start: int, stop: int) -> Array:
        length = self.n if self.n <= LARGE else BLOCK
        parts, at = [], start
        while at < stop:
            epoch, place = divmod(at, self.n)
            block, first = divmod(place, length)
            found = _block(self.n, self.seed, epoch, block)
            parts.append(found[first : first + stop - at])
            at += len(parts[-1])
        return np.concatenate(parts)


@lru_cache(maxsize=4)
def _block(n: int, seed: int, epoch: int, block: int) -> Array:
    """The rows at some places of an epoch: at all of them, or in block number `block` of those of many rows."""
    draw = np.random.default_rng((seed, epoch, _TAG))
    if n <= LARGE:
        return draw.permutation(n)
    keys = draw.integers(0, 2**64, ROUNDS, dtype=np.uint64)
    places = np.arange(block * BLOCK, min((block + 1) * BLOCK, n), dtype=np.uint64)
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    found = _feistel(places, keys, half)
    while (outside := found >= n).any():
        found[outside] = _feistel(found[outside], keys, half)
    return found.astype(np.int64)


def _feistel(places: Array, keys: Array, half: np.uint64) -> Array:
    """A permutation of the integers below $4^{half}$, of which any places may be asked."""
    mask = np.uint64((1 << int(half)) - 1)
    left, right = places >> half, places & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(v: Array) -> Array:
    """The finaliser of SplitMix64: 64 bits, each of which depends on all of the input (Steele et al., 2014)."""
    v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return v ^ (v >> np.uint64(31))
