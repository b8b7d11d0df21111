"""Churn: the noise level raised before each step of another solver, by the forward process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sde_diffusion._checks import check_positive, check_real
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner
from sde_diffusion.solvers.checks import check_band
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.wrappers.base import nesting, renoised


@dataclass(frozen=True)
class Churn(Solver[GaussianReverseSDE, object]):
    r"""Raises the noise level before each step of another solver: the stochastic sampler of EDM, with any inner solver.

    $$ S_{\hat t} = (1 + \gamma)\,S_t, \quad S = \sigma/\alpha, \quad
       x_{\hat t} = \tfrac{\alpha_{\hat t}}{\alpha_t} x_t
       + s_{noise}\sqrt{\sigma_{\hat t}^2 - \tfrac{\alpha_{\hat t}^2}{\alpha_t^2}\sigma_t^2}\;z $$

    then the inner solver from $\hat t$ to $s$. The order of the inner solver in its ODE part; its evaluations. A
    multistep inner solver starts afresh after each rise. Any Gaussian SDE.

    The first step rises beyond `t_max`, as in the paper, but on a discrete chain, which has no level there.
    The paper churns before its last step to zero noise too, which here is the final jump and is not churned: the two
    agree for an `s_min` above the last level.

    Args:
        inner: The solver, such as `Heun()`.
        gamma: Relative rise; the paper's is $\min(S_{churn}/N, \sqrt2 - 1)$ for $N$ steps.
        s_min: No rise below this $\sigma/\alpha$.
        s_max: No rise from above this $\sigma/\alpha$.
        s_noise: Factor on the noise, 1 or slightly more.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022 (Algorithm 2).
    """

    inner: Solver
    gamma: float = math.sqrt(2) - 1
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_inner(self.inner, "Churn")
        check_positive(self.s_noise, "s_noise")
        if not (0 <= check_real(self.gamma, "gamma") < math.inf):
            raise ValueError(f"gamma must be >= 0 and finite, got {self.gamma!r}")
        check_band(self.s_min, self.s_max)

    @property
    def facts(self) -> Facts:
        inner = self.inner.facts
        stochastic = self.gamma > 0 or inner.stochastic
        return replace(inner, needs=GaussianReverseSDE, order=0 if self.gamma else inner.order, stochastic=stochastic)

    def _raised(self, eq: GaussianReverseSDE, t: Level) -> float | None:
        """The half log-SNR to rise to, or None where the state is left alone."""
        ratio = math.exp(-t.lam) if t.lam > -math.inf else math.inf
        if not self.gamma or not self.s_min <= ratio <= self.s_max or ratio == math.inf:
            return None
        lam = t.lam - math.log1p(self.gamma)
        if eq.sde.time_is_index:  # a chain has no level beyond its last
            lam = max(lam, eq.prefill([eq.sde.t_max])[0].lam)
        return lam if lam < t.lam else None

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        starts = eq.prefill(t for t, _ in intervals)
        raised = [self._raised(eq, at) for at in starts]
        levels = iter(eq.prefill_lam([lam for lam in raised if lam is not None]))
        hats = [at if lam is None else next(levels) for at, lam in zip(starts, raised, strict=True)]
        self.inner.prepare(eq, [(hat.t, s) for hat, (_, s) in zip(hats, intervals, strict=True)])

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource
    ) -> tuple[Tensor, object]:
        lam = self._raised(eq, t)
        if lam is None:
            return self.inner.step(eq, x, t, s, state, noise)
        hat = eq.level_at_lam(lam)
        x = renoised(x, t, hat, noise(t.t, s.t), self.s_noise)
        return self.inner.step(eq, x, hat, s, None, noise.beside(t.t, s.t, nesting(self)))

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.ode.runge_kutta import Heun

        return (Churn(Heun(), 0.1),)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        from sde_diffusion.solvers.ode.runge_kutta import Heun

        return {"churn-heun": Churn(Heun(), gamma=0.2)}
