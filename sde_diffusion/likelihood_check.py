r"""A check of the likelihoods of one sampler, for users: what a density must be, whatever the model.

Any velocity transports mass without losing it, so that the density integrates to one for an untrained network as for a
trained one. What is drawn with its density must have that density when asked. Where the truth is known, the stated
errors must cover the actual ones.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_state
from sde_diffusion._linear import rows
from sde_diffusion.analytic import GaussianMixture
from sde_diffusion.budget import LogProb
from sde_diffusion.likelihood import log_prob
from sde_diffusion.prior import MatchedPrior
from sde_diffusion.sampler import SDESampler
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import Angle, DormandPrince, Solver
from sde_diffusion.testing.report import Checklist, Report

POINTS = {1: 801, 2: 81}  # per axis of the grid


def check_likelihood(sampler: SDESampler, x0: Tensor | None = None, *, n: int = 64, seed: int = 0) -> Report:
    r"""Holds the log-likelihoods of a sampler to what is true of any density. About half a minute on a small network.

    * In one and two dimensions the density integrates to one over a grid around the data.
    * A sample drawn with its log-density, `sample(return_log_prob=True)`, has that density by `log_prob`, and its state
      at the prior comes back.
    * The divergence agrees with differences of the velocity: a network that leaves the graph is caught.
    * On a Gaussian mixture of the moments of the data, under the same process, the stated error covers the actual one.
    * If data are given, their latents have the norms of $\mathcal N(0, I)$; this is advice, on the model.

    Args:
        sampler: The model, its process and its range.
        x0: Data, shape `(B, *)`; by default samples.
        n: Points per row of the report.
        seed: Of everything random.

    Returns:
        The report; nothing is raised unless `raise_for_failures` is asked to.

    Example:
        >>> print(check_likelihood(SDESampler(sde, model), x0))
    """
    made_up = x0 is None
    x = sampler.sample(max(n, 256), seed=seed) if x0 is None else check_finite(check_state(x0, "x0"), "x0")
    d = x[0].numel()
    found = Checklist(f"check_likelihood({sampler!r})")
    loose = 1e-3 if x.dtype == torch.float64 else 3e-2
    if d in POINTS:
        note = "a grid too coarse for the density, mass outside of it, or a divergence that is not that of the velocity"
        claim = f"the density integrates to one, over {POINTS[d]} points per axis: |integral - 1|"
        found.at_most(claim, 1e-3 if d == 1 else 1e-2, lambda: abs(_mass(sampler, x) - 1), note=note)

    @cache
    def trip() -> tuple[LogProb, LogProb]:
        return _round_trip(sampler, x, n, seed)

    found.at_most(
        "log-density of samples: drawn with them against asked of them, largest difference in nats",
        loose * max(1.0, math.sqrt(d)),
        lambda: _largest(trip()[0].value - trip()[1].value),
        note="the network answers differently at equal input, or is too rough for the tolerances",
    )
    found.at_most(
        "the states at the prior come back, largest difference relative to their size",
        loose,
        lambda: _largest(trip()[0].latent - trip()[1].latent) / _largest(trip()[0].latent),
    )
    found.at_most(
        "divergence against differences of the velocity, relative",
        1e-4 if x.dtype == torch.float64 else 3e-2,
        lambda: _derivatives(sampler, x[:n], seed),
        note="part of the network is outside of the graph: torch.no_grad, detach, or a step function",
    )
    if isinstance(sampler.sde, GaussianSDE):
        twin = _twin(sampler.sde, x)
        found.at_least(
            "rows of a Gaussian mixture whose error is at most twice the stated one, fraction",
            0.95,
            lambda: _coverage(twin, n, seed),
        )
    if not made_up and not isinstance(sampler.sde, MatchedPrior):
        found.at_most(
            "latents of the data: distance of |z|^2 from chi-squared, in units of chance",
            2.0,
            lambda: _latents(sampler, x[:n]),
            required=False,
            note="the model fits these data less well than its own samples",
        )
    return found.report()


def _mass(sampler: SDESampler, x: Tensor) -> float:
    """The integral of the density over a box around the data, by the trapezoid rule."""
    flat = rows(x)
    low, high, spread = flat.amin(0), flat.amax(0), flat.std(0)
    d = flat.shape[1]
    axes = [
        torch.linspace(float(low[i] - 3 * spread[i]), float(high[i] + 3 * spread[i]), POINTS[d], dtype=torch.float64)
        for i in range(d)
    ]
    points = torch.cartesian_prod(*axes).reshape(-1, *x.shape[1:]).to(x)
    solver = DormandPrince(1e-4, 1e-4)
    density = [log_prob(sampler, part, solver=solver, solver_error=False).value.exp() for part in points.split(2048)]
    mass = torch.cat(density).reshape([POINTS[d]] * d).to(axes[0])
    for axis in reversed(axes):
        mass = torch.trapezoid(mass, axis)
    return float(mass)


def _round_trip(sampler: SDESampler, x: Tensor, n: int, seed: int) -> tuple[LogProb, LogProb]:
    """The log-density of samples, from the prior to the data and back."""
    tolerance = 1e-6 if x.dtype == torch.float64 else 1e-5
    solver: Solver = DormandPrince(tolerance, tolerance)
    if isinstance(sampler.sde, GaussianSDE):
        solver = Angle(solver, getattr(sampler.model, "data_std", 1.0))
    ends = [sampler.times[0], sampler.times[-1]]
    there = SDESampler(sampler.sde, sampler.model, solver=solver, grid=ends, shape=x.shape[1:])
    drawn, forward = there.sample(n, seed=seed, return_log_prob=True, x_T=_start(there, x, n, seed))
    whole = False if isinstance(sampler.sde, GaussianSDE) else None
    return forward, log_prob(there, drawn, whole=whole, solver_error=False)


def _start(sampler: SDESampler, x: Tensor, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
    sde = sampler.sde
    return sde.prior(z, sampler.times[0]) if isinstance(sde, GaussianSDE) else sde.prior(z)


def _derivatives(sampler: SDESampler, x: Tensor, seed: int) -> float:
    r"""$z\cdot Jz$ by autograd against central differences, at three times, relative to $|z|\,|Jz|$."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    h = 1e-4 if x.dtype == torch.float64 else 1e-2
    worst = 0.0
    for fraction in (0.1, 0.4, 0.8):
        t = sampler.times[-1] + fraction * (sampler.times[0] - sampler.times[-1])
        eq = sampler.equation()
        at = eq.level(t)
        scale = 1.0 if math.isnan(at.alpha) else math.hypot(at.alpha, at.sigma)
        y = (scale * z + (0 if math.isnan(at.alpha) else at.alpha) * x).detach()
        step = h * scale
        with torch.no_grad():
            by_steps = (eq.velocity(y + step * z, at) - eq.velocity(y - step * z, at)) / (2 * step)
        with torch.enable_grad():
            y = y.requires_grad_()
            (product,) = torch.autograd.grad(eq.velocity(y, at), y, z)
        left, right = rows(by_steps * z).sum(1), rows(product * z).sum(1)
        size = rows(by_steps).norm(dim=1) * rows(z).norm(dim=1)
        worst = max(worst, _largest(left - right) / float(size.square().mean().sqrt()))
    return worst


