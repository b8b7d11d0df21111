r"""From the data to where the density is known: which equation is integrated, and between which noise levels.

On a Gaussian SDE the coordinate is the angle $u = \arctan(S/c)$ of the noise level $S = \sigma/\alpha$, with $c$ the
standard deviation of the data, and the state $y = x/\sqrt{c^2 + S^2}$ of unit variance (`solvers.AngleSDE`). Its
velocity is regular at both ends and independent of the process, so that every SDE gives one number:

$$ \log p_S(x) = \log\mathcal N(y(\pi/2); 0, I) + \int_{u_S}^{\pi/2}\nabla\cdot v\,du - \tfrac D2\log(c^2 + S^2) $$

if the model answers up to $\alpha = 0$, and else with the prior at the largest level that it was made for. A general
SDE is integrated in `t`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sde_diffusion._checks import check_flag, check_real
from sde_diffusion._tensors import standard_normal_log_prob
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.problem import Problem
from sde_diffusion.solvers import AngleSDE, Solver
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE

SLACK = 1e-6


class LikelihoodWarning(UserWarning):
    """A log-likelihood that is less than it seems: rows that failed, or noise levels that no training has covered."""


@dataclass(frozen=True)
class Density:
    r"""Which density of a model: at which noise level, and with what at the far end.

    Args:
        level: Noise level $\sigma/\alpha$ at which to take the density; by default that of the sampler's last time.
            With 0 it is that of the data themselves, for a model that is regular there.
        whole: Integrate up to $\alpha = 0$, where the prior is exact; by default where the model answers there. False:
            up to the first time of the sampler, with its prior: the density of what it draws.
        correct: Adds the `truncation` to the value, which then estimates the density of the data themselves.

    Example:
        >>> sampler.log_prob(x0, density=Density(level=0.0))
    """

    level: float | None = None
    whole: bool | None = None
    correct: bool = False

    def __post_init__(self) -> None:
        if self.whole is not None:
            check_flag(self.whole, "whole")
        check_flag(self.correct, "correct")
        if self.level is not None and not check_real(self.level, "level") >= 0:
            raise ValueError(f"level must be a noise level sigma/alpha of at least 0, got {self.level!r}")


@dataclass(frozen=True)
class Route:
    r"""Where the integration starts and ends, and what the density is worth there.

    $$ \log p(x) = \log p_{end}(r\,y) + D\log r + \int\nabla\cdot v + D\log q $$

    Attributes:
        ends: Times of the equation, data first.
        level: Noise level $\sigma/\alpha$ of the data end; NaN for a general SDE.
        equation: Makes a fresh equation, of given conditions.
        into: $q$, the factor from the data to the state at the first end.
        out: $r$, the factor from the state at the last end to the latent.
        prior: Log-density of the latent, `(B,)`.
        data_std: $c$ of the angle, None for an equation in `t`.
        whole: Whether it ends at $\alpha = 0$.
    """

    ends: tuple[float, float]
    level: float
    equation: Callable[[dict[str, Any]], ODE]
    into: float
    out: float
    prior: Callable[[Tensor], Tensor]
    data_std: float | None = None
    whole: bool = False

    def grid(self, solver: Solver, steps: int) -> list[float]:
        """The times that a solver is given: closer at the data end for one that makes one step between two of them."""
        return self.spaced(steps, 1.0 if solver.facts.adaptive else 1.5)

    def spaced(self, steps: int, power: float) -> list[float]:
        """Times uniform in this root of the distance from the data end."""
        low, high = self.ends
        return [low + (high - low) * (i / steps) ** power for i in range(steps)] + [high]

    def place(self, t: float) -> str:
        """A time of the equation in words."""
        return (
            f"t = {t:.4g}" if self.data_std is None else f"u = {t:.4g} (noise level {self.data_std * math.tan(t):.4g})"
        )


Span = tuple[float, float]
"""First and last time of a solve, from noise to data."""


def route_of(problem: Problem, span: Span, density: Density, data_std: float | None) -> Route:
    """The way of a density: in the angle on a Gaussian SDE, else in `t`.

    Args:
        problem: The model, its process and its prior.
        span: The times between which the model is a sampler.
        density: Which density.
        data_std: $c$ of the angle; by default what the model knows.
    """
    if isinstance(problem.model, Denoiser):
        return _gaussian_route(problem, problem.model, span, density, data_std)
    if density.level is not None or density.whole or density.correct:
        raise TypeError(
            f"level=, whole= and correct= speak of noise levels, which {type(problem.sde).__name__}, a general SDE, "
            "does not have: its density is taken at the last time of the sampler, with the prior at t_max"
        )
    end = problem.sde.t_max
    return Route((span[1], end), math.nan, problem.equation, 1.0, 1.0, partial(problem.log_prior, t=end))


def _gaussian_route(problem: Problem, model: Denoiser, span: Span, density: Density, data_std: float | None) -> Route:
    circle = AngleSDE(model.data_std if data_std is None else data_std)
    first, last, least = model.sde.levels([span[1], span[0], model.sde.t_min])
    start, top = float(first.ratio), float(last.ratio)
    view = model.on(circle)
    low, high = view.noise_range
    level = start if density.level is None else _check_level(density.level, top)
    whole = _goes_on(density.whole, top, high)
    if whole:
        view.check_pure_noise()
    if not view.regular:  # even around a model of all levels
        low = max(low, float(least.ratio))
    if level < low * (1 - SLACK):
        view = _beyond(view, level, low)
    u = max(math.atan2(level, circle.data_std), circle.t_min)
    ends = (u, math.pi / 2 if whole else circle.angle(last))
    radius = 1.0 if whole else circle.radius(last)
    prior = standard_normal_log_prob if whole else partial(problem.log_prior, t=span[0])
    return Route(
        ends,
        level,
        lambda cond: GaussianReverseSDE(view, cond),
        1 / math.hypot(circle.data_std, level),
        radius,
        prior,
        circle.data_std,
        whole,
    )


def _goes_on(whole: bool | None, top: float, high: float) -> bool:
    """Whether to integrate up to alpha = 0, for a model made for levels up to `high` and a sampler from `top` on."""
    if whole is None:
        whole = high == math.inf
    if whole and high < math.inf:
        raise ValueError(
            f"whole=True integrates to alpha = 0, but the model was made for noise levels up to {high:.6g}: "
            f"leave whole out, and the integration ends at the prior of the sampler"
        )
    if top > high * (1 + SLACK) and not whole:
        raise ValueError(
            f"the sampler starts at noise level {top:.6g}, but the model was made for levels up to {high:.6g}: choose "
            "t_max of the sampler inside"
        )
    return whole


def _check_level(level: float, top: float) -> float:
    if not 0 <= check_real(level, "level") < top:
        raise ValueError(f"level must be a noise level sigma/alpha of at least 0 and below {top:g}, got {level!r}")
    return float(level)


def _beyond(view: Denoiser, level: float, low: float) -> Denoiser:
    """The view to integrate through from below what the model was made for, with a warning, if it is regular there."""
    if not view.regular:
        raise ValueError(
            f"level={level:g} lies below {low:.6g}, the smallest that the model was made for, and a data prediction "
            "is divided by it: start at the smallest, without Clipped, or train predict.velocity, v or edm"
        )
    warnings.warn(
        f"the integration starts at noise level {level:.6g}, but the smallest that the model was made for is "
        f"{low:.6g}: below it the network extrapolates",
        LikelihoodWarning,
        stacklevel=6,
    )
    return view.beyond()
