"""What a caller asks of a sampler, put in order before any work: the model, the grid, the seeds, the batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion import grids
from sde_diffusion.conditions import Conditions
from sde_diffusion.grids import Grid
from sde_diffusion.noise import Seed, as_seeds
from sde_diffusion.sde import SDE, GaussianSDE
from sde_diffusion.solvers.base import Solver


def default_grid(sde: SDE, model: Any, solver: Solver) -> Grid:
    """The grid of a solver that is given none: uniform on a general SDE, else by what the solver steps in.

    In the noise level or the angle: `grids.angle`, at the scale of the data that the model knows. In the time, where
    the state grows with the noise or the solver adds some: `grids.karras`, since a long step in a large state leaves
    an error that no later step takes back.
    """
    if not isinstance(sde, GaussianSDE):
        return grids.uniform
    if solver.facts.in_time and _long_steps_hurt(sde, solver, model.data_std):
        return grids.karras
    return grids.angle if model.data_std == 1.0 else partial(grids.angle, data_std=model.data_std)


def _long_steps_hurt(sde: GaussianSDE, solver: Solver, data_std: float) -> bool:
    """Whether noise is added, or the state at `t_max` several times as large as the data; and data are left there."""
    low, high = sde.levels([sde.t_min, sde.t_max])
    small, large = (math.hypot(at.alpha * data_std, at.sigma) for at in (low, high))
    return high.alpha > 0 and (solver.facts.stochastic or large > 3 * small)


def grid_name(grid: Any) -> str:
    """A grid as one would write it."""
    if isinstance(grid, partial):
        options = "".join(f", {k}={v!r}" for k, v in grid.keywords.items())
        return f"partial({grid_name(grid.func)}{options})"
    if callable(grid):
        name = getattr(grid, "__name__", repr(grid))
        return f"grids.{name}" if getattr(grids, name, None) is grid else name
    return str([float(t) for t in grid])


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
    for i in range(0, n, size):
        part = slice(i, min(i + size, n))
        yield Chunk(
            part.stop - i,
            seeds[part] if isinstance(seeds, list) else seeds,
            None if x_T is None else x_T[part],
            cond.part(part),
            i,
        )
