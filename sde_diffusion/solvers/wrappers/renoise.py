r"""The renoise corrector: a level left upwards with noise, and come back to with a solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.ddim import DDIM
from sde_diffusion.solvers.wrappers.base import nesting, renoised


@dataclass(frozen=True)
class Renoise(Solver[GaussianReverseSDE, None]):
    r"""Adds noise up to a higher level and solves back to the level it came from: a corrector, called with `t == s`.

    $$ x_{\hat t} = \tfrac{\alpha_{\hat t}}{\alpha_t}\,x_t
       + \sqrt{\sigma_{\hat t}^2 - \tfrac{\alpha_{\hat t}^2}{\alpha_t^2}\sigma_t^2}\;z, \quad
       S_{\hat t} = (1 + \gamma)\,S_t, \quad S = \sigma/\alpha, $$

    then one step of the inner solver from $\hat t$ to $t$; `n` times over. Were that step exact, ODE or SDE, this would
    be a Gibbs sampler, which leaves $p_t$ as it is; `DDIM(1)` puts the posterior of the predicted data in the place of
    the true one. The error of the stationary variance is of the order of the inner solver: measured on Gaussian data,
    $\gamma$ for `DDIM(0)` and `DDIM(1)`, $\gamma^2$ for `Heun` and `SRA1`. A small rise mixes as a `Langevin` step with
    $\tau = \gamma\sigma_t^2$ where an ODE comes back, and twice that where the reverse SDE does; but a large one stays
    stable, where Langevin steps diverge for $\tau > 2v$. `n` times the evaluations of the inner solver.

    Args:
        inner: The solver that comes back, with one step and no memory.
        gamma: Relative rise $\gamma$, positive.
        n: Times.

    Raises:
        ValueError: A rise that is not positive, `n < 1`, called to move in time, or at a level with no data left.

    References:
        Lugmayr et al., RePaint: Inpainting Using Denoising Diffusion Probabilistic Models, 2022 (resampling); Xu et
        al., Restart Sampling for Improving Generative Processes, 2023.
    """

    inner: Solver = field(default_factory=lambda: DDIM(1.0))
    gamma: float = 0.2
    n: int = 1

    def __post_init__(self) -> None:
        check_inner(self.inner, "Renoise")
        check_positive(self.gamma, "gamma")
        check_count(self.n, "n")

    @property
    def facts(self) -> Facts:
        inner = self.inner.facts
        return replace(
            inner,
            needs=GaussianReverseSDE,
            order=0,
            evaluations=None if inner.evaluations is None else self.n * inner.evaluations,
            stochastic=True,
            memory=1,
            in_time=False,
            default_steps=30,
        )

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        here = [at for at in eq.prefill(t for t, _ in intervals) if at.lam > -math.inf]
        raised = eq.prefill_lam(self._raised(eq, at) for at in here)
        self.inner.prepare(eq, [(hat.t, at.t) for hat, at in zip(raised, here, strict=True)])

    def _raised(self, eq: GaussianReverseSDE, at: Level) -> float:
        lam = float(at.lam - math.log1p(self.gamma))
        # A chain has no level beyond its last.
        return max(lam, eq.prefill([eq.sde.t_max])[0].lam) if eq.sde.time_is_index else lam

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        if t.t != s.t:
            raise ValueError("Renoise stays at one level: use it as PredictorCorrector(predictor, Renoise(...))")
        if t.lam == -math.inf:
            raise ValueError(f"Renoise cannot rise above t = {t.t:g}, where alpha = 0")
        hat = eq.level_at_lam(self._raised(eq, t))
        back = noise.beside(hat.t, t.t, nesting(self))
        for _ in range(self.n):
            x = renoised(x, t, hat, noise(t.t, t.t))
            x, _ = self.inner.step(eq, x, hat, t, None, back)
        return x, None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.exponential.dpm_solver_pp import DPMSolverPP
        from sde_diffusion.solvers.ode.runge_kutta import Heun
        from sde_diffusion.solvers.stochastic.langevin import PredictorCorrector

        return (PredictorCorrector(DDIM(1.0), Renoise()), PredictorCorrector(DPMSolverPP(2), Renoise(Heun(), 0.2, 2)))
