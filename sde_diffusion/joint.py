r"""Sampling and the log-density of what is sampled, in one solve: the likelihood run the other way.

$$ \log p_s(x_s) = \log p_T(x_T) - \int_T^s \nabla\cdot v\,dt $$

Samples and density come from one integration, in the coordinate of `flow_density`, whatever the solver steps in: in `t`
a process whose state grows with the noise would make an error of nats in the number of steps that suits its samples.
How far the number is from the density of these very samples, the solve does not know: it is asked once more, from the
samples back to the prior, by `looser` steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion._modules import Evaluation
from sde_diffusion._request import Chunk, default_grid
from sde_diffusion.budget import LogProb
from sde_diffusion.divergence import Trace
from sde_diffusion.flow_density import (
    Part,
    Route,
    arrivals,
    check_solver,
    gaussian_route,
    general_route,
    solve_again,
    tell,
)
from sde_diffusion.likelihood import choose_trace, ordinary
from sde_diffusion.log_density import LogDensityODE
from sde_diffusion.loop import UnfinishedWarning, integrate
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sampler import SDESampler
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import Angle, AngleSDE


def draw_with_log_prob(
    sampler: SDESampler,
    batches: Iterable[Chunk],
    total: int | None,
    noise: Callable[..., NoiseSource],
    trace: Trace | None,
    solver_error: bool,
    grad: bool,
) -> tuple[Tensor, LogProb]:
    """`sampler.sample(return_log_prob=True)`, batch by batch; with a progress bar over `total` samples, if given."""
    xs, found = [], []
    with tqdm(total=total, desc="sampling", disable=total is None) as bar:
        for part in batches:
            start = _start(sampler, part, noise) if part.start is None else part.start
            seeds = part.seed
            if isinstance(seeds, torch.Generator):  # the probes, too, are drawn from the shared stream
                seeds = torch.randint(1 << 31, (part.n,), generator=seeds, device=seeds.device).tolist()
            x, log_p = sample_with_log_prob(
                sampler, start, seeds, trace, part.cond, solver_error=solver_error, grad=grad, before=part.first
            )
            xs.append(x)
            found.append(log_p)
            bar.update(part.n)
    return torch.cat(xs), LogProb.join(found)


def sample_with_log_prob(
    sampler: SDESampler,
    x_T: Tensor,
    seeds: list[int],
    trace: Trace | None,
    cond: dict[str, Any],
    *,
    solver_error: bool = True,
    grad: bool = False,
    before: int = 0,
) -> tuple[Tensor, LogProb]:
    """Carries states at the first grid time of a sampler, `(B, *)`, to the last, and their density along.

    Args:
        sampler: Gives the model, the solver and the grid.
        x_T: The states.
        seeds: Of the probes, one per row.
        trace: How the divergence is found.
        cond: Handed to the model.
        solver_error: Solves back from the samples, at ten times the tolerance or half the steps, for the error.
        grad: Keeps the graph.
        before: Rows of earlier batches, for the warnings.

    Returns:
        The states there over alpha, in the units of the data and without the final jump, and their log-density: the
        number that `sampler.log_prob(x, whole=False)` finds, up to `solver_error`.

    Raises:
        TypeError: A solver that cannot integrate a bare ODE.
        ValueError: A general SDE whose grid starts elsewhere than its prior.
    """
    inner, _ = check_solver(sampler.solver, "sample(return_log_prob=True)")
    route, grid = _way(sampler)
    trace = choose_trace(trace, sampler.model, x_T)
    with torch.inference_mode(False), torch.set_grad_enabled(grad), Evaluation(sampler.model):
        x_T, cond = ordinary(x_T), {name: ordinary(value) for name, value in cond.items()}
        probes = trace.probes(seeds, x_T[0].numel(), x_T)
        ode = LogDensityODE(route.equation(cond), x_T.shape[1:], x_T.dtype, trace, probes, grad=grad)
        ode.counter.first = before
        start = ode.start(x_T)
        start = torch.cat([start[:, : ode.d] / route.out, start[:, ode.d :]], dim=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfinishedWarning)  # told below, in terms of the rows of the result
            *_, now = integrate(ode, inner, start, grid)
        state, integrals = ode.split(now.x)
        change = ode.d * (math.log(route.out) + math.log(route.into))
        value = route.prior(ode.split(start)[0] * route.out) + change - trace.estimate(integrals)
        arrived = arrivals(ode, now.finished, value)
        tell(ode, arrived, route.place, inner, before)
        x = (state / route.into).to(x_T.dtype)
        if not bool(arrived.all()):  # a row that stands where it started, or on the way, is no sample
            x = torch.where(arrived.reshape(-1, *([1] * (x.ndim - 1))), x, torch.full_like(x, math.nan))
        found = LogProb(
            value=torch.where(arrived, value, torch.full_like(value, math.nan)),
            standard_error=trace.standard_error(integrals.detach(), ode.d),
            solver_error=torch.full_like(value, math.nan).detach(),
            truncation=torch.full_like(value, math.nan).detach(),
            latent=x_T.detach(),
            nfe=now.nfe,
            converged=arrived,
            level=route.level,
        )
        if solver_error:
            part = Part(x.detach(), probes, cond)
            error, truncation, nfe = solve_again(route, inner, grid[::-1], part, trace, found.value, x_T)
            found = replace(found, solver_error=error, truncation=truncation, nfe_check=nfe)
        return x, found


def _way(sampler: SDESampler) -> tuple[Route, list[float]]:
    """The route of the density, and the grid of the sampler, or the default one of the angle, in its coordinate."""
    sde, solver = sampler.sde, sampler.solver
    if not isinstance(sde, GaussianSDE):
        if sampler.times[0] != sde.t_max:
            raise ValueError(
                f"the grid starts at t = {sampler.times[0]:g}, but the density of {type(sde).__name__} is known at "
                f"t_max = {sde.t_max:g} alone, by its prior: start there"
            )
        return general_route(sampler), sampler.times
    route = gaussian_route(sampler, None, False, solver.bare[1])
    circle = AngleSDE(route.data_std or 1.0)
    low, high = route.ends
    times = sampler.times
    if sampler.grid_is_default:  # of what the solver steps in, which is the angle here
        times = default_grid(sde, sampler.model, Angle(solver))(sde, sampler.steps).tolist()
    between = [circle.angle(at) for at in sde.levels(times[1:-1])]
    return route, [high, *between, low]


def _start(sampler: SDESampler, part: Chunk, noise: Callable[..., NoiseSource]) -> Tensor:
    span = sampler.times[0], sampler.times[-1]
    return sampler.problem.start(sampler.problem.source(part.n, part.seed, noise, span).prior(), span[0])
