"""What a `seed=` means: one stream of random numbers for each sample, and one for each use of it.

Whoever draws data by a seed and then asks about them with the same seed, as one does, has independent numbers in the
two: but for the solve of a sampler itself, all that is drawn by seeds goes through `apart`, or names its `Use` to
`one_stream`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from enum import IntEnum
from numbers import Integral
from typing import overload

import numpy as np
import torch

from sde_diffusion.noise._tree import GOLDEN, mix

Seed = int | Sequence[int] | torch.Generator | None


class Use(IntEnum):
    """The uses of a seed, each with numbers of its own: whoever draws by seeds has its line here.

    1 to 999 are the later stages of a cascade, which have all the other uses beside their own solve.
    """

    SOLVE = 0
    """The initial state and the steps of a sampler, or of a system of particles."""
    AUGMENTATION = 1000
    """The noise on the low resolution that a stage of a cascade is told."""
    PROBES = 1001
    """The directions in which a divergence is probed."""
    BOUND = 1002
    """The levels and the noise of a variational bound."""
    CODES = 1003
    """Draws from the law of the codes that a codec answers."""
    DEQUANTISATION = 1004
    """Where in its bin a discrete value lies."""
    EDITING = 1005
    """The noise that is added to given data, and the steps back from there."""
    ROWS = 1006
    """Which rows of data are looked at more closely."""
    RESAMPLING = 1007
    """Which particles are taken."""
    REFERENCES = 1008
    """The random points of a test of calibration."""
    TIES = 1009
    """The order of values that are alike."""
    CHECKS = 1010
    """What a check draws besides: noise on data, levels, directions, shuffles."""


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


@overload
def apart(seeds: Sequence[int], use: int) -> list[int]: ...


@overload
def apart(seeds: Sequence[int] | torch.Generator, use: int) -> list[int] | torch.Generator: ...


def apart(seeds: Sequence[int] | torch.Generator, use: int) -> list[int] | torch.Generator:
    """The seeds of another use of the same samples, such as a later stage: a shared stream goes on for all uses.

    Each seed changes by the same word, one for each use, so that no two samples get one stream; and none has the same
    stream for two uses, as no two words are alike.

    Args:
        seeds: As `as_seeds` gives them.
        use: One of `Use`, or the number of a stage; 0 leaves the seeds as they are.
    """
    if isinstance(seeds, torch.Generator):
        return seeds
    if not use:
        return list(seeds)
    word = int(mix(np.array([use], dtype=np.uint64) * np.uint64(GOLDEN))[0] >> np.uint64(32))
    return [seed ^ word for seed in seeds]


def one_stream(
    seed: int | torch.Generator | None, device: torch.device | str = "cpu", use: int = Use.SOLVE
) -> torch.Generator:
    """The one stream that all rows of a data set are drawn from: that of an integer, a given one, or a fresh one.

    Args:
        seed: Which.
        device: Where a stream that is made here draws.
        use: What for; a given stream goes on for all uses.

    Raises:
        TypeError: Something else, a sequence of seeds among it.
        ValueError: A seed out of range.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, Sequence):
        raise TypeError(f"seed must be an integer, a torch.Generator or None, one stream for all rows, got {seed!r}")
    return torch.Generator(device).manual_seed(apart(seed_list(seed, 1), use)[0])
