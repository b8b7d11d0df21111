r"""Sampling and the log-density of what is sampled, in one solve: the likelihood run the other way.

$$ \log p_s(x_s) = \log p_T(x_T) - \int_T^s \nabla\cdot v\,dt $$
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion._request import Chunk
from sde_diffusion.budget import LogProb
from sde_diffusion.divergence import Trace
from sde_diffusion.equation import ODE, GaussianReverseSDE
from sde_diffusion.flow_density import arrivals, check_eval, check_solver, tell
from sde_diffusion.likelihood import choose_trace
from sde_diffusion.log_density import LogDensityODE, OwnTolerance
from sde_diffusion.loop import UnfinishedWarning, integrate
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sampler import SDESampler
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import Adaptive, Angle, AngleSDE


def draw_with_log_prob(
    sampler: SDESampler,
    batches: Iterable[Chunk],
    total: int | None,
    noise: Callable[..., NoiseSource],
    trace: Trace | None,
    grad: bool,
) -> tuple[Tensor, LogProb]:
    """`sampler.sample(return_log_prob=True)`, batch by batch; with a progress bar over `total` samples, if given."""
    xs, found = [], []
    with tqdm(total=total, desc="sampling", disable=total is None) as bar:
        for part in batches:
            start = sampler.draw_prior(part.n, part.seed, noise) if part.start is None else part.start
            seeds = part.seed
            if isinstance(seeds, torch.Generator):  # the probes, too, are drawn from the shared stream
                seeds = torch.randint(1 << 31, (part.n,), generator=seeds, device=seeds.device).tolist()
            x, log_p = sample_with_log_prob(sampler, start, seeds, trace, grad, part.cond)
            xs.append(x)
            found.append(log_p)
            bar.update(part.n)
    return torch.cat(xs), LogProb.join(found)


def sample_with_log_prob(
    sampler: SDESampler, x_T: Tensor, seeds: list[int], trace: Trace | None, grad: bool, cond: dict[str, Any]
) -> tuple[Tensor, LogProb]:
    """Carries states at the first grid time of a sampler, `(B, *)`, to the last, and their density along.

    Returns:
        The states there over alpha, in the units of the data and without the final jump, and their log-density: the
        number that `sampler.log_prob(x, whole=False)` finds, up to the error of the solver. That error is not known
        from one solve, `solver_error` is NaN, and so is `truncation`.

    Raises:
        TypeError: A solver that cannot integrate a bare ODE.
        ValueError: A network in training mode that is random there.
    """
    inner = check_solver(sampler.solver, "sample(return_log_prob=True)")
    check_eval(sampler.model)
    eq, grid, into, out, level = _way(sampler, cond)
    trace = choose_trace(trace, sampler.model, x_T)
    probes = trace.probes(seeds, x_T[0].numel(), x_T)
    sde, d = sampler.sde, x_T[0].numel()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        x_T = x_T.clone() if x_T.is_inference() else x_T
        ode = LogDensityODE(eq, x_T.shape[1:], x_T.dtype, trace, probes, grad=grad)
        start = ode.start(x_T)
        start = torch.cat([start[:, :d] * into, start[:, d:]], dim=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfinishedWarning)
            method = OwnTolerance(inner, d, trace) if isinstance(inner, Adaptive) else inner
            *_, now = integrate(ode, method, start, grid)
        state, integrals = ode.split(now.x)
        latent = start[:, :d].reshape(x_T.shape) / into
        if isinstance(sde, GaussianSDE):
            prior = sde.prior_log_prob(latent, sampler.times[0])
        else:
            prior = sde.prior_log_prob(latent)
        value = prior - d * (math.log(into) + math.log(out)) - trace.estimate(integrals)
        arrived = arrivals(ode, now.finished, value)
        tell(ode, arrived, lambda t: f"{'u' if isinstance(sampler.solver, Angle) else 't'} = {t:.4g}", inner)
        unknown = torch.full_like(value, math.nan).detach()
        found = LogProb(
            value=torch.where(arrived, value, unknown),
            standard_error=trace.standard_error(integrals.detach(), d),
            solver_error=unknown,
            truncation=unknown,
            latent=x_T.detach(),
            nfe=now.nfe,
            converged=arrived,
            level=level,
        )
        return (state * out).to(x_T.dtype), found


def _way(sampler: SDESampler, cond: dict[str, Any]) -> tuple[ODE, list[float], float, float, float]:
    """The equation, its grid, the factors into its state and from there to the data, and the noise level at the end."""
    sde, eq = sampler.sde, sampler.equation(cond)
    if not isinstance(sde, GaussianSDE):
        return eq, sampler.times, 1.0, 1.0, math.nan
    first, *_, last = levels = sde.levels(sampler.times)
    noise = last.sigma / last.alpha
    if not isinstance(sampler.solver, Angle):
        return eq, sampler.times, 1.0, 1 / last.alpha, noise
    circle = AngleSDE(sampler.solver.data_std)
    view = cast("GaussianReverseSDE", eq).on(circle)
    grid = [circle.angle(at) for at in levels]
    return view, grid, 1 / circle.radius(first), circle.radius(last) / last.alpha, noise
