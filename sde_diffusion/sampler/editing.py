r"""Editing data: noise up to some level, and a solve from there (SDEdit)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_positive, check_state
from sde_diffusion.noise.seeds import Seed, as_seeds
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers.base import facts_of

if TYPE_CHECKING:
    from sde_diffusion.sampler.sampler import SDESampler

NEAR = 1e-9
"""How near, relative to the span, a time of the grid is the time of the level itself."""


def edited(
    sampler: SDESampler,
    x0: Tensor,
    level: float,
    *,
    seed: Seed,
    noise: Callable[..., NoiseSource],
    **rest: Any,
) -> Tensor:
    """Data carried up to a noise level and solved down again: `SDESampler.edit` has the arguments.

    Raises:
        TypeError: A general SDE, a solver with a grid of its own, or data that are no floats.
        ValueError: Data of another shape or not finite, or a level outside of the grid.
    """
    check_finite(check_state(x0, "x0", shape=sampler.shape), "x0")
    sde = sampler.sde
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"edit speaks of noise levels, which {type(sde).__name__}, a general SDE, does not have: carry the data up "
            "by a forward solve and hand them to sample(x_T=...)"
        )
    if facts_of(sampler.solver).grid is not None:
        raise TypeError(
            f"{sampler.solver!r} has a grid of its own and cannot start in its middle: edit with Heun() or "
            "DPMSolverPP()"
        )
    top, *_, last = sde.levels(sampler.times)
    if not float(last.ratio) < check_positive(level, "level") <= float(top.ratio) * (1 + NEAR):
        raise ValueError(
            f"level must lie within the grid, above {float(last.ratio):.4g} and up to {float(top.ratio):.4g}, in "
            f"sigma/alpha, got {level!r}: more keeps less of the data"
        )
    lam = torch.tensor([-math.log(level)], dtype=torch.float64, device="cpu")
    t = min(float(sde.time_of(lam)), sampler.times[0])
    slack = NEAR * (sampler.times[0] - sampler.times[-1])
    times = [t, *(s for s in sampler.times if s < t - slack)]
    seeds = as_seeds(seed, len(x0))
    source = sampler.problem.source(len(x0), seeds, noise, sampler.span, x0)
    (at,) = sde.levels([t])
    x = torch.add(x0 * at.alpha, source.prior(), alpha=at.sigma)
    short = type(sampler)(sampler.problem, solver=sampler.solver, grid=times, denoise=sampler.denoise)
    return short.sample(len(x0), seed=seeds, x_T=x, noise=noise, **rest)
