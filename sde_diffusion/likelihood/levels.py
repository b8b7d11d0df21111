r"""A mean over many rows from a rough value of each, and finer values of few: the multilevel Monte Carlo method.

Level $l$ values a row with an error that falls, and at a cost $c_l$ that grows. Level 0 values all $N$ rows, $S_0$, and
a finer one a random part $S_l$ of the rows $S_{l-1}$ of the level before. With $P_l(i)$ the chance of row $i$ to be in
$S_l$, and $f_l$ a prediction of the difference $D_l = Q_l - Q_{l-1}$ from what is known of all of $S_{l-1}$,

$$ \hat\mu = \frac1N\Big[\sum_{i \le N} Q_0(i) + \sum_{l=1}^L\Big(\sum_{i \in S_{l-1}}\frac{f_l(i)}{P_{l-1}(i)}
   + \sum_{i \in S_l}\frac{(D_l - f_l)(i)}{P_l(i)}\Big)\Big] $$

estimates the mean of $Q_L$ over the rows. Chances are *unequal*, as rare rows may hold most of a difference: at level 1
they grow with how far a row's readings by the rough solve are from the others', later with the difference before. The
$n$ rows of a level are those of the least $u_i/a_i$, with sizes $a_i$ and $u_i$ uniform, and with $\tau$ the value that
is next, $q_i = \min(1, a_i\tau)$ is the chance of row $i$ given the others (priority sampling): rows of great size are
taken for certain. Inclusions are uncorrelated, and the variance of a level is

$$ V_l = \frac1{N^2}\sum_{i \in S_l}\frac{(1 - q_i)(D_l - f_l)(i)^2}{P_l(i)^2} $$

plus what the finer differences add by the same draw. It is taken to be no less than what $D_l = \tfrac12\kappa D_{l-1}$
would have, with $\kappa = (s_{l-2}/s_{l-1})^2$ the theory of order two: few rows without a rare one would tell of none.

References: Giles, Multilevel Monte Carlo Methods, 2015; Duffield, Lund & Thorup, Priority sampling for estimation of
arbitrary subset sums, 2007; Särndal et al., Model Assisted Survey Sampling, 1992 (Chapters 6 and 9); Chernozhukov et
al., Double/debiased machine learning, 2018 (cross-fitting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.likelihood.draws import FOLDS, Drawn, Predicted, draw, predicted, sizes_by_readings, standardised

PILOT = 16
"""The least number of rows at a finer level."""
FLOOR = 1.0
"""Added to the sizes of rows by their difference before, in means of it."""
LEAST = 0.5
"""Part of what the theory of order two expects of a difference that its variance is held to."""
SAFETY = 2.0
"""Rows of a level over those that the theory of order two would give it, before it is known."""


class Estimated(NamedTuple):
    """The mean of the finest level, and how well it is known.

    Attributes:
        value: The estimate.
        variance: Its variance over the choice of rows.
        freedom: Degrees of freedom of that variance, by the fourth moments: few where few rows hold most of it.
        sizes: The mean absolute values of the differences, in which rows do not cancel.
        last_variance: The variance of the mean of that difference.
        spread: The variance of the values over the rows.
    """

    value: float
    variance: float
    freedom: float
    sizes: list[float]
    last_variance: float
    spread: float

    def rest(self, steps: Sequence[int]) -> float:
        r"""What is left beyond the finest level, $(\overline{|D_L|} + \mathrm{se})/(r^p - 1)$ with $r$ the last ratio
        of steps, and $p$ the order by which the last two differences fell, from 1 to 2, or 1 for one; at least a third.
        """
        order, ratio = 1.0, steps[-1] / steps[-2]
        if len(self.sizes) > 1 and min(self.sizes[-2:]) > 0:
            fell = math.log(self.sizes[-2] / self.sizes[-1]) / math.log(steps[-2] / steps[-3])
            order = min(2.0, max(1.0, fell))
        return (self.sizes[-1] + math.sqrt(self.last_variance)) / min(3.0, ratio**order - 1)


@dataclass
class Telescope:
    r"""Values of rows at several levels, found as they are needed.

    Args:
        solve: The values at level `l` of rows by their numbers, `(n,)`.
        rough: The values of all rows at level 0, `(N,)`.
        readings: What else the rough solve tells of each, `(N, p)`.
        costs: What a row costs at each level.
        chance: Uniform numbers, `(L, N)`, a row for each finer level.
        ratios: $\kappa$, what the theory says of a difference over the one before, for each level after the first two.
    """

    solve: Callable[[int, list[int]], Tensor]
    rough: Tensor
    readings: Tensor
    costs: Sequence[int]
    chance: Tensor
    ratios: Sequence[float]

    def __post_init__(self) -> None:
        n = len(self.rough)
        self.values = [self.rough, *(torch.full_like(self.rough, math.nan) for _ in self.costs[1:])]
        far, self.readings = standardised(self.readings)
        self.drawn = [Drawn.all(n, self.rough)]
        self.fold = (self.chance * 2**20).long() % FOLDS  # digits that do not decide who is drawn
        self.sizes = sizes_by_readings(far, self.readings)

    @property
    def rows(self) -> list[int]:
        """The number of rows that were valued at each level."""
        return [int((~v.isnan()).sum()) for v in self.values]

    @property
    def spent(self) -> int:
        """The cost so far."""
        return sum(n * c for n, c in zip(self.rows, self.costs, strict=True))

    def spend(self, budget: float) -> None:
        """Values rows for a cost in all: half of it by the theory, if that is more than a pilot, then as many as are
        best by what they tell.
        """
        numbers = self.allocate(self._foreseen(), 0.5 * (budget + self.spent))
        if min(numbers) == PILOT:  # another part of more rows would have to be paid for anew
            self.draw(self.allocate(self._foreseen(), budget), budget)
            return
        self.draw(numbers, budget)
        self.draw(self.allocate(self._found(), budget), budget)

    def draw(self, numbers: Sequence[int], budget: float) -> None:
        """Draws so many rows at each finer level, fewer where they cost too much, and values those that are new."""
        self.drawn = self.drawn[:1]
        for level, n in enumerate(numbers, start=1):
            before, cost = self.drawn[-1], self.costs[level]
            sizes = self.sizes if level == 1 else self._sizes_by_difference(level - 1, before)
            chance = self.chance[level - 1][before.rows]
            order = (chance / sizes).argsort(stable=True)
            new = self.values[level][before.rows[order]].isnan().cumsum(0)
            later = PILOT * sum(self.costs[level + 1 :])
            afforded = int((new * cost <= budget - self.spent - later).sum())
            now = draw(before, sizes, chance, max(min(n, afforded), min(PILOT, len(before.rows))))
            unknown = now.rows[self.values[level][now.rows].isnan()]
            if len(unknown):
                self.values[level][unknown] = self.solve(level, unknown.tolist())
            self.drawn.append(now)

    def _sizes_by_difference(self, level: int, before: Drawn) -> Tensor:
        """Sizes of the rows of a level by their difference, and by what each stands for."""
        difference = self._difference(level, before.rows).abs()
        mean = float((difference / before.chance).sum() / (1 / before.chance).sum())
        if not mean > 0:
            return 1 / before.chance
        return (difference / mean + FLOOR) / before.chance

    def _difference(self, level: int, rows: Tensor) -> Tensor:
        """The differences of a level at these rows."""
        return self.values[level][rows] - self.values[level - 1][rows]

    def allocate(self, weights: Sequence[float], budget: float) -> list[int]:
        r"""The best numbers of rows at the finer levels for a cost in all, in proportion to $\sqrt{V_l n_l/c_l}$."""
        costs = self.costs[1:]
        low, high = 0.0, (len(self.rough) + 1) / min(w for w in weights if w > 0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            spent = sum(n * c for n, c in zip(self._numbers(weights, middle), costs, strict=True))
            low, high = (middle, high) if spent + self.costs[0] * len(self.rough) <= budget else (low, middle)
        return self._numbers(weights, low)

    def _numbers(self, weights: Sequence[float], scale: float) -> list[int]:
        """Numbers of rows in these proportions: not fewer than a pilot, nor than on a finer level, nor above all."""
        found: list[int] = []
        for weight in reversed(weights):
            found.append(min(len(self.rough), max(PILOT, int(scale * weight), *found[-1:])))
        return found[::-1]

    def _foreseen(self) -> list[float]:
        """Proportions of rows before any is known."""
        found = [1.0]
        for ratio, (a, b) in zip(self.ratios, pairwise(self.costs[1:]), strict=True):
            found.append(found[-1] * min(1.0, SAFETY * ratio * math.sqrt(a / b)))
        return found

    def _found(self) -> list[float]:
        """Proportions of rows by the variance that each of them adds."""
        variances, found = [v.variance for v in self._levels()], []
        for v, drawn, c in zip(variances, self.drawn[1:], self.costs[1:], strict=True):
            found.append(math.sqrt(v * len(drawn.rows) / c))
        return found if max(found) > 0 else self._foreseen()

    def _levels(self) -> list[Predicted]:
        """The means of the differences and what is left of each."""
        found: list[Predicted] = []
        for level, (before, now) in enumerate(pairwise(self.drawn), start=1):
            if level == 1:
                known = self.readings
            else:
                difference = self._difference(level - 1, before.rows)
                known = standardised(difference[:, None])[1]
            fold = self.fold[level - 1][before.rows]
            left = predicted(known, self._difference(level, now.rows), before, now, fold, len(self.rough))
            if level > 1:
                least = LEAST * self.ratios[level - 2] * found[-1].left / before.chance / len(self.rough)
                floor = float(((1 / now.offered - 1) * least.square()).sum())
                left = left._replace(variance=max(left.variance, floor))
            found.append(left)
        return found

    def estimate(self) -> Estimated:
        """The mean of the finest level over all rows."""
        levels, n = self._levels(), len(self.rough)
        value = float(self.rough.mean()) + sum(v.mean for v in levels)
        variances = []
        for i, (own, drawn) in enumerate(zip(levels, self.drawn[1:], strict=True)):
            variance = own.variance
            for later, finer in zip(levels[i + 1 :], self.drawn[i + 2 :], strict=True):
                at = torch.searchsorted(drawn.rows, finer.rows)
                weight = ((1 - drawn.given[at]) / (drawn.chance[at] * finer.chance)).sqrt()
                share, both = weight * later.left, weight * own.left[at]
                variance += float(share.square().sum() + 2 * (share * both).sum().clamp_min(0)) / n**2
            variances.append(variance)
        total = sum(variances)
        lost = sum(v**2 / w.freedom for v, w in zip(variances, levels, strict=True))
        sizes = [
            float((self._difference(level, now.rows).abs() / now.chance).sum()) / n
            for level, now in enumerate(self.drawn[1:], start=1)
        ]
        freedom = total**2 / lost if lost > 0 else math.inf
        return Estimated(value, total, freedom, sizes, levels[-1].variance, self._spread())

    def _spread(self) -> float:
        """The variance over the rows of the values at level 1: that at level 0, and how the rows drawn differ."""
        one = self.drawn[1]
        weights = 1 / one.chance / (1 / one.chance).sum()
        found = float(self.rough.var())
        for each, sign in ((self.values[1][one.rows], 1), (self.rough[one.rows], -1)):
            found += sign * float((weights * (each - (weights * each).sum()).square()).sum())
        return max(found, 0.0) if math.isfinite(found) else math.inf
