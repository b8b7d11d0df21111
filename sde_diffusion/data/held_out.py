"""Rows to train on, and rows kept out to measure on: by a seed, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_real, check_seed
from sde_diffusion.data.source import source_of
from sde_diffusion.data.sources.arrays import Part, Rows
from sde_diffusion.data.sources.base import Source

SHARE, LEAST = 0.1, 64
"""The part of the rows that is kept out if nothing is said, and of how few rows it is more: up to a quarter of them."""
_TAG = 0x5B117


def split(data: Any, fraction: float | None = None, seed: int = 0, **cond: Any) -> tuple[Source, Source]:
    """Splits data in two, the same for the same number of rows, classes and seed; neither part is ever empty.

    Where there are labels, every class is split in the same share, to within one row. Rows that belong together, of one
    patient for instance, this does not know of: split those by hand.

    Args:
        data: What `source_of` takes, but no stream.
        fraction: The share of the rows that is kept out, in `(0, 1)`; at least one row, and not all of them. By default
            a tenth, but 64 rows of 256 to 640, and a quarter of fewer: a handful cannot tell when a run is at its best.
        seed: An integer, `>= 0`.
        **cond: Conditions of the rows, by name.

    Returns:
        Rows to train on, and rows kept out, each in the order of the data.

    Raises:
        TypeError: A stream, whose rows have no numbers.
        ValueError: Fewer than two rows; a fraction outside of `(0, 1)`.
    """
    source = source_of(data, cond)
    if not isinstance(source, Source):
        raise TypeError(
            f"{type(data).__name__} is a stream, whose rows have no numbers to split them by: make two of it yourself"
        )
    if fraction is not None and not 0 < check_real(fraction, "fraction") < 1:
        raise ValueError(f"fraction is the share that is kept out and must lie between 0 and 1, got {fraction!r}")
    if check_seed(seed) < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    n = len(source)
    if n < 2:
        raise ValueError("the data have 1 row, and two parts need 2 or more")
    count = max(SHARE * n, min(LEAST, n / 4)) if fraction is None else fraction * n
    out = _kept_out(n, source.labels(), max(1, min(n - 1, round(count))), seed)
    rest = torch.ones(n, dtype=torch.bool, device="cpu")
    rest[out] = False
    return _part(source, rest.nonzero()[:, 0]), _part(source, out)


def _part(source: Source, numbers: Tensor) -> Source:
    """Some rows of a source: as rows of their own if they are in memory, which is faster to read."""
    if type(source) is not Rows:
        return Part(source, numbers)
    x, cond = source.rows(numbers)
    found = Rows(x, cond, source.columns)
    found.about, found.batch_size = source.about, source.batch_size
    return found


def _kept_out(n: int, labels: Tensor | None, count: int, seed: int) -> Tensor:
    """The numbers of `count` rows, sorted: of every class its share, the rest where most is missing from it."""
    draw = np.random.default_rng((seed, _TAG))
    classes = np.zeros(n, np.int64) if labels is None else labels.cpu().numpy()
    members = [draw.permutation(np.flatnonzero(classes == c)) for c in np.unique(classes)]
    shares = np.array([len(rows) * count / n for rows in members])
    each = np.floor(shares).astype(np.int64)
    largest = np.argsort(each - shares, kind="stable")
    each[largest[: count - int(each.sum())]] += 1
    taken = np.concatenate([rows[:k] for rows, k in zip(members, each.tolist(), strict=True)])
    return torch.from_numpy(np.sort(taken))
