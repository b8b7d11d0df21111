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

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

from torch import Tensor

from sde_diffusion.denoiser.prediction import Half, Prediction
from sde_diffusion.noise.sources import NoiseSource, Silent
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Interval, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE

ZERO_NOISE = Level(-math.inf, alpha=1.0, sigma=0.0, lam=math.inf)
"""The level of the data themselves, at no time of any grid."""
LevelAt = Callable[[float], Level]
# Weights of the newest prediction, of data and noise, those of the older ones, and the std of the fresh noise; of a
# sampler by the times that determine them: that of the level to reach, then those of the predictions, newest first.
Weights = tuple[float, float, tuple[tuple[float, float], ...], float]


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


class Rows:
    """What the solves by one method have in common.

    Args:
        method: The method.

    Attributes:
        weights: The rows known, by their times.
        keep: How many predictions a step leaves to the next.
        half: Which half of them.
    """

    __slots__ = ("half", "keep", "weights")

    def __init__(self, method: Multistep) -> None:
        self.weights: dict[tuple[float, ...], Weights] = {}
        self.keep, self.half = method.facts.memory - 1, method.half


# The rows, and the times of the predictions kept and they themselves, newest first.
State = tuple[Rows, tuple[float, ...], tuple[Prediction | Half, ...]]


class Multistep(Solver[GaussianReverseSDE, State]):
    """A multistep method on a `GaussianReverseSDE`, one evaluation per step. A subclass writes `row`.

    `facts.memory` is how many predictions a row weighs at most, the new one included.
    """

    @property
    def half(self) -> Literal["data", "noise"] | None:
        """`"data"` or `"noise"` for a method whose rows weigh that half alone; None where they weigh both.

        A method of one half remembers a prediction as one tensor, and not as two.
        """
        return None

    @property
    def log_spaced(self) -> bool:
        facts = self.facts
        return self.half == "data" and facts.memory > 1 and not facts.stochastic

    @abstractmethod
    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        """The weights of one step.

        Args:
            past: Levels of the known predictions, newest first: the level of the state, then those before it.
            s: Level to reach.
            level: Looks up the level at a half log-SNR, for methods that integrate the schedule itself.
        """

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        """Computes the weights of a chain of steps: what a method cannot do is refused here, before any evaluation."""
        rows = self._rows(eq)
        for times in chain(intervals, rows.keep + 1):
            if times not in rows.weights:
                to, *past = (eq.level(time) for time in times)
                rows.weights[times] = self._weights_of(past, to, eq.level_at_lam)

    def _rows(self, eq: GaussianReverseSDE) -> Rows:
        """The rows that solves of an equation share."""
        rows: Rows | None = eq.tables.rows.get(self)
        if rows is None:
            rows = eq.tables.rows[self] = Rows(self)
        return rows

    def _weights_of(self, past: Sequence[Level], s: Level, level: LevelAt) -> Weights:
        r"""A row as weights of data and noise alone: the state is $\alpha$ data + $\sigma$ noise of the newest."""
        r, data, noise, std = self.row(past, s, level)
        if (self.half == "data" and any(noise)) or (self.half == "noise" and any(data)):
            other = "noise" if self.half == "data" else "data"
            raise TypeError(f"{self!r} says half = {self.half!r}, but its row weighs {other} too: set half = None")
        p, q = [*data] or [0.0], [*noise] or [0.0]
        p[0] += r * past[0].alpha
        q[0] += r * past[0].sigma
        return p[0], q[0], tuple(zip_longest(p[1:], q[1:], fillvalue=0.0)), std

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: State | None, noise: NoiseSource
    ) -> tuple[Tensor, State]:
        rows, known, past = state or (self._rows(eq), (), ())
        times, keep = (s.t, t.t, *known), rows.keep
        weights = rows.weights.get(times)
        if weights is None:
            weights = rows.weights[times] = self._weights_of([t, *map(eq.level, known)], s, eq.level_at_lam)
        p, q, others, std = weights
        now = eq.denoise(x, t)
        x = now.combine(p, q)
        for before, (p, q) in zip(past, others, strict=False):
            before.add_to(x, p, q)
        if std:
            x.add_(noise(t.t, s.t), alpha=std)
        if not keep:
            return x, (rows, (), ())
        newest = now.only(rows.half) if rows.half else now
        return x, (rows, times[1 : keep + 1], (newest, *past[: keep - 1]))

    def finish(self, eq: GaussianReverseSDE, x: Tensor, t: Level, state: State | None) -> Tensor:
        if not self.reaches_zero:
            return super().finish(eq, x, t, state)
        return eq.denoiser.admit(self.step(eq, x, t, ZERO_NOISE, state, Silent())[0])


def chain(intervals: Sequence[Interval], memory: int) -> Iterator[tuple[float, ...]]:
    """For each step the time to reach, then those of the evaluations known, newest first: `memory` of them at most."""
    times: tuple[float, ...] = ()
    for t, s in intervals:
        times = (s, t, *(times[1:memory] if times[:1] == (t,) else ()))
        yield times
