r"""The Adams-Bashforth-Moulton method: a predictor-corrector on any ODE that evaluates once per step.

Predict, evaluate, correct: the velocity found at a predicted state first corrects that state, by the integral of a
polynomial through it and the velocities before, and then predicts the next one. A corrected state differs from the
predicted one by a combination of known velocities, so that none is ever formed: with $b$ the weights of the predictor
from $t$ to $s$, $b^-$ those of the step before and $c^-$ the corrector's on that step,

$$ x_s = x_t + \sum_j \big(b_j + c^-_j - b^-_j\big)\,v_{i-j} $$

On equal steps these are the weights of Adams and Bashforth and those of $\kappa\nabla^pv$, $\kappa = 1/2, 5/12, 3/8$
for $p = 2, 3, 4$, where $5/12, 3/8, 251/720$ would make the order $p + 1$: a fifth, a ninth and a thirteenth of the
leading error are left. So the predicted states are as good as the corrected ones, the last of a solve included, which
nothing corrects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.checks import check_order
from sde_diffusion.solvers.equation import ODE
from sde_diffusion.solvers.exponential.multistep import chain
from sde_diffusion.solvers.exponential.unipc import corrected
from sde_diffusion.solvers.quadrature import lagrange_integrals

History = tuple[tuple[float, Tensor], ...]


@dataclass(frozen=True)
class AdamsMoulton(Solver[ODE, History]):
    r"""The Adams-Bashforth-Moulton predictor-corrector in its form PEC, with exact weights on any grid.

    $$ x^p_s = x_t + \sum_{j<p} v_{i-j}\int_t^s\ell_j(w)\,dw, \qquad
       x_s = x_t + v(x^p_s, s)\int_t^s\ell^*_0(w)\,dw + \sum_{0<j<p} v_{i+1-j}\int_t^s\ell^*_j(w)\,dw $$

    with $\ell$ the Lagrange basis on the times of the last $p$ velocities, and $\ell^*$ with the newest among them; the
    second is made at the start of the next step. One evaluation per step, the first steps included, which use the
    velocities there are. Any `ODE`: the probability flow of any SDE, a log-likelihood, and within `Angle`, where it
    does best. A decaying mode $v = \mu x$ is stable for $-h\mu$ up to 0.50, 0.29 and 0.16 in order 2, 3 and 4
    (`Heun()`: 2): the higher the order, the more steps or the smoother a velocity it wants.

    Order $p$ in its interior, of which it claims $p - 1$: the start holds 4 to 3, and so little is left of the leading
    error of 2 and 3 that their order shows at fine steps alone.

    Args:
        order: $p$, 2 to 4.

    References:
        Bashforth and Adams, An Attempt to Test the Theories of Capillary Action, 1883; Moulton, New Methods in Exterior
        Ballistics, 1926; Hairer et al., Solving Ordinary Differential Equations I, 1993 (Section III.1).
    """

    order: int = 4

    def __post_init__(self) -> None:
        check_order(self.order, (2, 3, 4), "AdamsMoulton")

    @property
    def facts(self) -> Facts:
        return Facts(order=self.order - 1, memory=self.order + 1, in_time=True)

    def row(self, past: Sequence[float], s: float) -> tuple[float, ...]:
        """The weights of one step on the velocities at the times `past`, newest first."""
        p, (t, *known) = self.order, past
        now = lagrange_integrals(tuple(past[:p]), t, s)
        if not known:
            return now
        before = lagrange_integrals(tuple(known[:p]), known[0], t)
        return corrected(now, before, lagrange_integrals(tuple(past[:p]), known[0], t), 1.0)

    def _row(self, eq: ODE, past: Sequence[float], s: float) -> tuple[float, ...]:
        """The row of a step, computed once per equation."""
        key = (self, s, *past)
        row: tuple[float, ...] | None = eq.tables.rows.get(key)
        if row is None:
            row = eq.tables.rows[key] = self.row(past, s)
        return row

    def prepare(self, eq: ODE, intervals: Sequence[Interval]) -> None:
        for s, *past in chain(intervals, self.order + 1):
            self._row(eq, past, s)

    def step(
        self, eq: ODE, x: Tensor, t: Level, s: Level, state: History | None, noise: NoiseSource
    ) -> tuple[Tensor, History]:
        past = (state or ())[: self.order]
        first, *others = self._row(eq, [t.t, *(at for at, _ in past)], s.t)
        now = eq.velocity(x, t)
        x = torch.add(x, now, alpha=first)
        for w, (_, before) in zip(others, past, strict=True):
            x.add_(before, alpha=w)
        return x, ((t.t, now), *past)

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (AdamsMoulton(2), AdamsMoulton(3), AdamsMoulton(4))
