r"""Restart: the same window of levels gone through several times, with fresh noise each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from sde_diffusion._checks import check_count, check_order, check_positive
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner
from sde_diffusion.solvers.checks import check_falling
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.wrappers.base import nesting, renoised

RHO = 7.0  # of the grid of Karras et al. (2022), on which the paper lays out its restarts


@dataclass(frozen=True)
class Restart(Solver[GaussianReverseSDE, object]):
    r"""Restart sampling around any solver: noise is added back at the foot of a window, and the window solved again.

    The step that comes to $S = \sigma/\alpha = S_{min}$ or passes it stops there, and `repeats` times over

    $$ x_{max} = \tfrac{\alpha_{max}}{\alpha_{min}}\,x_{min}
       + s_{noise}\sqrt{\sigma_{max}^2 - \tfrac{\alpha_{max}^2}{\alpha_{min}^2}\sigma_{min}^2}\;z, $$

    followed by `steps` steps of the inner solver back down, equidistant in $S^{1/7}$; then it goes on. Each pass
    forgets a part of the error made above. A step is stateless as any other: only the one that meets the foot of the
    window does more. For several windows wrap a `Restart`.

    Evaluations over a solve: `repeats * steps` steps of the inner solver on top of those of the grid, and one more if
    the foot lies between two times of the grid. So `facts.evaluations` is None, and a sampler is given `steps=` rather
    than `nfe=`. No order is claimed: the noise added does not get less with the steps of the grid, and what the passes
    leave over is the error of the inner solver on its `steps` steps. Any Gaussian SDE.

    Args:
        inner: The solver, such as `Heun()`; its history goes through a pass and starts afresh with each.
        s_min: Foot of the window, $S_{min}$.
        s_max: Head of the window, $S_{max}$.
        repeats: Passes, $K$.
        steps: Steps of the inner solver per pass.
        s_noise: Factor on the noise.

    Raises:
        ValueError: A window that is empty or that the grid does not pass; counts below 1; a step up in time.

    References:
        Xu et al., Restart Sampling for Improving Generative Processes, 2023 (Algorithm 1).
    """

    inner: Solver
    s_min: float = 0.06
    s_max: float = 0.3
    repeats: int = 2
    steps: int = 4
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_inner(self.inner, "Restart")
        check_order("s_min", self.s_min, "s_max", self.s_max)
        check_count(self.repeats, "repeats")
        check_count(self.steps, "steps")
        check_positive(self.s_noise, "s_noise")

    @property
    def facts(self) -> Facts:
        return replace(self.inner.facts, needs=GaussianReverseSDE, order=0, evaluations=None, stochastic=True)

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        (top,) = eq.prefill([eq.sde.t_max])
        if -math.log(self.s_max) < top.lam - 1e-9:
            raise ValueError(
                f"s_max = {self.s_max:g} lies above the noise of t_max, sigma/alpha = {math.exp(-top.lam):.4g}: "
                "no model was trained there; choose s_max within"
            )
        levels = eq.prefill(end for interval in intervals for end in interval)
        pieces: list[Interval] = []
        for t, s in zip(levels[::2], levels[1::2], strict=True):
            pieces += [(a.t, b.t) for a, b in pairwise(self._through(eq, t, s)) if b.t < a.t]
        if len(pieces) == len(intervals):
            raise ValueError(
                f"{self!r} restarts where the grid passes sigma/alpha = {self.s_min:g}, and this one goes from "
                f"{math.exp(-levels[0].lam):.4g} to {math.exp(-levels[-1].lam):.4g}: choose s_min within"
            )
        self.inner.prepare(eq, pieces)

    def _meets(self, t: Level, s: Level) -> bool:
        """Whether the foot of the window lies in a step, its start not included."""
        foot = -math.log(self.s_min)
        return bool(t.lam < foot - 1e-9 and s.lam >= foot - 1e-9)

    def _window(self, eq: GaussianReverseSDE) -> list[Level]:
        """The levels of a pass, from the head of the window to its foot."""
        ends = [v ** (1 / RHO) for v in (self.s_max, self.s_min)]
        between = [ends[0] + i / self.steps * (ends[1] - ends[0]) for i in range(1, self.steps)]
        lams = [-math.log(self.s_max), *(-RHO * math.log(v) for v in between), -math.log(self.s_min)]
        return eq.prefill_lam(lams)

    def _through(self, eq: GaussianReverseSDE, t: Level, s: Level) -> list[Level]:
        """The levels that a step visits one after the other, the first pass through the window among them."""
        if not self._meets(t, s):
            return [t, s]
        window = self._window(eq)
        if s.lam <= window[-1].lam + 1e-9:
            return [t, s, *window[:-1], s]
        return [t, window[-1], *window, s]

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource
    ) -> tuple[Tensor, object]:
        check_falling(s.t - t.t)
        if not self._meets(t, s):
            return self.inner.step(eq, x, t, s, state, noise)
        window = self._window(eq)
        last = s.lam <= window[-1].lam + 1e-9  # the foot is the end of the step
        foot = s if last else window[-1]
        x, state = self.inner.step(eq, x, t, foot, state, noise)
        for k in range(self.repeats):
            up, down = (noise.fork(nesting(self), k, part) for part in (0, 1))
            x, state = renoised(x, foot, window[0], up(window[0].t, foot.t), self.s_noise), None
            for a, b in pairwise([*window[:-1], foot]):
                x, state = self.inner.step(eq, x, a, b, state, down)
        return (x, state) if last else self.inner.step(eq, x, foot, s, state, noise)

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.ode.runge_kutta import RK4
        from sde_diffusion.solvers.wrappers.angle import Angle

        once = Restart(Angle(RK4()), repeats=1)
        return (once, Restart(once, 0.3, 1.0, 2, 3))
