r"""The evidence of a guided model by importance sampling: from the density of its own samples, without particles.

The flow of a guided model is a law of its own, $q$, whose density comes with its samples. Against the target,

$$ \hat Z = \frac1n\sum_i \frac{p(x_i)\,\ell(x_i)}{q(x_i)}, \quad x_i \sim q $$

is a second estimate of the evidence, by another way: it needs the divergence of both flows, so that it suits few
dimensions, or an approximation that is nearly right. It is as good as $q$ covers the target: a mode that the guided
model leaves out is left out here, and no standard error tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sde_diffusion._checks import SolverError, check_count
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.guidance.twisted import Twisted
from sde_diffusion.likelihood.exact import Method, log_prob
from sde_diffusion.particles.laws import wide
from sde_diffusion.particles.resampling import effective
from sde_diffusion.particles.result import Particles
from sde_diffusion.particles.sampler import check_target
from sde_diffusion.particles.telling import warn_few
from sde_diffusion.problem import Problem
from sde_diffusion.sampler.sampler import SDESampler


@dataclass(frozen=True)
class _Inside:
    """The model inside, as a likelihood takes it: between the same times."""

    problem: Problem
    span: tuple[float, float]


def importance_evidence(
    sampler: SDESampler,
    n: int = 1024,
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    method: Method = Method(),
    progress: bool = False,
    **cond: Any,
) -> Particles:
    r"""Weighs samples of a guided model by the density that they have and the one that they should have.

    Args:
        sampler: A sampler of a `Twisted` model, such as a `Posterior`, by an ODE solver; the model inside must have a
            density, too.
        n: Samples, 2 at least, rather 1,000.
        seed: As in `SDESampler.sample`.
        batch_size: Samples in flight at once.
        method: How both densities are found: `Method(trace=...)`.
        progress: Shows a progress bar.
        **cond: Conditions of the model, the same for all samples.

    Returns:
        The samples as `n` systems of one particle each, shape `(n, 1, *)`, with their weights: `log_evidence`,
        `standard_error`, `interval`, `effective`, `draw`.

    Raises:
        TypeError: No sampler of a `Twisted`, or a solver that cannot integrate a bare ODE, such as the default.
        ValueError: One sample, or conditions that differ between samples.
        SolverError: Samples that have no density, or no weight.

    Warns:
        ParticleWarning: Fewer than 10 samples count.

    Example:
        >>> sampler = SDESampler(sde, Posterior(model, Matrix(a), 0.5), solver=DormandPrince())
        >>> importance_evidence(sampler, 1000, seed=0, y=y).log_evidence
    """
    who: object = sampler
    if not isinstance(who, SDESampler):
        raise TypeError(f"sampler must be an SDESampler of a Twisted model, got {type(who).__name__}")
    target = sampler.model
    if not isinstance(target, Twisted):
        raise TypeError(
            f"the evidence is that of a likelihood, by a Twisted model such as Posterior, got {type(target).__name__}: "
            "of a product of powers, ParticleSampler(sde, target) finds the integral"
        )
    check_target(target)
    if check_count(n, "n") < 2:
        raise ValueError("one sample has nothing to be weighed against: wanted n >= 2, such as 1024")
    given = Conditions.of(target, cond, n)
    given.check_apart("that are weighed as those of one law")
    if names := given.uneven:
        raise ValueError(
            f"condition {names[0]!r} differs between the {n} samples, whose weights make one evidence, of one law: "
            "give one row, and call once for each. ParticleSampler has one for each system"
        )
    options: dict[str, Any] = {"batch_size": batch_size, "method": method}
    x, own = sampler.sample_with_log_prob(n, seed=seed, progress=progress, **options, **cond)
    inner = Problem(sampler.sde, target.inner, sampler.shape, sampler.problem.prior)
    prior = log_prob(_Inside(inner, sampler.span), x, **options, **target.handed(cond))
    with torch.no_grad():
        likelihood = target.log_likelihood(x, **given.whole)
    log_w = (wide(prior.value) + wide(likelihood) - wide(own.value))[:, None]
    if bad := int((log_w.isnan() | (log_w == torch.inf)).sum()):
        raise SolverError(
            f"{bad} of {len(log_w)} samples have no weight that is a number: their solve, or that of their density in "
            f"{type(target.inner).__name__}, did not arrive, or the likelihood answered NaN. Take smaller tolerances "
            "or more steps"
        )
    if not bool((log_w > -torch.inf).any()):
        raise SolverError(f"all {len(log_w)} weights are zero: no sample of {type(target).__name__} has a likelihood")
    found = Particles(x[:, None], log_w, torch.ones_like(log_w), own.nfe + prior.nfe)
    warn_few(effective(log_w.T), len(log_w))
    return found
