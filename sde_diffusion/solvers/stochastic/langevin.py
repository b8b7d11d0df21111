r"""Langevin dynamics as a corrector, called with `t == s`, and the solvers made of a predictor and a corrector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner, stronger
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE
from sde_diffusion.solvers.wrappers.base import nesting


@dataclass(frozen=True)
class Langevin(Solver[GaussianReverseSDE, None]):
    r"""Unadjusted Langevin steps at one level: a corrector, called with `t == s`.

    $$ x \leftarrow x + \tau\,\nabla\log p_t(x) + \sqrt{2\tau}\,z, \quad \tau = 2\,(r\,\sigma_t)^2 $$

    The step size is a function of the level alone. The rule of the score-SDE paper takes $|z| / |\nabla\log p_t|$,
    averaged over the batch, where $\sigma_t$ stands here: the same size for a good score, but there one sample moves
    another, and with norms per sample the chain diverges in low dimension. Not a convergent method by itself: on
    $\mathcal N(0, v)$ the stationary variance is $v / (1 - \tau/(2v))$. `n` evaluations.

    Args:
        n: Steps; or a mapping from $\sigma/\alpha$ to steps, of which a level takes the entry at the greatest key not
            above its own (none if there is no such key): `{0.0: 1, 0.5: 4}` takes 4 steps from 0.5 up and 1 below; or a
            function of the level. Then `facts.evaluations` is None.
        snr: $r$, the signal-to-noise ratio of a step. 0.16 in the paper's CIFAR-10 settings.

    Raises:
        TypeError: A count that is not an integer.
        ValueError: `n < 1`, a negative count or key, `snr <= 0`, or called to move in time.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (Algorithms 4 and 5).
    """

    n: int | Mapping[float, int] | Callable[[Level], int] = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if isinstance(self.n, Mapping):
            if not self.n or not all(0 <= key < math.inf for key in self.n):
                raise ValueError(f"n maps levels sigma/alpha >= 0 to counts, got {self.n!r}")
            for count in self.n.values():
                _checked(count)
        elif not callable(self.n):
            check_count(self.n, "n")
        check_positive(self.snr, "snr")

    def __hash__(self) -> int:
        return hash((frozenset(self.n.items()) if isinstance(self.n, Mapping) else self.n, self.snr))

    @classmethod
    def ncsn(cls, n: int = 100, *, epsilon: float = 2e-5, sigma_min: float = 0.01) -> Langevin:
        r"""The step rule of NCSN: $x + \tfrac{a_i}2\nabla\log p + \sqrt{a_i}\,z$ with $a_i =
        \epsilon\,\sigma_i^2/\sigma_L^2$.

        The same rule as `snr` under another name: $r = \tfrac12\sqrt\epsilon/\sigma_L$.

        Args:
            n: Steps per level, $T$.
            epsilon: $\epsilon$.
            sigma_min: $\sigma_L$, the smallest level.

        References:
            Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, 2019 (Algorithm 1).
        """
        if not (epsilon > 0 and sigma_min > 0):
            raise ValueError(f"wanted epsilon > 0 and sigma_min > 0, got {epsilon!r} and {sigma_min!r}")
        return cls(n, snr=0.5 * math.sqrt(epsilon) / sigma_min)

    @classmethod
    def ncsn2(cls, n: int = 5, *, ratio: float) -> Langevin:
        r"""The step rule of NCSN v2: $x + a_i\nabla\log p + \sqrt{2a_i}\,z$ with $a_i = e\,\sigma_i^2$.

        $e = \epsilon/\sigma_L^2$ is chosen as the paper's technique 4 has it: on pure noise of the level above, with
        variance $\gamma^2\sigma_i^2$, `n` steps leave the variance $\sigma_i^2$ times
        $(1 - e)^{2n}\,(\gamma^2 - q) + q$, $q = 1/(1 - e/2)$, and $e$ makes this as near to 1 as it gets.

        Args:
            n: Steps per level, $T$.
            ratio: $\gamma > 1$, the ratio of neighbouring levels of a geometric grid.

        Example:
            >>> Langevin.ncsn2(5, ratio=(50 / 0.01) ** (1 / 231))  # CIFAR-10: a_i = 0.062 sigma_i^2

        References:
            Song and Ermon, Improved Techniques for Training Score-Based Generative Models, 2020 (technique 4).
        """
        check_count(n, "n")
        if not (1 < ratio < math.inf):
            raise ValueError(f"ratio must be above 1, got {ratio!r}")

        def excess(e: float) -> float:
            return (1 - e) ** (2 * n) * (ratio**2 - 1 / (1 - e / 2)) + 1 / (1 - e / 2)

        # It falls, then rises. Where, is a root of a polynomial of degree 2n; to first order in e it is
        # log(4 n (ratio^2 - 1)) / 2n, which is a third too small in the example above. So it is searched for.
        low, high = 0.0, 1.0
        for _ in range(100):
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, b) if excess(a) < excess(b) else (a, high)
        return cls(n, snr=math.sqrt(low / 2))

    @property
    def facts(self) -> Facts:
        evaluations = self.n if isinstance(self.n, int) else None
        return Facts(needs=GaussianReverseSDE, evaluations=evaluations, stochastic=True)

    def count(self, at: Level) -> int:
        """How many steps it takes at a level."""
        if isinstance(self.n, Mapping):
            return self.n[max(keys)] if (keys := [key for key in self.n if key <= at.ratio]) else 0
        return _checked(self.n(at)) if callable(self.n) else self.n

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        if t.t != s.t:
            raise ValueError(
                "Langevin stays at one level: use it as PredictorCorrector(predictor, Langevin(...)), "
                "with Hold() as the predictor for annealed Langevin dynamics"
            )
        tau = 2 * (self.snr * t.sigma) ** 2
        for _ in range(self.count(t)):
            x = torch.add(x, eq.score(x, t), alpha=tau)
            x = torch.add(x, noise(t.t, t.t), alpha=math.sqrt(2 * tau))
        return x, None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.stochastic.euler_maruyama import EulerMaruyama

        return (PredictorCorrector(EulerMaruyama(), Langevin(2, 0.16)), PredictorCorrector(Hold(), Langevin(3, 0.2)))


def _checked(count: object) -> int:
    """Returns a number of steps if it is an integer, 0 or more."""
    if count == 0 and not isinstance(count, bool):
        return 0
    return check_count(count, "n")


@dataclass(frozen=True)
class Hold(Solver[ODE, None]):
    """Leaves the state as it is: the predictor of annealed Langevin dynamics. No evaluation; 1000 steps by default.

    Meant for a VE process, where the state at two levels differs by noise alone.
    """

    facts = Facts(evaluations=0, default_steps=1000)

    def step(self, eq: ODE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource) -> tuple[Tensor, None]:
        return x, None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (annealed_langevin(2, epsilon=2e-5, sigma_min=0.01),)


@dataclass(frozen=True)
class PredictorCorrector(Solver[ODE, object]):
    """One step of a predictor from `t` to `s`, then a corrector at `s`.

    Evaluations of both, and by default the steps of the predictor: 1000 of `Hold` and `EulerMaruyama`. No order of
    convergence is claimed: the corrector aims at the distribution, not at the path.

    Args:
        predictor: Any solver.
        corrector: A solver that stays at one level, such as `Langevin(1, snr=0.16)`.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (Algorithm 1).
    """

    predictor: Solver
    corrector: Solver

    def __post_init__(self) -> None:
        check_inner(self.predictor, "PredictorCorrector")
        check_inner(self.corrector, "PredictorCorrector")
        if self.corrector.facts.order:
            raise ValueError(
                f"{self.corrector!r} moves in time and leaves a state at one level as it is: as a corrector take "
                "Langevin() or Renoise()"
            )

    @property
    def facts(self) -> Facts:
        a, b = self.predictor.facts, self.corrector.facts
        return replace(
            a,
            needs=stronger(a.needs, b.needs),
            order=0,
            evaluations=None if a.evaluations is None or b.evaluations is None else a.evaluations + b.evaluations,
            stochastic=a.stochastic or b.stochastic,
            adaptive=a.adaptive or b.adaptive,
            rtol=b.rtol if a.rtol is None else a.rtol,
            atol=b.atol if a.atol is None else a.atol,
            in_time=a.in_time or b.in_time,
        )

    def prepare(self, eq: ODE, intervals: Sequence[Interval]) -> None:
        self.predictor.prepare(eq, intervals)
        self.corrector.prepare(eq, [(s, s) for _, s in intervals])

    def step(self, eq: ODE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource) -> tuple[Tensor, object]:
        x, state = self.predictor.step(eq, x, t, s, state, noise)
        x, _ = self.corrector.step(eq, x, s, s, None, noise.beside(t.t, s.t, nesting(self)))
        return x, state

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.exponential.dpm_solver_pp import DPMSolverPP
        from sde_diffusion.solvers.ode.runge_kutta import RK4
        from sde_diffusion.solvers.stochastic.euler_maruyama import EulerMaruyama
        from sde_diffusion.solvers.wrappers.angle import Angle

        return (
            PredictorCorrector(EulerMaruyama(), Langevin(1, snr=0.16)),
            PredictorCorrector(DPMSolverPP(2), Langevin(1, 0.1)),
            PredictorCorrector(Angle(RK4()), Langevin({0.0: 1, 0.5: 2}, 0.1)),
        )

    @classmethod
    def named(cls) -> dict[str, Solver]:
        from sde_diffusion.solvers.exponential.ddim import DDIM

        return {"predictor-corrector": PredictorCorrector(DDIM(eta=1.0), Langevin(1, snr=0.16))}


def annealed_langevin(n: int = 100, *, epsilon: float = 2e-5, sigma_min: float = 0.01) -> PredictorCorrector:
    r"""Annealed Langevin dynamics of NCSN: at each level of the grid after the first, `n` Langevin steps of the NCSN
    rule.

    Args:
        n: Steps per level, $T$.
        epsilon: $\epsilon$ of the rule $a_i = \epsilon\,\sigma_i^2 / \sigma_L^2$.
        sigma_min: $\sigma_L$, the smallest level.

    References:
        Song and Ermon, 2019 (Algorithm 1).
    """
    return PredictorCorrector(Hold(), Langevin.ncsn(n, epsilon=epsilon, sigma_min=sigma_min))
