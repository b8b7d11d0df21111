r"""A mean over many rows from a rough value of each, and finer values of few: the multilevel Monte Carlo method.

Level $l$ values a row with an error that falls, and at a cost $c_l$ that grows. With the rows in random order, all $N$
at level 0 and the first $n_1 \ge n_2 \ge \dots \ge n_L$ at the finer ones,

$$ \hat\mu = \frac1N\sum_{i \le N} Q_0(i) + \sum_{l=1}^L \frac1{n_l}\sum_{i \le n_l} D_l(i), \quad
   D_l = Q_l - Q_{l-1} $$

is an unbiased estimate of the mean of $Q_L$ over the rows. As the rows of a level are among those of the level before,
no value is found twice, and with $C_{lm}$ the covariance of $D_l$ and $D_m$ over the rows

$$ \mathrm{Var}\,\hat\mu = \sum_{l \ge 1}\Big(C_{ll} + 2\sum_{m > l}C_{lm}\Big)\Big(\frac1{n_l} - \frac1N\Big) $$

It is least for a given cost at about $n_l \propto \sqrt{C_{ll}/c_l}$. The first difference is predicted from what is
known of all rows, by a ridge regression on readings of the rough solve, and only what is left of it is sampled. Each
fifth of the rows is predicted from the other four, which leaves the estimate unbiased.

References: Giles, Multilevel Monte Carlo Methods, 2015; Särndal et al., Model Assisted Survey Sampling, 1992 (Chapter
6); Chernozhukov et al., Double/debiased machine learning, 2018 (cross-fitting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

PILOT = 16
"""Rows that are weighed at every level before it is decided how many more are."""
FOLDS = 5
"""Parts of the rows, of which each is predicted from the others."""
ROWS_PER_READING = 8
"""Rows of the first difference that a regression wants for each reading; with fewer there is none."""
RIDGE = 1e-2
"""Penalty on the squared coefficients of readings of unit variance, for each row."""


class Estimated(NamedTuple):
    """The mean of the finest level, and how well it is known.

    Attributes:
        value: The estimate.
        variance: Its variance over the choice of rows.
        last: The mean of the last difference.
        last_variance: Its variance.
        spread: The variance of the values over the rows.
    """

    value: float
    variance: float
    last: float
    last_variance: float
    spread: float


@dataclass
class Telescope:
    """Values of rows at several levels, found as they are needed.

    Args:
        solve: The values at level `l` of the rows from `i` to `j` in their random order, `(j - i,)`.
        rough: The values of all rows at level 0, `(N,)`, in that order.
        readings: What else the rough solve tells of each, `(N, p)`.
        costs: What a row costs at each level.
    """

    solve: Callable[[int, int, int], Tensor]
    rough: Tensor
    readings: Tensor
    costs: Sequence[int]

    def __post_init__(self) -> None:
        self.values = [self.rough, *(self.rough[:0] for _ in self.costs[1:])]
        centred = self.readings - self.readings.mean(0)
        scale = centred.square().mean(0).sqrt()
        told = scale > 1e-9 * self.readings.abs().amax(0)  # a reading that is the same in all rows tells nothing
        self.readings = centred[:, told] / scale[told]

    @property
    def rows(self) -> list[int]:
        """The number of rows at each level."""
        return [len(v) for v in self.values]

    @property
    def spent(self) -> int:
        """The cost so far."""
        return sum(n * c for n, c in zip(self.rows, self.costs, strict=True))

    def extend(self, rows: Sequence[int]) -> None:
        """Finds values until each finer level has so many rows; those of a level are never more than of the last."""
        for level, n in enumerate(rows, start=1):
            have = len(self.values[level])
            if n > have:
                self.values[level] = torch.cat([self.values[level], self.solve(level, have, n)])

    def spend(self, budget: float) -> None:
        """Weighs rows for a cost in all: a pilot at every level, then as many as are best by what it tells."""
        self.extend([PILOT] * (len(self.costs) - 1))
        for share in (0.5, 1.0):  # what is left of a prediction takes more rows than a pilot to be known
            self.extend(self.allocate(self.spent + share * (budget - self.spent)))

    def allocate(self, budget: float) -> list[int]:
        r"""The best numbers of rows at the finer levels for a cost in all, $n_l \propto \sqrt{C_{ll}/c_l}$."""
        costs = self.costs[1:]
        weights = [math.sqrt(float(d.var()) / c) for d, c in zip(self._differences()[0], costs, strict=True)]
        if not max(weights) > 0:
            return self.rows[1:]
        low, high = 0.0, (len(self.rough) + 1) / min(w for w in weights if w > 0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            spent = sum(n * c for n, c in zip(self._numbers(weights, middle), costs, strict=True))
            low, high = (middle, high) if spent + self.costs[0] * len(self.rough) <= budget else (low, middle)
        return self._numbers(weights, low)

    def _numbers(self, weights: Sequence[float], scale: float) -> list[int]:
        """Numbers of rows in these proportions: not fewer than there are, nor than on a finer level, nor above all."""
        found: list[int] = []
        for weight, have in zip(reversed(weights), reversed(self.rows[1:]), strict=True):
            found.append(max(have, min(len(self.rough), int(scale * weight)), *found[-1:]))
        return found[::-1]

    @property
    def _least(self) -> int:
        """Rows of the first difference from which on it is predicted."""
        return max(ROWS_PER_READING * self.readings.shape[1], 2 * FOLDS)

    def _differences(self) -> tuple[list[Tensor], float]:
        """The differences of the levels, the first without what was predicted, and the mean of the first."""
        found = [b - a[: len(b)] for a, b in pairwise(self.values)]
        if len(found[0]) < self._least:
            return found, float(found[0].mean())
        found[0], mean = cross_fitted(self.readings, found[0])
        return found, mean

    def estimate(self) -> Estimated:
        """The mean of the finest level over all rows."""
        n, p = len(self.rough), self.readings.shape[1]
        differences, first = self._differences()
        value = float(self.rough.mean()) + first + sum(float(d.mean()) for d in differences[1:])
        variance = 0.0
        for i, a in enumerate(differences):
            total = sum((2 - (a is b)) * covariance(a, b) for b in differences[i:])
            predicted = i == 0 and p > 0 and len(a) >= self._least
            fitted = 1 + p / len(a) if predicted else 1.0  # what p fitted coefficients leave open
            variance += total * (1 / len(a) - 1 / n) * fitted
        finer = self.values[1]
        spread = float(self.rough.var()) + float(finer.var() - self.rough[: len(finer)].var())
        last = differences[-1]
        last_mean = first if len(differences) == 1 else float(last.mean())
        return Estimated(
            value, max(variance, 0.0), last_mean, float(last.var()) * (1 / len(last) - 1 / n), max(spread, 0.0)
        )


def covariance(a: Tensor, b: Tensor) -> float:
    """The covariance of two differences over the rows that have both."""
    a = a[: len(b)]
    return float(((a - a.mean()) * (b - b.mean())).sum()) / (len(b) - 1)


def cross_fitted(readings: Tensor, difference: Tensor) -> tuple[Tensor, float]:
    r"""What readings do not predict of a difference known in the first `n` rows, `(n,)`, and its mean over all `N`.

    For each fold $F$ of the $n$ rows, with the others as $T$ and a prediction $f$ fitted to them,

    $$ \frac1N\Big[\sum_{i \in T}D(i) + \sum_{i \notin T}f(i) + \frac{N - |T|}{|F|}\sum_{i \in F}(D - f)(i)\Big] $$

    is unbiased, as $F$ is a random part of the rows that are not in $T$. The answer is the mean over the folds.

    Args:
        readings: Centred and of unit variance, `(N, p)`.
        difference: Of the first rows, `(n,)`.
    """
    n, p = len(difference), readings.shape[1]
    known = torch.cat([torch.ones_like(readings[:n, :1]), readings[:n]], dim=1)
    total = torch.cat([readings.new_full((1,), len(readings)), readings.sum(0)])
    penalty = RIDGE * torch.diag(torch.cat([readings.new_zeros(1), readings.new_ones(p)]))
    fold = torch.arange(n, device=readings.device) % FOLDS
    left, mean = torch.empty_like(difference), 0.0
    for k in range(FOLDS):
        own, others = fold == k, fold != k
        a, d = known[others], difference[others]
        beta = torch.linalg.solve(a.mT @ a + len(a) * penalty, a.mT @ d)
        left[own] = difference[own] - known[own] @ beta
        outside = (total - a.sum(0)) @ beta + (len(readings) - len(a)) * left[own].mean()
        mean += float(d.sum() + outside) / len(readings) / FOLDS
    return left, mean
