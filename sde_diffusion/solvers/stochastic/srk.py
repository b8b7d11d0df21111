r"""Stochastic Runge-Kutta for additive noise: strong order 1.5 from the increment and the area of the path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level, Scalar
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.checks import check_eta, check_falling
from sde_diffusion.solvers.equation import ReverseSDE


@dataclass(frozen=True)
class SRA1(Solver[ReverseSDE, None]):
    r"""Roessler's SRA1 on the reverse-time SDE, a Runge-Kutta method of strong order 1.5 for additive noise.

    With $F = f - \tfrac{1 + \eta^2}{2}\,g^2\,\nabla\log p_t$, the increment $W$ of the path over the step and its mean
    $M = \tfrac1{|h|}\int (W_u - W_t)\,du$,

    $$ k_1 = F(x_t, t), \quad
       k_2 = F\big(x_t + \tfrac34 h\,k_1 + \tfrac32\,\eta\,g(s)\,M,\ t + \tfrac34 h\big), \quad h = s - t, $$
    $$ x_s = x_t + \tfrac h3\,(k_1 + 2 k_2) + \eta\,g(t)\,M + \eta\,g(s)\,(W - M) $$

    Strong order 1.5, weak order 2; two evaluations and two draws per step, and 500 steps by default (30 where
    $\eta = 0$). Any SDE with its score. For additive noise the method of Milstein is `EulerMaruyama`.

    Args:
        eta: Stochasticity, `>= 0`: 1 is the reverse SDE, 0 a Runge-Kutta method of order 2 on the probability-flow ODE.

    Raises:
        ValueError: A negative `eta`; a step up in time with `eta > 0`; a start where `alpha = 0`, as $g$ is infinite
            there.

    References:
        Roessler, Runge-Kutta Methods for the Strong Approximation of Solutions of Stochastic Differential Equations,
        2010.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def facts(self) -> Facts:
        return Facts(
            needs=ReverseSDE,
            order=1.5 if self.eta else 2,
            evaluations=2,
            stochastic=self.eta > 0,
            in_time=True,
            default_steps=500 if self.eta else 30,
        )

    def prepare(self, eq: ReverseSDE, intervals: Sequence[Interval]) -> None:
        eq.prefill(t + 0.75 * (s - t) for t, s in intervals)

    def step(
        self, eq: ReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        h, between = s.t - t.t, eq.level(t.t + 0.75 * (s.t - t.t))
        k1 = eq.reverse_drift(x, t, self.eta)
        y = torch.add(x, k1, alpha=0.75 * h)
        if not self.eta:
            k2 = eq.reverse_drift(y, between, self.eta)
            return torch.add(torch.add(x, k1, alpha=h / 3), k2, alpha=2 * h / 3), None
        check_falling(h)
        start, end = eq.diffusion(t), eq.diffusion(s)
        root = self.eta * math.sqrt(-h)
        w, area = noise(t.t, s.t), noise.area(t.t, s.t)
        mean = torch.add(area, w, alpha=0.5 * math.sqrt(12)).mul_(1 / math.sqrt(12))
        k2 = eq.reverse_drift(_plus(y, end, mean, 1.5 * root), between, self.eta)
        x = torch.add(torch.add(x, k1, alpha=h / 3), k2, alpha=2 * h / 3)
        return _plus(_plus(x, start, mean, root), end, w - mean, root), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (SRA1(), SRA1(0.5), SRA1(0.0))


def _plus(x: Tensor, g: Scalar, z: Tensor, factor: float) -> Tensor:
    """`x + factor g z`, for a diffusion that is a float or one value per coordinate."""
    if isinstance(g, Tensor):
        return x + (factor * g).to(x) * z
    return torch.add(x, z, alpha=factor * g)
