"""What a `seed=` means: one stream of random numbers for each sample."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch

from sde_diffusion.noise._tree import GOLDEN, mix

Seed = int | Sequence[int] | torch.Generator | None


def seed_list(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of `n` samples: `k + i` for an integer `k`, the sequence itself, or fresh entropy for None.

    Raises:
        TypeError: Something else.
        ValueError: A sequence of another length, or a negative seed.
    """
    if seed is None:
        seed = secrets.randbits(31)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds = list(range(int(seed), int(seed) + n))
    elif isinstance(seed, (list, tuple, range)) and all(isinstance(k, (int, np.integer)) for k in seed):
        seeds = [int(k) for k in seed]
        if len(seeds) != n:
            raise ValueError(f"got {len(seeds)} seeds for {n} samples: give one integer, or one seed per sample")
    else:
        raise TypeError(f"seed must be an integer, a sequence of integers, a torch.Generator or None, got {seed!r}")
    if not 0 <= min(seeds, default=0) <= max(seeds, default=0) < 1 << 32:
        worst = min(seeds) if min(seeds) < 0 else max(seeds)
        raise ValueError(f"seeds must be >= 0 and below 2**32 (all that torch's generator reads of one), got {worst}")
    return seeds


def as_seeds(seed: Seed, n: int) -> list[int] | torch.Generator:
    """One seed per sample, or the shared generator (asked for last: that test takes as long as ten steps)."""
    if seed is None or isinstance(seed, (int, Integral, list, tuple, range)):
        return seed_list(seed, n)
    return seed if isinstance(seed, torch.Generator) else seed_list(seed, n)


def apart(seeds: list[int] | torch.Generator, use: int) -> list[int] | torch.Generator:
    """The seeds of another use of the same samples, such as a later stage: a shared stream goes on for all uses.

    Each seed changes by the same word, one for each use, so that no two samples get one stream; and none has the same
    stream for two uses, as no two words are alike.

    Args:
        seeds: As `as_seeds` gives them.
        use: The number of the use; 0 leaves the seeds as they are.
    """
    if isinstance(seeds, torch.Generator) or not use:
        return seeds
    word = int(mix(np.array([use], dtype=np.uint64) * np.uint64(GOLDEN))[0] >> np.uint64(32))
    return [seed ^ word for seed in seeds]


def one_stream(seed: int | torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The one stream that all rows of a data set are drawn from: that of an integer, a given one, or a fresh one.

    Raises:
        TypeError: Something else, a sequence of seeds among it.
        ValueError: A seed out of range.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, Sequence):
        raise TypeError(f"seed must be an integer, a torch.Generator or None, one stream for all rows, got {seed!r}")
    return torch.Generator(device).manual_seed(seed_list(seed, 1)[0])
