r"""ER-SDE-Solver: the reverse SDEs with a noise scale that is a function of the level, solved in their own variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sde_diffusion._checks import check_real
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_falling, check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.multistep import LevelAt, Multistep, Row
from sde_diffusion.solvers.exponential.weights import data_gain
from sde_diffusion.solvers.quadrature import quadrature_mass, quadrature_times


@dataclass(frozen=True)
class ERSDE(Multistep):
    r"""ER-SDE-Solver, on any Gaussian SDE.

    In $S = \sigma/\alpha$ and with a noise function $\phi(S) = S\,(e^{S^p} + c)$, the paper's choice "SDE 5",

    $$ \tfrac{x_s}{\alpha_s} = \tfrac{\phi_s}{\phi_t}\,\tfrac{x_t}{\alpha_t} + \big(1 - \tfrac{\phi_s}{\phi_t}\big)\,D
       + D'\int_{S_s}^{S_t}\!\big(\tfrac{\phi_s}{\phi} - 1\big)\,dS
       + D''\int_{S_s}^{S_t}\!\big(\tfrac{\phi_s}{\phi} - 1\big)(S - S_t)\,dS
       + \sqrt{S_s^2 - S_t^2\,\tfrac{\phi_s^2}{\phi_t^2}}\;z $$

    with $D'$ and $D''$ the paper's differences of the data predictions in $S$, as many as `order` allows and the
    history holds. $\phi = S$ is the probability flow, which the method tends to as $c$ grows, and $\phi = S^2$ the
    reverse SDE. Strong and weak order 1, weak order 2 on Gaussian data above `order` 1. The part without noise has
    order `order` up to 2, and claims that: the start holds order 3 to 2, and so does the paper's $D'$, which
    stays where it is while $D''$ is added. The integrals are by Gauss-Legendre quadrature; the sums of 100 terms in
    the original are off by a hundredth of the correction, which holds it to order 1 (measured from 500 steps up).
    Without data left at the start the first step draws $x_s$ afresh around the data. One evaluation per step.

    Args:
        order: 1, 2 or 3.
        power: $p$, positive.
        offset: $c$, positive; `math.inf` is the probability flow, without noise.

    Raises:
        ValueError: Another order, a power or an offset that is not positive, or a step up in time with noise.

    References:
        Cui et al., Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models, 2023
        (Appendix A.8).
    """

    order: int = 3
    power: float = 0.3
    offset: float = 10.0
    half = "data"

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3), "ERSDE")
        if not (0 < check_real(self.power, "power") < math.inf and check_real(self.offset, "offset") > 0):
            raise ValueError(f"wanted power > 0 and offset > 0, got power={self.power!r} and offset={self.offset!r}")

    @property
    def facts(self) -> Facts:
        noisy = self.offset < math.inf
        order = 1 if noisy else min(self.order, 2)
        return Facts(needs=GaussianReverseSDE, order=order, stochastic=noisy, memory=self.order)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        fall = 0.0  # log of (phi_s / S_s) / (phi_t / S_t)
        if self.offset < math.inf:
            check_falling(s.t - t.t)
            fall = _excess(s.ratio, self.power, self.offset) - _excess(t.ratio, self.power, self.offset)
        state = s.sigma / t.sigma * math.exp(fall)
        gain = -s.alpha * math.expm1(t.lam - s.lam + fall) if s.alpha > 0 else data_gain(t, s)
        weights = [gain, 0.0, 0.0]
        nodes = [at.ratio for at in past[: self.order] if at.alpha > 0]
        if len(nodes) > 1 and s.alpha > 0:
            first, second = _moments(nodes[0], s.ratio, self.power, self.offset)
            slopes = [1 / (nodes[0] - nodes[1]), 0.0]
            weights[0] += s.alpha * first * slopes[0]
            weights[1] -= s.alpha * first * slopes[0]
            if len(nodes) > 2:
                slopes[1] = 1 / (nodes[1] - nodes[2])
                k = 2 * s.alpha * second / (nodes[0] - nodes[2])
                weights[0] += k * slopes[0]
                weights[1] -= k * (slopes[0] + slopes[1])
                weights[2] += k * slopes[1]
        std = s.sigma * math.sqrt(-math.expm1(2 * fall)) if fall else 0.0
        return Row(state, weights[: len(past)], std=std)

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return tuple(ERSDE(order, offset=offset) for order in (1, 2, 3) for offset in (10.0, math.inf))


def _excess(ratio: float, power: float, offset: float) -> float:
    r"""$\log(e^{S^p} + c)$, and 0 for $c = \infty$, where it is the same at all levels."""
    return 0.0 if offset == math.inf else float(np.logaddexp(ratio**power, math.log(offset)))


@lru_cache(maxsize=1 << 16)
def _moments(t: float, s: float, power: float, offset: float) -> tuple[float, float]:
    r"""$\int_s^t (\phi_s/\phi - 1)\,(S - S_t)^k\,dS$ for $k = 0, 1$, in $\log S$."""
    logs = np.array(quadrature_times(math.log(s), math.log(t)))
    at = np.exp(logs)
    psi = np.zeros_like(at) if offset == math.inf else np.logaddexp(at**power, math.log(offset))
    gap = np.expm1(math.log(s) + _excess(s, power, offset) - logs - psi)
    mass = quadrature_mass(math.log(s), math.log(t), list(gap * at))
    return float(mass.sum()), float(mass @ (at - t))
