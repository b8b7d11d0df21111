r"""The multistep DPM-Solver++, deterministic and stochastic: differences of the data predictions of earlier steps.

Each class is a `multistep.Multistep`: it computes the weights of a step from the levels alone, the newest prediction
first. Steps are measured in the half log-SNR $\lambda$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_eta, check_falling, check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.multistep import LevelAt, Multistep, Row
from sde_diffusion.solvers.exponential.weights import data_gain, plus_plus_weights


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ in its multistep form ("2M", "3M").

    $$ x_s = \tfrac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1 - e^{-h})\,D^*, \quad
       D^* = D_t + \tfrac{h}{2h_-}\,(D_t - D_{t_-}), \quad h = \lambda_s - \lambda_t $$

    with $h_-$ the previous step in $\lambda$, for order 2. One evaluation per step. The first step is of order 1, as
    is one from a level with no data left. That keeps order 2 over a solve, and holds order 3 to 2, which is what
    it claims: its authors' code, followed here, moreover gives the second difference half its Taylor weight.

    Args:
        order: 1 (the same as `DDIM()`), 2 ("2M") or 3 ("3M").

    References:
        Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022 (Algorithm 2).
    """

    order: int = 2
    half = "data"

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3), "DPMSolverPP")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=min(self.order, 2), memory=self.order)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        return Row(s.sigma / t.sigma, plus_plus_weights(past, s, 1.0, data_gain(t, s), self.order))

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (DPMSolverPP(1), DPMSolverPP(2), DPMSolverPP(3))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {f"dpmpp{order}": DPMSolverPP(order) for order in (1, 2, 3)}


@dataclass(frozen=True)
class SDEDPMSolverPP(Multistep):
    r"""SDE-DPM-Solver++: the multistep method for the reverse SDE with noise scale $\eta$.

    $$ x_s = \tfrac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t + \alpha_s\big(1 - e^{-(1 + \eta^2)h}\big)D^*
       + \sigma_s\sqrt{1 - e^{-2\eta^2h}}\;z $$

    with $D^*$ as in `DPMSolverPP`. At order 1 and $\eta = 1$ this is DDPM's ancestral step. One evaluation per step;
    weak order 1, strong order 1, whatever the order in $D^*$; without noise the order of `DPMSolverPP`.

    Args:
        order: 1, 2 ("2M SDE") or 3 ("3M SDE").
        eta: Noise scale of the reverse SDE, `>= 0`; the `eta` of some other libraries is its square.

    References:
        Lu et al., DPM-Solver++, 2022 (Section 5).
    """

    order: int = 2
    eta: float = 1.0
    half = "data"

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3), "SDEDPMSolverPP")
        check_eta(self.eta)

    @property
    def facts(self) -> Facts:
        order = 1 if self.eta else min(self.order, 2)
        return Facts(needs=GaussianReverseSDE, order=order, stochastic=self.eta > 0, memory=self.order)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t, tau2 = past[0], self.eta**2
        if not tau2:
            return Row(s.sigma / t.sigma, plus_plus_weights(past, s, 1.0, data_gain(t, s), self.order))
        check_falling(s.t - t.t)
        h, kappa = s.lam - t.lam, 1 + tau2
        gain = -s.alpha * math.expm1(-kappa * h)
        std = s.sigma * math.sqrt(-math.expm1(-2 * tau2 * h))
        weights = plus_plus_weights(past, s, kappa, gain, self.order)
        return Row(s.sigma / t.sigma * math.exp(-tau2 * h), weights, std=std)

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (SDEDPMSolverPP(1), SDEDPMSolverPP(2), SDEDPMSolverPP(3, 0.5), SDEDPMSolverPP(2, 0.0))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"dpmpp2-sde": SDEDPMSolverPP(2)}
