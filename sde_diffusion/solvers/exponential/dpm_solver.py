r"""The single-step DPM-Solvers: exponential integrators in the half log-SNR $\lambda$, on any Gaussian SDE.

With the data prediction $D(\lambda)$ along the solution and $h = \lambda_s - \lambda_t$ the probability flow reads,
exactly,

$$ x_s = \tfrac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\int_{\lambda_t}^{\lambda_s} e^{\lambda -
  \lambda_s}\,D(\lambda)\,d\lambda,
   \qquad x_s = \tfrac{\alpha_s}{\alpha_t}\,x_t - \sigma_s\int_{\lambda_t}^{\lambda_s} e^{\lambda_s -
   \lambda}\,\varepsilon(\lambda)\,d\lambda $$

`DPMSolver` expands $\varepsilon$ under the integral, `DPMSolverPP2S` expands $D$, which stays bounded under guidance.
No step remembers another; the multistep form is in `dpm_solver_pp`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.checks import check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.weights import data_gain


class _SingleStep(Solver[GaussianReverseSDE, None]):
    """Stages inside a step, at fixed fractions of it in half log-SNR."""

    @property
    @abstractmethod
    def fractions(self) -> tuple[float, ...]:
        """Where the stages stand in the step."""

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        ends = [(eq.level(t), eq.level(s)) for t, s in intervals]
        eq.prefill_lam(stage for t, s in ends if _finite(t, s) for stage in self._stages(t, s))

    def _stages(self, t: Level, s: Level) -> list[float]:
        return [t.lam + c * (s.lam - t.lam) for c in self.fractions]


def _finite(t: Level, s: Level) -> bool:
    return math.isfinite(t.lam) and math.isfinite(s.lam)


@dataclass(frozen=True)
class DPMSolver(_SingleStep):
    r"""DPM-Solver: the single-step methods on the noise prediction.

    $$ x_s = \tfrac{\alpha_s}{\alpha_t}x_t - \sigma_s(e^h - 1)\,\varepsilon_{t + h/2} $$

    for order 2, the middle taken in $\lambda$; order 3 adds a difference of stages at a third and two thirds. `order`
    evaluations per step. Needs data left at both ends of the step, as $\lambda$ is infinite where there is none.

    Args:
        order: 1 (the same as `DDIM()`), 2 or 3.

    Raises:
        ValueError: A step that starts or ends where `alpha = 0`.

    References:
        Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps, 2022
        (Algorithms 1 and 2).
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3), "DPMSolver")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=self.order, evaluations=self.order)

    @property
    def fractions(self) -> tuple[float, ...]:
        return ((), (0.5,), (1 / 3, 2 / 3))[self.order - 1]

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        first = eq.denoise(x, t)
        if self.order == 1:
            return first.combine(s.alpha, s.sigma), None
        check_finite_lam(t, s, "DPMSolver")
        h = s.lam - t.lam
        mids = [eq.level_at_lam(lam) for lam in self._stages(t, s)]
        u = _noise_step(first, t, mids[0], math.expm1(h * self.fractions[0]))
        middle = eq.denoise(u, mids[0])
        if self.order == 2:
            out = _noise_step(first, t, s, 0.0)
            middle.add_to(out, 0.0, -s.sigma * math.expm1(h))
            return out, None
        m = mids[1]
        g = math.expm1(2 * h / 3)
        k = 2 * (g / (2 * h / 3) - 1)
        u = _noise_step(first, t, m, g - k)
        middle.add_to(u, 0.0, -m.sigma * k)
        last = eq.denoise(u, m)
        k = 1.5 * (math.expm1(h) / h - 1)
        out = _noise_step(first, t, s, math.expm1(h) - k)
        last.add_to(out, 0.0, -s.sigma * k)
        return out, None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (DPMSolver(1), DPMSolver(2), DPMSolver(3))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"dpm3": DPMSolver(3)}


def _noise_step(first: Prediction, t: Level, s: Level, gain: float) -> Tensor:
    r"""$\tfrac{\alpha_s}{\alpha_t}x_t - \sigma_s\,g\,\varepsilon_t$, from the prediction at $t$."""
    ratio = s.alpha / t.alpha
    return first.combine(s.alpha, ratio * t.sigma - s.sigma * gain)


def check_finite_lam(t: Level, s: Level, name: str) -> None:
    """Raises `ValueError` where a step starts or ends with no data left."""
    if not _finite(t, s):
        at = t if not math.isfinite(t.lam) else s
        raise ValueError(
            f"{name} steps in the log-SNR, which is infinite at t = {at.t:g}, where alpha = 0: choose t_max a little "
            "smaller, or use DPMSolverPP, UniPC or Angle(...), which are regular there"
        )


@dataclass(frozen=True)
class DPMSolverPP2S(_SingleStep):
    r"""DPM-Solver++(2S): the single-step second-order method on the data prediction.

    $$ x_s = \tfrac{\sigma_s}{\sigma_t}x_t + \alpha_s(1 - e^{-h})\,D_{t + h/2} $$

    Order 2, two evaluations per step, the middle taken in $\lambda$. Needs data left at both ends of the step.

    Args:
        stiff: Weighs both stages by the stiff order conditions, which makes it RES-2S: the same order, another
            constant.

    References:
        Lu et al., DPM-Solver++, 2022 (Algorithm 1); Zhang et al., Improved Order Analysis and Design of Exponential
        Integrator for Diffusion Models Sampling, 2023.
    """

    stiff: bool = False
    facts = Facts(needs=GaussianReverseSDE, order=2, evaluations=2)
    fractions = (0.5,)

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        check_finite_lam(t, s, "DPMSolverPP2S")
        first, h = eq.denoise(x, t), s.lam - t.lam
        (m,) = (eq.level_at_lam(lam) for lam in self._stages(t, s))
        middle = eq.denoise(first.combine(m.sigma / t.sigma * t.alpha + data_gain(t, m), m.sigma), m)
        gain = data_gain(t, s)
        second = 2 * s.alpha * (1 + math.expm1(-h) / h) if self.stiff else gain
        out = first.combine(s.sigma / t.sigma * t.alpha + gain - second, s.sigma)
        middle.add_to(out, second, 0.0)
        return out, None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (DPMSolverPP2S(), DPMSolverPP2S(stiff=True))
