r"""Editing data: noise up to some level, and a solve from there (SDEdit)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_positive, check_state
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.solvers.base import Solver, facts_of

NEAR = 1e-9
"""How near, relative to the span, a time of the grid is the time of the level itself."""


def times_below(sde: SDE, solver: Solver, times: Sequence[float], level: float, end: float) -> list[float]:
    r"""The time of a noise level and those of a grid that lie below it.

    Args:
        sde: The process.
        solver: The solver that is to start there.
        times: The grid, falling.
        level: $\sigma/\alpha$.
        end: The time that the level must lie above: the last of the grid, or one below for a solver that goes to the
            data from anywhere.

    Raises:
        TypeError: A general SDE, or a solver with a grid of its own.
        ValueError: A level outside of the grid.
    """
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"edit speaks of noise levels, which {type(sde).__name__}, a general SDE, does not have: carry the data up "
            "by a forward solve and hand them to sample(x_T=...)"
        )
    if facts_of(solver).grid is not None:
        raise TypeError(
            f"{solver!r} has a grid of its own and cannot start in its middle: edit with Heun() or DPMSolverPP()"
        )
    first, last = (float(at.ratio) for at in sde.levels([times[0], end]))
    if not last < check_positive(level, "level") <= first * (1 + NEAR):
        raise ValueError(
            f"level must lie within the grid, above {last:.4g} and up to {first:.4g}, in sigma/alpha, got {level!r}: "
            "more keeps less of the data"
        )
    lam = torch.tensor([-math.log(level)], dtype=torch.float64, device="cpu")
    t = min(float(sde.time_of(lam)), times[0])
    slack = NEAR * (times[0] - times[-1])
    return [t, *(s for s in times if s < t - slack)]


def noised(
    problem: Problem,
    x0: Tensor,
    times: Sequence[float],
    seeds: list[int] | torch.Generator,
    noise: Callable[..., NoiseSource],
) -> Tensor:
    r"""Data carried up to the first of the times, $\alpha x_0 + \sigma\varepsilon$, shape `(n, *)`.

    Args:
        problem: The process and the event shape.
        x0: Data, shape `(n, *)`.
        times: Those of the solve to come.
        seeds: One for each sample, or a stream.
        noise: What makes a source of the seeds.

    Raises:
        TypeError: Integer or half-precision data.
        ValueError: Data of another shape, empty or not finite.
    """
    check_finite(check_state(x0, "x0", shape=problem.shape), "x0")
    eps = problem.source(len(x0), seeds, noise, (times[0], times[-1]), x0).prior()
    (at,) = problem.equation().prefill(times[:1])
    return torch.add(x0 * at.alpha, eps, alpha=at.sigma)
