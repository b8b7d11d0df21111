r"""Steps in the angle of the noise level: any solver, on its equation as seen through `sde.angle.AngleSDE`.

The state $x$ of the process becomes $y = x/\sqrt{\alpha^2c^2 + \sigma^2}$ and its time the angle $u = \arctan(\sigma /
(\alpha c))$, for the inner solver alone; what goes in and comes out is $x$.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sde_diffusion._checks import check_positive
from sde_diffusion._tensors import scale
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.angle import AngleSDE
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner
from sde_diffusion.solvers.equation import GaussianReverseSDE


@dataclass(frozen=True)
class Angle(Solver[GaussianReverseSDE, object]):
    r"""Steps with another solver in the angle coordinate.

    Same evaluations, same order, another error constant: for Runge-Kutta below twenty evaluations 40 times less and
    more than in the time of `EDMSDE`, `VESDE` and `BrownianSDE`, whose state grows with the noise; on `VPSDE`,
    `FlowSDE` and `CosineSDE` about the same. Any Gaussian SDE, with or without data left at the start.

    Args:
        inner: The solver; for instance `RK4()`.
        data_std: $c$, the standard deviation of the data; the result is exact for $\mathcal N(0, c^2I)$.
    """

    inner: Solver
    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_inner(self.inner, "Angle")
        check_positive(self.data_std, "data_std")

    @property
    def facts(self) -> Facts:
        return replace(self.inner.facts, needs=GaussianReverseSDE, in_time=False)

    @property
    def bare(self) -> tuple[Solver, float | None]:
        return self.inner, self.data_std

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        circle = AngleSDE(self.data_std)
        times = [t for t, _ in intervals] + [s for _, s in intervals]
        angles = [circle.angle(at) for at in eq.prefill(times)]
        view = eq.on(circle)
        view.prefill(angles)
        self.inner.prepare(view, list(zip(angles[: len(intervals)], angles[len(intervals) :], strict=True)))

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource
    ) -> tuple[Tensor, object]:
        circle = AngleSDE(self.data_std)
        view = eq.on(circle)
        a, b = view.level(circle.angle(t)), view.level(circle.angle(s))
        y, state = self.inner.step(view, scale(x, 1 / circle.radius(t)), a, b, state, noise)
        return scale(y, circle.radius(s)), state

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.exponential.dpm_solver_pp import DPMSolverPP
        from sde_diffusion.solvers.ode.adams_moulton import AdamsMoulton
        from sde_diffusion.solvers.ode.embedded import BogackiShampine, DormandPrince
        from sde_diffusion.solvers.ode.runge_kutta import RK4, Euler, Heun
        from sde_diffusion.solvers.stochastic.heun_euler import StochasticHeunEuler

        return (
            Angle(Heun()),
            Angle(Euler()),
            Angle(Heun(), 0.7),
            Angle(RK4(), 0.7),
            Angle(DPMSolverPP(2)),
            Angle(AdamsMoulton(3)),
            Angle(AdamsMoulton(), 0.7),
            Angle(BogackiShampine()),
            Angle(DormandPrince(), 0.7),
            Angle(StochasticHeunEuler()),
        )

    @classmethod
    def named(cls) -> dict[str, Solver]:
        from sde_diffusion.solvers.ode.adams_moulton import AdamsMoulton
        from sde_diffusion.solvers.ode.embedded import DormandPrince
        from sde_diffusion.solvers.ode.runge_kutta import RK4, Heun

        return {
            "angle-heun": Angle(Heun()),
            "angle-rk4": Angle(RK4()),
            "angle-adams-moulton": Angle(AdamsMoulton(3)),
            "adaptive": Angle(DormandPrince()),
        }
