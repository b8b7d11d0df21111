"""SA-Solver, a stochastic Adams predictor and corrector in one evaluation per step.

The corrector reuses the evaluation of the next predictor, as `unipc` describes: a step is one row of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_band, check_eta, check_falling, check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.multistep import LevelAt, Multistep, Row
from sde_diffusion.solvers.exponential.unipc import corrected
from sde_diffusion.solvers.exponential.weights import data_gain
from sde_diffusion.solvers.quadrature import lagrange_integrals


@dataclass(frozen=True)
class SASolver(Multistep):
    r"""SA-Solver: stochastic Adams methods for the reverse SDE with noise scale $\eta$.

    $$ x_s = \tfrac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t
       + \alpha_s(1 + \eta^2)\sum_j D_j\int e^{(1 + \eta^2)(\lambda - \lambda_s)}\ell_j\,d\lambda
       + \sigma_s\sqrt{1 - e^{-2\eta^2h}}\;z $$

    with a corrector that interpolates through the new prediction as well and keeps the same $z$. One evaluation per
    step. Strong and weak order 1 for $\eta > 0$, strong order 1/2 where the noise is switched within the range; the
    order of its predictor and corrector in the part without noise.

    Args:
        predictor: Terms of the predictor, 1 to 4.
        corrector: Terms of the corrector besides the new one, 0 (none) to 3.
        eta: Noise scale, `>= 0`.
        s_min: No noise below this $\sigma/\alpha$.
        s_max: No noise above this $\sigma/\alpha$.

    References:
        Xue et al., SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models, 2023.
    """

    predictor: int = 2
    corrector: int = 2
    eta: float = 1.0
    s_min: float = 0.0
    s_max: float = math.inf
    half = "data"

    def __post_init__(self) -> None:
        check_order(self.predictor, (1, 2, 3, 4), "the predictor of SASolver")
        check_order(self.corrector, (0, 1, 2, 3), "the corrector of SASolver")
        check_eta(self.eta)
        check_band(self.s_min, self.s_max)

    @property
    def facts(self) -> Facts:
        memory = max(self.predictor, self.corrector) + 1
        return Facts(needs=GaussianReverseSDE, order=self._order(), stochastic=self.eta > 0, memory=memory)

    def _order(self) -> float:
        if self.eta:
            # Where the noise is switched on and off lies between grid times: by half a step, and that is the error.
            return 1 if self.s_min == 0 and self.s_max == math.inf else 0.5
        return min(self.predictor + 1, self.corrector + 1, 3) if self.corrector else min(self.predictor, 2)

    def _tau2(self, t: Level) -> float:
        ratio = math.exp(-t.lam) if t.lam > -math.inf else math.inf
        return self.eta**2 if self.s_min <= ratio <= self.s_max else 0.0

    def _weights(self, nodes: Sequence[float], t: Level, s: Level) -> tuple[float, ...]:
        kappa = 1 + self._tau2(t)
        known = tuple(lam for lam in nodes if lam > -math.inf)
        if not known or math.isinf(s.lam - t.lam):
            return (data_gain(t, s) if kappa == 1 else -s.alpha * math.expm1(-kappa * (s.lam - t.lam)),)
        return tuple(s.alpha * kappa * b for b in lagrange_integrals(known, t.lam, s.lam, kappa))

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        tau2, h = self._tau2(t), s.lam - t.lam
        if tau2:
            check_falling(s.t - t.t)
        r = s.sigma / t.sigma * math.exp(-tau2 * h) if tau2 else s.sigma / t.sigma
        std = s.sigma * math.sqrt(-math.expm1(-2 * tau2 * h)) if tau2 else 0.0
        lams = [at.lam for at in past]
        weights = self._weights(lams[: self.predictor], t, s)
        if self.corrector and len(past) > 1 and lams[1] > -math.inf:
            before = self._weights(lams[1 : self.predictor + 1], past[1], t)
            correction = self._weights(lams[: self.corrector + 1], past[1], t)
            weights = corrected(weights, before, correction, r)
        return Row(r, weights, std=std)

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (
            SASolver(2, 2),
            SASolver(3, 3, 0.5),
            SASolver(2, 0),
            SASolver(3, 3, 0.0),
            SASolver(2, 1, s_min=0.1, s_max=2.0),
        )

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"sa": SASolver(2, 2)}
