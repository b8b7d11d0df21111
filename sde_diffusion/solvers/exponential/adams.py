r"""Adams methods of any order, exponential and plain: one integral, with a choice of seven quantities to interpolate.

| `quantity` | what is interpolated | variable | also known as |
|---|---|---|---|
| `"data"` | $D$ | $\lambda$ | exponential Adams-Bashforth, RES-M, DPM-Solver++ with exact weights |
| `"noise"` | $\varepsilon$ | $\lambda$ | multistep DPM-Solver |
| `"rho"` | $\varepsilon$ | $\sigma/\alpha$ | rho-AB DEIS, linear multistep of k-diffusion |
| `"time"` | $\varepsilon$ | $t$ | t-AB DEIS |
| `"velocity"` | $\varepsilon - D$ | $u = \sigma/(\alpha + \sigma)$ | Adams-Bashforth of rectified flow |
| `"angle"` | $\cos u\,\varepsilon - \sin u\,D/c$ | $u = \arctan(\sigma/(\alpha c))$ | Adams-Bashforth in the angle |
| `"balanced"` | the same, over $du$ | $z(u)$ of `sde.angle.balance` | steps as `grids.balanced` counts them |

In the last three the variable is finite at both ends, so that they start from pure noise without a special case, and
end with a step of their own order to the data instead of the posterior mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion.sde.angle import balance
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.checks import check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.multistep import LevelAt, Multistep, Row
from sde_diffusion.solvers.exponential.weights import data_gain
from sde_diffusion.solvers.quadrature import lagrange_integrals, quadrature_mass, quadrature_times, weighted_integrals

QUANTITIES = ("data", "noise", "rho", "time", "velocity", "angle", "balanced")
FINITE = QUANTITIES[-3:]
"""Those whose variable is finite at both ends."""


@dataclass(frozen=True)
class Adams(Multistep):
    r"""Adams-Bashforth of any order, with exact weights on any grid, in a chosen quantity and variable.

    $$ x_s = r\,x_t + c\sum_{j<q} Q_{i-j}\int K(w)\,\ell_j(w)\,dw $$

    One evaluation per step. The first steps use the history there is: started by Euler, an order $q$ above 2 is held to
    2 by its start, and claims that. Any Gaussian SDE; `"noise"`, `"rho"` and `"time"` need data left at both ends.

    Args:
        order: $q$, the number of predictions interpolated.
        quantity: `"data"`, `"noise"`, `"rho"`, `"time"`, `"velocity"`, `"angle"` or `"balanced"`: see the table of this
            module. The last extrapolates over steps that `grids.balanced` makes equally long, so that what a network
            answers amiss is not multiplied where the angles of neighbouring times are far from equally spaced.
        data_std: $c$ of the angle.

    Raises:
        ValueError: An order below 1, an unknown quantity, or a start without data where the quantity needs some.

    References:
        Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023 (DEIS); Hochbruck and
        Ostermann, Exponential Multistep Methods of Adams Type, 2011; Zhang et al., 2023 (RES).
    """

    order: int = 3
    quantity: str = "data"
    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.order, "order")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")
        check_positive(self.data_std, "data_std")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=min(self.order, 2), memory=self.order)

    @property
    def half(self) -> Literal["data", "noise"] | None:
        if self.quantity == "data":
            return "data"
        return None if self.quantity in FINITE else "noise"

    @property
    def reaches_zero(self) -> bool:
        return self.quantity in FINITE

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        if self.quantity == "time":
            ends = [(eq.level(t).lam, eq.level(s).lam) for t, s in intervals]
            eq.prefill_lam(v for a, b in ends if math.isfinite(a - b) for v in quadrature_times(a, b))
        super().prepare(eq, intervals)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        if self.quantity == "data":
            return self._data_row(past, s)
        if self.quantity in FINITE:
            return self._bounded_row(past, s)
        return self._noise_row(past, s, level)

    def _data_row(self, past: Sequence[Level], s: Level) -> Row:
        t = past[0]
        nodes = tuple(at.lam for at in past if at.lam > -math.inf)
        if not nodes or s.alpha == 0:
            return Row(s.sigma / t.sigma, (data_gain(t, s),))
        return Row(s.sigma / t.sigma, tuple(s.alpha * b for b in lagrange_integrals(nodes, t.lam, s.lam, 1.0)))

    def _noise_row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        if t.alpha == 0 or s.alpha == 0:
            raise ValueError(
                f"Adams(quantity={self.quantity!r}) cannot step where alpha = 0 (t = {max(t.t, s.t):g}): "
                "choose another t_max, or quantity='data', 'velocity', 'angle' or 'balanced'"
            )
        if self.quantity == "noise":
            b = lagrange_integrals(tuple(at.lam for at in past), t.lam, s.lam, -1.0)
            return Row(s.alpha / t.alpha, noise=tuple(-s.sigma * v for v in b))
        if self.quantity == "rho":
            b = lagrange_integrals(tuple(at.ratio for at in past), t.ratio, s.ratio)
        else:
            # Over lam: the density in t is singular where a schedule starts as the root of t, and where alpha vanishes.
            lams = quadrature_times(t.lam, s.lam)
            mass = quadrature_mass(t.lam, s.lam, [-math.exp(-v) for v in lams])
            b = weighted_integrals([at.t for at in past], np.asarray([level(v).t for v in lams]), mass)
        return Row(s.alpha / t.alpha, noise=tuple(s.alpha * v for v in b))

    def _bounded_row(self, past: Sequence[Level], s: Level) -> Row:
        t, c = past[0], self.data_std
        if self.quantity == "velocity":
            u = [at.sigma / (at.alpha + at.sigma) for at in (*past, s)]
            length, weigh = [at.alpha + at.sigma for at in (t, s)], [(-1.0, 1.0)] * len(past)
        else:
            u = [math.atan2(at.sigma, at.alpha * c) for at in (*past, s)]
            length = [math.hypot(at.alpha * c, at.sigma) for at in (t, s)]
            weigh = [(-math.sin(v) / c, math.cos(v)) for v in u]
        over = balanced_integrals if self.quantity == "balanced" else lagrange_integrals
        b = [length[1] * v for v in over(tuple(u[:-1]), u[0], u[-1])]
        data = tuple(v * w for v, (w, _) in zip(b, weigh, strict=False))
        return Row(length[1] / length[0], data, tuple(v * w for v, (_, w) in zip(b, weigh, strict=False)))

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (Adams(1, "angle"), *(Adams(3, quantity) for quantity in QUANTITIES), Adams(2, "angle", 0.7), Adams(5))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"deis": Adams(3, "time"), "angle-adams": Adams(3, "angle")}


def balanced_integrals(nodes: tuple[float, ...], a: float, b: float) -> tuple[float, ...]:
    r"""$\int_a^b \ell_j(z(u))\,du$ for the Lagrange basis in $z$ on `nodes`, angles as `a` and `b` are.

    Over $\sqrt u$, of which $z$ is smooth at zero noise too.
    """
    root = np.asarray(quadrature_times(math.sqrt(a), math.sqrt(b)))
    mass = quadrature_mass(math.sqrt(a), math.sqrt(b), (2 * root).tolist())
    return weighted_integrals(balance(np.asarray(nodes)).tolist(), balance(root**2), mass)


_IPNDM = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM(Multistep):
    r"""iPNDM: Adams-Bashforth weights of a uniform grid, whatever the grid, on the noise in $S = \sigma/\alpha$.

    $$ \tfrac{x_s}{\alpha_s} = \tfrac{x_t}{\alpha_t} + (S_s - S_t)\sum_j a_j\,\varepsilon_{i-j} $$

    The order is 2 on grids that are smooth in the step index, whatever the number of terms. Among fixed methods it is
    the best at ten evaluations and fewer on images. One evaluation per step. Needs data left at the start.

    Args:
        order: Number of terms, 1 to 4.

    References:
        Zhang and Chen, DEIS, 2023 (Appendix H.3); Liu et al., Pseudo Numerical Methods for Diffusion Models, 2022.
    """

    order: int = 4
    half = "noise"

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3, 4), "IPNDM")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=min(self.order, 2), memory=self.order)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        if t.alpha == 0 or s.alpha == 0:
            raise ValueError(
                f"IPNDM cannot step where alpha = 0 (t = {max(t.t, s.t):g}): choose t_max a little smaller"
            )
        step = s.alpha * (s.ratio - t.ratio)
        return Row(s.alpha / t.alpha, noise=tuple(step * a for a in _IPNDM[min(len(past), self.order) - 1]))

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (IPNDM(2), IPNDM(3), IPNDM(4))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"ipndm": IPNDM(3)}