def _twin(sde: GaussianSDE, x: Tensor) -> SDESampler:
    """A mixture of two Gaussians with about the moments of the data, along every axis."""
    mean, std = x.double().mean(0), x.double().std(0) + 1e-3
    means = torch.stack([mean - 0.8 * std, mean + 0.8 * std])
    variances = (torch.stack([0.5 * std, 0.7 * std])).square()
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    return SDESampler(sde, GaussianMixture(sde, weights, means.cpu(), variances.cpu()))


def _coverage(twin: SDESampler, n: int, seed: int) -> float:
    model = twin.model
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"the twin is a {type(model).__name__}")
    x = model.sample(n, seed=seed)
    found = log_prob(twin, x, seed=seed, level=0.0)
    error = (found.value - model.data_log_prob(x)).abs()
    return float((error <= 2 * found.total_error).double().mean())


def _latents(sampler: SDESampler, x: Tensor) -> float:
    r"""The Kolmogorov-Smirnov distance of $|z|^2$ from $\chi^2_D$, times $\sqrt n$."""
    found, sde = log_prob(sampler, x, solver_error=False), sampler.sde
    latent = found.latent.double()
    if isinstance(sde, GaussianSDE) and not found.whole:
        latent = latent / float(sde.levels([sampler.times[0]])[0].sigma)
    norm2, _ = rows(latent).square().sum(1).sort()
    n, half = len(norm2), torch.tensor(latent[0].numel() / 2, dtype=torch.float64)
    below = torch.special.gammainc(half, norm2.cpu() / 2)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(below - steps[:-1], steps[1:] - below).max()) * math.sqrt(n)


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max())
