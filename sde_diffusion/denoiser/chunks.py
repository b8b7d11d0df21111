"""The batches that samples are drawn, or data are weighed, in: each with its seeds, states and conditions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.noise.seeds import Seed, as_seeds


class Chunk(NamedTuple):
    """A batch of the samples asked for.

    Attributes:
        n: How many.
        seed: Their seeds, or the shared stream.
        start: Their initial states, if given.
        cond: Their conditions.
        first: Number of the first.
    """

    n: int
    seed: list[int] | torch.Generator
    start: Tensor | None
    cond: dict[str, Any]
    first: int = 0


def chunks(n: int, size: int, seed: Seed, x_T: Tensor | None, cond: Conditions) -> Iterator[Chunk]:
    """The batches of at most `size` in which `n` samples are drawn."""
    seeds = as_seeds(seed, n)
    if size >= n:
        return iter((Chunk(n, seeds, x_T, cond.whole),))
    return (_part(slice(i, min(i + size, n)), seeds, x_T, cond) for i in range(0, n, size))


def _part(rows: slice, seeds: list[int] | torch.Generator, x_T: Tensor | None, cond: Conditions) -> Chunk:
    return Chunk(
        rows.stop - rows.start,
        seeds[rows] if isinstance(seeds, list) else seeds,
        None if x_T is None else x_T[rows],
        cond.part(rows),
        rows.start,
    )


@contextmanager
def counted_from(first: int, *kinds: type[Warning]) -> Iterator[None]:
    """Within it, warnings of these kinds say from which row on they count, as a batch knows its own rows alone."""
    if not first:
        yield
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for one in told:
        if one.category in kinds:
            warnings.warn(f"counted from row {first} on: {one.message}", one.category, stacklevel=4)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)
