r"""DPM-Solver-12 and -23: pairs of DPM-Solvers that choose the steps of each row, in the half log-SNR $\lambda$.

How the rows take steps of their own, `solvers.adaptive` tells. Positions on the way are values of $\lambda$, so that
both ends of an interval need some data left. The error of an attempt is measured in the variance-normalised state
$x/\sqrt{\alpha^2 + \sigma^2}$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.adaptive import Adaptive, Walk, per_row
from sde_diffusion.solvers.base import Facts
from sde_diffusion.solvers.equation import GaussianReverseSDE


class _AdaptiveDPMSolver(Adaptive[Walk, GaussianReverseSDE]):
    """Steps in the half log-SNR, on the noise prediction."""

    @property
    def facts(self) -> Facts:
        return replace(super().facts, needs=GaussianReverseSDE)

    def first(self, eq: GaussianReverseSDE, x: Tensor, at: Level) -> Tensor:
        return eq.denoise(x, at).noise

    def walk(self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, noise: NoiseSource) -> Walk:
        for at in (t, s):
            if not math.isfinite(at.lam):
                raise ValueError(
                    f"{type(self).__name__} steps in lam = log(alpha / sigma), which is infinite at t = {at.t:g}: "
                    "end the interval short of it (t_max= of the SDE, or a grid), or use Angle(DormandPrince()), "
                    "which is regular there"
                )

        def clock(lam: Tensor) -> Tensor:
            # Rounding must not leave the interval, nor the ends themselves.
            time = eq.sde.time_of(lam).clamp(min(t.t, s.t), max(t.t, s.t))
            return torch.where(lam == s.lam, s.t, torch.where(lam == t.lam, t.t, time))

        return Walk(x, (t.lam, s.lam), eq.idle, clock)

    def begin(self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk) -> Tensor:
        return torch.full_like(walk.at, 0.05)

    def judged(
        self, x: Tensor, lower: Tensor, upper: Tensor, ends: tuple[Level, Level]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        r"""An attempt and its error, scaled so that it is judged in the variance-normalised state, $x/\sqrt{\alpha^2 +
        \sigma^2}$, whatever the process: a state that shrinks with the noise would excuse its error by its old size.
        """
        r, s = ((at.alpha**2 + at.sigma**2) ** 0.5 for at in ends)
        old, new, error = x.detach().abs(), upper.detach().abs(), (upper - lower).detach()
        allowed = torch.maximum(old / r, new / s).mul_(self.rtol).add_(self.atol)
        return upper, error / s / allowed * torch.maximum(old, new).mul_(self.rtol).add_(self.atol), None

    def stage(self, x: Tensor, walk: Walk, at: tuple[Level, Level], c: float, *terms: tuple[float, Tensor]) -> Tensor:
        r"""A step of length $z = ch$ in $\lambda$ with given slopes; the first of `terms` is `(1.0, k_1)`.

        $$ \tfrac{\alpha_c}{\alpha}\,x - \sigma_c\big[(e^z - 1)\,k_1 + \textstyle\sum_{j>1} w_j\,\varphi(z)\,k_j\big] $$
        """
        z = c * walk.sign * walk.length
        growth = torch.expm1(z)
        phi = torch.where(z == 0, 0.0, growth / z - 1)
        here, there = at
        x = (there.alpha / here.alpha) * x
        x = torch.addcmul(x, per_row(growth, x) * there.sigma, terms[0][1], value=-1.0)
        for w, k in terms[1:]:
            x = torch.addcmul(x, per_row(phi, x) * there.sigma, k, value=-w)
        return x


@dataclass(frozen=True)
class DPMSolver12(_AdaptiveDPMSolver):
    r"""DPM-Solver-2 with the error of DPM-Solver-1 (DDIM), each row its own steps in $\lambda$; two evaluations each.

    $$ u = \tfrac{\alpha_m}{\alpha_t} x - \sigma_m (e^{h/2} - 1)\,\varepsilon_t, \quad
       x' = \tfrac{\alpha_s}{\alpha_t} x - \sigma_s (e^h - 1)\,\varepsilon_m, \quad
       e = \sigma_s (e^h - 1)\,(\varepsilon_m - \varepsilon_t), \quad \lambda_m = \lambda_t + \tfrac h2 $$

    Order 2, which is what the step control sees. Any Gaussian SDE, both directions. The original takes one error norm
    for the batch, its maximum; here a row does not depend on the others. Its error is measured against
    `atol + rtol |x|` rather than their maximum, in the variance-normalised state: on every process alike.

    Args:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state; the default is one grey level of 256 in `[-1, 1]`.
        max_nfe: Evaluations allowed per row and interval.

    Raises:
        ValueError: An end where $\lambda$ is infinite.

    References:
        Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, 2022 (Appendix C).
    """

    rtol: float = 0.05
    atol: float = 0.0078
    max_nfe: int = 10_000
    exponents: ClassVar = (1 / 2, 0.0)
    stages: ClassVar = 2

    def attempt(
        self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        here, middle, there = (self.level(eq, x, walk, p) for p in (walk.at, walk.between(0.5), walk.target))
        halfway = eq.denoise(self.stage(x, walk, (here, middle), 0.5, (1.0, known)), middle).noise
        lower = self.stage(x, walk, (here, there), 1.0, (1.0, known))
        upper = self.stage(x, walk, (here, there), 1.0, (1.0, halfway))
        return self.judged(x, lower, upper, (here, there))


@dataclass(frozen=True)
class DPMSolver23(_AdaptiveDPMSolver):
    r"""DPM-Solver-3 with the error of DPM-Solver-2, each row its own steps in $\lambda$; three evaluations each.

    With stages at a third and two thirds of the step, $k_1, k_2, k_3$ the noise predictions there and
    $\varphi(z) = (e^z - 1)/z - 1$,

    $$ x' = \tfrac{\alpha_s}{\alpha_t} x - \sigma_s\big[(e^h - 1)\,k_1 + \tfrac32\,\varphi(h)\,(k_3 - k_1)\big] $$

    and in the lower method $3\varphi(h)\,(k_2 - k_1)$ in the place of the last term. Order 3, which is what the step
    control sees. Otherwise as `DPMSolver12`.

    Args:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state; the default is one grey level of 256 in `[-1, 1]`.
        max_nfe: Evaluations allowed per row and interval.

    Raises:
        ValueError: An end where $\lambda$ is infinite.

    References:
        Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, 2022 (Appendix C).
    """

    rtol: float = 0.05
    atol: float = 0.0078
    max_nfe: int = 10_000
    exponents: ClassVar = (1 / 3, 0.0)
    stages: ClassVar = 3

    def attempt(
        self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        places = (walk.at, walk.between(1 / 3), walk.between(2 / 3), walk.target)
        here, one, two, there = (self.level(eq, x, walk, p) for p in places)
        k2 = eq.denoise(self.stage(x, walk, (here, one), 1 / 3, (1.0, known)), one).noise - known
        k3 = eq.denoise(self.stage(x, walk, (here, two), 2 / 3, (1.0, known), (2.0, k2)), two).noise - known
        lower = self.stage(x, walk, (here, there), 1.0, (1.0, known), (3.0, k2))
        upper = self.stage(x, walk, (here, there), 1.0, (1.0, known), (1.5, k3))
        return self.judged(x, lower, upper, (here, there))
