r"""A check of the likelihoods of one sampler, for users: what a density must be, whatever the model.

Any velocity transports mass without losing it, so that the density integrates to one for an untrained network as for a
trained one. What is drawn with its density must have that density when asked. Where the truth is known, the stated
errors must cover the actual ones.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_seed, check_state
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.likelihood.exact import Method, log_prob
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density, LikelihoodWarning
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.noise.sources import Streams
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers import Angle, DormandPrince, Solver
from sde_diffusion.testing._divergence import derivatives
from sde_diffusion.testing._quadrature import BUDGET, POINTS, integral
from sde_diffusion.testing.report import Checklist, Report, described

DRAWN = 512  # samples that the box is laid around


def check_likelihood(
    sampler: SDESampler, x0: Tensor | None = None, *, n: int = 64, seed: int = 0, **cond: Any
) -> Report:
    r"""Holds the log-likelihoods of a sampler to what is true of any density. About half a minute on a small network.

    * In one and two dimensions the density integrates to one, over a box around samples that widens until no mass is
      left at its border, on a grid that is refined until the integral stands.
    * A sample drawn with its log-density, `sample_with_log_prob`, has that density by `log_prob`, and its state
      at the prior comes back.
    * The divergence agrees with differences of the velocity: a network that leaves the graph is caught.
    * On a Gaussian mixture of the moments of the data, under the same process, the stated error covers the actual one.
    * If data are given, their latents have the norms of $\mathcal N(0, I)$; this is advice, on the model.

    What a grid or a difference leaves open is subtracted before a claim is judged, and has a row of advice of its own.

    Args:
        sampler: The model, its process and its range.
        x0: Data, shape `(B, *)` with `B` of at least 2; by default samples.
        n: Points per row of the report.
        seed: Seed of the points and the probes, fixed by default so that a check can be repeated.
        **cond: Handed to the model; see `conditions` for what is per sample. It has `B` rows (`n` without data), which
            are taken in turn for what is drawn; the integral is that of the density under the first.

    Returns:
        The report. Nothing that it finds is raised unless `raise_for_failures` is called.

    Raises:
        TypeError: Not a sampler, integer or half-precision data, or a model that needs conditions and got none.
        ValueError: Data that are empty, not finite, a single row, or that the model cannot be asked about; `n` below 1.

    Example:
        >>> print(check_likelihood(SDESampler(sde, model), x0))
        >>> print(check_likelihood(SDESampler(sde, model), x0, label=labels))
    """
    _check_call(sampler, x0, n, seed)
    seed = int(seed)
    given = Conditions.of(sampler.model, cond, n if x0 is None else len(x0))
    given.check_apart("that are taken in turn")
    _check_answer(sampler, x0, given, seed)
    x = sampler.sample(max(n, 256), seed=seed, **_turns(given, max(n, 256))) if x0 is None else x0
    subject = _Subject(sampler, x, n, seed, given)
    found = Checklist(f"check_likelihood({sampler!r})")
    if x[0].numel() in POINTS:
        _check_integral(found, subject)
    _check_samples(found, subject)
    _check_divergence(found, subject)
    if isinstance(sampler.sde, GaussianSDE):
        twin = _twin(sampler.sde, x)
        found.at_least(
            "rows of a Gaussian mixture whose error is at most twice the stated one, fraction",
            0.95,
            lambda: _coverage(twin, n, seed),
        )
    if x0 is not None and not sampler.problem.prior.holds_data:
        found.at_most(
            "latents of the data: distance of |z|^2 from chi-squared, in units of chance",
            2.0,
            lambda: _latents(subject),
            required=False,
            note="the model fits these data less well than its own samples",
        )
    return found.report()


class _Subject(NamedTuple):
    """The subject of a check: a sampler, data or samples, points per row, the seed, the conditions of the data."""

    sampler: SDESampler
    x: Tensor
    n: int
    seed: int
    given: Conditions

    @property
    def loose(self) -> float:
        """The relative error that rounding may leave in an integration."""
        return 1e-3 if self.x.dtype == torch.float64 else 3e-2


def _turns(given: Conditions, n: int) -> dict[str, Any]:
    """Conditions of `n` rows, in turn."""
    return given.rows([i % given.n for i in range(n)])


def _check_integral(found: Checklist, subject: _Subject) -> None:
    d = subject.x[0].numel()
    bound = 1e-3 if d == 1 else 1e-2
    mass = cache(partial(_integral, subject, bound))
    found.at_most(
        "the density integrates to one: |integral - 1|, less the error of the grid",
        bound,
        lambda: _beyond(abs(mass()[0] - 1), mass()[1]),
        note="a divergence that is not that of the velocity, or mass outside of the box around samples",
    )
    found.at_most(
        "the grid resolves the density: change of the integral from half the points per axis",
        bound,
        lambda: mass()[1],
        required=False,
        note=f"not resolved on {BUDGET[d]} points, or some did not arrive: the row above says less than it might",
    )


def _check_samples(found: Checklist, subject: _Subject) -> None:
    trip = cache(partial(_round_trip, subject))
    found.at_most(
        "log-density of samples: drawn with them against asked of them, largest difference in nats",
        subject.loose * max(1.0, math.sqrt(subject.x[0].numel())),
        lambda: _largest(trip()[0].value - trip()[1].value),
        note="the network answers differently at equal input, or is too rough for the tolerances",
    )
    found.at_most(
        "the states at the prior come back, largest difference relative to their size",
        subject.loose,
        lambda: _largest(trip()[0].latent - trip()[1].latent) / _largest(trip()[0].latent),
    )


def _check_divergence(found: Checklist, subject: _Subject) -> None:
    bound = 1e-4 if subject.x.dtype == torch.float64 else 1e-2

    @cache
    def slopes() -> tuple[float, float]:
        with Evaluation(subject.sampler.model):
            x = subject.x[: subject.n]
            return derivatives(subject.sampler, x, _turns(subject.given, len(x)), subject.seed)

    found.at_most(
        "divergence against differences of the velocity, less the error of these, relative",
        bound,
        lambda: slopes()[0],
        note="part of the network is outside of the graph: torch.no_grad, detach, or a step function",
    )
    found.at_most(
        "the differences resolve the divergence: their error in the median row, relative",
        bound,
        lambda: slopes()[1],
        required=False,
        note="not resolved: the velocity is rough, or rounded more than its dtype says, as under autocast",
    )


def _check_call(sampler: object, x0: Tensor | None, n: int, seed: object) -> None:
    """Raises unless the arguments are of the kinds that the check takes."""
    if not isinstance(sampler, SDESampler):
        raise TypeError(
            f"check_likelihood takes a sampler, SDESampler(sde, model), which holds the range and the prior of the "
            f"density, got {described(sampler)}"
        )
    check_count(n, "n")
    seed_list(check_seed(seed), max(n, 256) + DRAWN)
    if x0 is not None:
        check_finite(check_state(x0, "x0", shape=sampler.shape), "x0")
        if len(x0) < 2:
            raise ValueError(
                f"x0 is one sample, of shape {tuple(x0.shape)}, wanted at least two, for their mean and standard "
                "deviation: give more data, or leave x0 out and samples are drawn"
            )


def _check_answer(sampler: SDESampler, x0: Tensor | None, given: Conditions, seed: int) -> None:
    """Raises unless the model answers to two rows: what fails here would fail in every row of the report."""
    problem, span = sampler.problem, (sampler.times[0], sampler.times[-1])
    y = x0[:2] if x0 is not None else problem.start(problem.source(2, [seed, seed + 1], Streams, span).prior(), span[0])
    eq = problem.equation(_turns(given, 2))
    try:
        with torch.no_grad(), Evaluation(sampler.model):
            eq.velocity(y, eq.level(sampler.times[len(sampler.times) // 2]))
    except Exception as error:  # the model may raise anything
        told = ", ".join(given.whole) or "no conditions"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"the model does not answer to {'x0' if x0 is not None else 'a draw of the prior'}, of event shape "
            f"{tuple(y.shape[1:])} and {y.dtype}, with {told}: {type(error).__name__}: {error}. Give data of the shape "
            "and dtype that it was made for, and to a conditional model its conditions, such as "
            "check_likelihood(sampler, x0, label=labels), where a tensor holds one per sample"
        ) from error


def _integral(subject: _Subject, bound: float) -> tuple[float, float]:
    """The integral of the density over a box around samples, and its change at the last refinement of the grid."""
    sampler, x, _, seed, given = subject
    solver = DormandPrince(1e-4, 1e-4, max_nfe=2000)

    def density(at: Tensor) -> tuple[Tensor, bool]:
        points = at.reshape(-1, *x.shape[1:]).to(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LikelihoodWarning)  # rows that did not arrive are told by the report
            found = [
                log_prob(sampler, part, method=Method(solver, solver_error=False), **given.rows([0] * len(part)))
                for part in points.split(2048)
            ]
        told = LogProb.join(found)
        return told.value.exp().nan_to_num(0.0).double().cpu(), bool(told.converged.all())

    drawn, _ = _with_density(sampler, x, DRAWN, seed, solver, given.rows([0] * DRAWN))
    return integral(density, rows(drawn).double().cpu(), bound)


def _beyond(found: float, error: float) -> float:
    """The rest of a deviation if twice the error of its measurement is granted."""
    return found - 2 * error if found > 2 * error else found * 0.0


def _with_density(
    sampler: SDESampler, x: Tensor, n: int, seed: int, solver: Solver, cond: dict[str, Any]
) -> tuple[Tensor, LogProb]:
    """Samples of the flow with their log-density, from the prior."""
    there = _flow(sampler, x, solver)
    return there.sample_with_log_prob(n, seed=seed, x_T=_start(there, x, n, seed), **cond)


def _flow(sampler: SDESampler, x: Tensor, solver: Solver) -> SDESampler:
    """The sampler between its two ends, by an ODE solver."""
    if isinstance(sampler.sde, GaussianSDE):
        solver = Angle(solver, getattr(sampler.model, "data_std", 1.0))
    ends = [sampler.times[0], sampler.times[-1]]
    return SDESampler(replace(sampler.problem, shape=x.shape[1:]), solver=solver, grid=ends)


def _round_trip(subject: _Subject) -> tuple[LogProb, LogProb]:
    """The log-density of samples, from the prior to the data and back."""
    sampler, x, n, seed, given = subject
    tolerance = 1e-6 if x.dtype == torch.float64 else 1e-5
    solver = DormandPrince(tolerance, tolerance)
    drawn, forward = _with_density(sampler, x, n, seed, solver, _turns(given, n))
    there, quick = _flow(sampler, x, solver), Method(solver_error=False)
    return forward, log_prob(there, drawn, density=Density(whole=False), method=quick, **_turns(given, n))


def _start(sampler: SDESampler, x: Tensor, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *x.shape[1:], generator=generator, dtype=x.dtype, device="cpu").to(x.device)
    return sampler.problem.start(z, sampler.times[0])


def _twin(sde: GaussianSDE, x: Tensor) -> SDESampler:
    """A mixture of two Gaussians with about the moments of the data, along every axis."""
    mean, std = x.double().mean(0), x.double().std(0) + 1e-3
    means = torch.stack([mean - 0.8 * std, mean + 0.8 * std])
    variances = (torch.stack([0.5 * std, 0.7 * std])).square()
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64, device="cpu")
    return SDESampler(sde, GaussianMixture(sde, weights, means.cpu(), variances.cpu()))


def _coverage(twin: SDESampler, n: int, seed: int) -> float:
    model = twin.model
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"the twin is a {type(model).__name__}")
    x = model.sample(n, seed=seed)
    found = log_prob(twin, x, seed=seed, density=Density(level=0.0))
    error = (found.value - model.data_log_prob(x)).abs()
    return float((error <= 2 * found.total_error).double().mean())


def _latents(subject: _Subject) -> float:
    r"""The Kolmogorov-Smirnov distance of $|z|^2$ from $\chi^2_D$, times $\sqrt n$."""
    sampler, x, sde = subject.sampler, subject.x[: subject.n], subject.sampler.sde
    found = log_prob(sampler, x, method=Method(solver_error=False), **_turns(subject.given, len(x)))
    latent = found.latent.double()
    if isinstance(sde, GaussianSDE) and not found.whole:
        latent = latent / float(sde.levels([sampler.times[0]])[0].sigma)
    norm2, _ = rows(latent).square().sum(1).sort()
    n, half = len(norm2), torch.tensor(latent[0].numel() / 2, dtype=torch.float64, device="cpu")
    below = torch.special.gammainc(half, norm2.cpu() / 2)
    steps = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
    return float(torch.maximum(below - steps[:-1], steps[1:] - below).max()) * math.sqrt(n)


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max())
