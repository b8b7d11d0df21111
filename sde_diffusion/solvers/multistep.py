r"""Multistep methods: pure functions from levels to weights, run by one class.

$$ x_s = r\,x_t + \sum_j \big(p_j\,\mathrm{data}_{i-j} + q_j\,\mathrm{noise}_{i-j}\big) + \varsigma z $$

over the predictions of the last steps. A method computes the row $(r, p, q, \varsigma)$ in floats from the last few
levels; it never sees a tensor. A new method is one such function. Most are one integral: with $\ell_j$ the Lagrange
basis on the known nodes in some variable $w$,

$$ b_j = \int_a^b e^{\kappa(w - b)}\,\ell_j(w)\,dw $$

computed by Gauss-Legendre quadrature in the local variable, to rounding for any step and any order. The usual
recursions for the exponential functions lose all digits as the step gets small: of $\varphi_4$ at $h = 0.01$ nothing
is left in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sde_diffusion.equation import GaussianReverseSDE
from sde_diffusion.noise import NoiseSource
from sde_diffusion.predict import Prediction
from sde_diffusion.sde import Level
from sde_diffusion.solvers.base import Interval, Solver

History = tuple[tuple[Level, Prediction], ...]
LevelAt = Callable[[float], Level]

# 24 nodes integrate a polynomial of degree 47 exactly, and these integrands, smooth over a step, to rounding.
_NODES, _WEIGHTS = (0.5 * (v + shift) for v, shift in zip(np.polynomial.legendre.leggauss(24), (1.0, 0.0), strict=True))


class Row(NamedTuple):
    """One step as a linear combination.

    Attributes:
        state: $r$, the weight of the state.
        data: $p_j$, weights of the data predictions, newest first.
        noise: $q_j$, weights of the noise predictions, newest first.
        std: Standard deviation of the fresh noise.
    """

    state: float
    data: Sequence[float] = ()
    noise: Sequence[float] = ()
    std: float = 0.0


class Multistep(Solver):
    """A multistep method. A subclass writes `memory` and `row`. One evaluation per step."""

    needs = GaussianReverseSDE

    @property
    @abstractmethod
    def memory(self) -> int:
        """How many predictions a step uses at most, the new one included."""

    @abstractmethod
    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        """The weights of one step.

        Args:
            past: Levels of the known predictions, newest first: the level of the state, then those before it.
            s: Level to reach.
            level: Looks up the level at a half log-SNR, for methods that integrate the schedule itself.
        """

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        """Computes the rows of a chain of steps: what a method cannot do is refused here, before any evaluation."""
        past: list[Level] = []
        reached: float | None = None
        for t, s in intervals:
            past = [eq.level(t), *(past if t == reached else ())][: self.memory]
            self._row(eq, past, eq.level(s))
            reached = s

    def _row(self, eq: GaussianReverseSDE, past: Sequence[Level], s: Level) -> Row:
        """The row of a step, computed once per sampler."""
        key = (self, s.t, *(at.t for at in past))
        row = eq.tables.rows.get(key)
        if row is None:
            row = eq.tables.rows[key] = self.row(past, s, eq.level_at_lam)
        return row

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: History | None, noise: NoiseSource
    ) -> tuple[Tensor, History]:
        past = (state or ())[: self.memory - 1]
        r, data, eps, std = self._row(eq, [t, *(at for at, _ in past)], s)
        now = eq.denoise(x, t)
        x = now.combine(r * t.alpha + data[0] if data else r * t.alpha, r * t.sigma + eps[0] if eps else r * t.sigma)
        for j, (_, before) in enumerate(past, 1):
            before.add_to(x, data[j] if j < len(data) else 0.0, eps[j] if j < len(eps) else 0.0)
        if std:
            x.add_(noise(t.t, s.t), alpha=std)
        return x, ((t, now), *past)


def lagrange_integrals(nodes: tuple[float, ...], a: float, b: float, kappa: float = 0.0) -> tuple[float, ...]:
    r"""$\int_a^b e^{\kappa(w - b)}\,\ell_j(w)\,dw$ for the Lagrange basis on `nodes`."""
    w = a + (b - a) * _NODES
    return weighted_integrals(nodes, w, np.exp(kappa * (w - b)) * ((b - a) * _WEIGHTS))


def weighted_integrals(nodes: Sequence[float], w: np.ndarray, mass: np.ndarray) -> tuple[float, ...]:
    """`sum_i mass_i l_j(w_i)` for the Lagrange basis on `nodes`, in product form."""
    at, local = np.asarray(nodes), w - nodes[0]
    at = at - nodes[0]
    integrals = []
    for j in range(len(at)):
        others = np.delete(at, j)
        basis = np.prod((local[:, None] - others) / (at[j] - others), axis=1)
        integrals.append(float(mass @ basis))
    return tuple(integrals)


def quadrature_times(t: float, s: float) -> list[float]:
    """The quadrature nodes over a step."""
    return [t + (s - t) * float(u) for u in _NODES]


def quadrature_mass(t: float, s: float, density: Sequence[float]) -> np.ndarray:
    """Quadrature weights over a step for a density given at `quadrature_times`."""
    mass: np.ndarray = (s - t) * _WEIGHTS * np.asarray(density)
    return mass
