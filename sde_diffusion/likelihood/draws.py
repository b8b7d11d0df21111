r"""Rows drawn with unequal chances, and the mean of a number that is known of those that were drawn.

With sizes $a_i$ and $u_i$ uniform on (0, 1), the $n$ rows of the least $u_i/a_i$ are drawn, and $\tau$ is the value
that is next. Given the others, row $i$ is drawn with chance $q_i = \min(1, a_i\tau)$; sums of $y_i/q_i$ over the rows
drawn are unbiased, and two rows are uncorrelated in them (Duffield, Lund & Thorup, 2007).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

FOLDS = 5
"""Parts of the rows, of which each is predicted from the others."""
ROWS_PER_READING = 8
"""Rows that a regression wants for each reading; with fewer a mean is all that it predicts."""
RIDGE = 1e-2
"""Penalty on the squared coefficients of readings of unit variance, for each row."""
MOST = 1 / 4
"""The largest share of all rows that the size of one stands for."""
MANY = 1000
"""Degrees of freedom from which on Student's law is taken for the normal one."""
HUGE = 1e200
"""What stands for a reading beyond all numbers."""
CLIP = 10.0
"""Readings are clipped at so many of their scales from the median: what lies beyond is drawn for certain."""


class Drawn(NamedTuple):
    """Rows that were drawn.

    Attributes:
        rows: Their numbers, rising, `(n,)`.
        given: $q$, the chance of each, given the rows that it was drawn from.
        chance: $P$, the product of these over all draws.
        offered: $q$ of all rows that it was drawn from.
    """

    rows: Tensor
    given: Tensor
    chance: Tensor
    offered: Tensor

    @classmethod
    def all(cls, n: int, like: Tensor) -> Drawn:
        """All of `n` rows."""
        one = torch.ones(n, dtype=like.dtype, device=like.device)
        return cls(torch.arange(n, device=like.device), one, one, one)


def draw(before: Drawn, sizes: Tensor, chance: Tensor, n: int) -> Drawn:
    """The `n` rows of `before` of the least `chance / sizes`, of numbers `chance` uniform on (0, 1)."""
    m = len(before.rows)
    if n >= m:
        return before._replace(given=torch.ones_like(before.given), offered=torch.ones_like(before.given))
    keys = chance / sizes
    order = keys.argsort(stable=True)
    offered = (sizes * keys[order[n]]).clamp_max(1.0)
    own = order[:n].sort().values
    return Drawn(before.rows[own], offered[own], offered[own] * before.chance[own], offered)


class Predicted(NamedTuple):
    """The mean of a difference over all rows, and what was not predicted of it.

    Attributes:
        mean: The estimate of the mean.
        left: What is left of the prediction in the rows drawn, `(n,)`.
        variance: Of the mean, by the last draw.
        freedom: Degrees of freedom of that variance.
    """

    mean: float
    left: Tensor
    variance: float
    freedom: float


def predicted(known: Tensor, difference: Tensor, before: Drawn, now: Drawn, fold: Tensor, total: int) -> Predicted:
    r"""The mean over `total` rows of a difference, from the rows drawn and a prediction for all that they came from.

    Each fold of the rows is predicted by a weighted ridge regression on what is known of the rows drawn of the others.

    Args:
        known: Of all rows before, centred and of unit variance, `(m, p)`.
        difference: Of the rows drawn, `(n,)`.
        before: The rows that they were drawn from.
        now: The rows drawn.
        fold: Of the rows before, `(m,)`, numbers below `FOLDS`.
        total: $N$.
    """
    at = torch.searchsorted(before.rows, now.rows)
    x = torch.cat([torch.ones_like(known[:, :1]), known], dim=1)
    weight = (1 - now.given).sqrt() / now.chance  # of a residual in the error: a row that is certain has none
    left, mean = torch.empty_like(difference), 0.0
    for k in range(FOLDS):
        others, own = fold[at] != k, fold == k
        beta = _fitted(x[at][others], difference[others], weight[others].square())
        mean += float(((x[own] @ beta) / before.chance[own]).sum())
        mine = ~others
        left[mine] = difference[mine] - x[at][mine] @ beta
    mean += float((left / now.chance).sum())
    shares = (weight * left).square()
    return Predicted(mean / total, left, float(shares.sum()) / total**2, freedom(shares))


def _fitted(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Coefficients of a weighted ridge regression, of the first column alone if the rows are few."""
    beta, some = torch.zeros_like(x[0]), int((weight > 0).sum())
    if some == 0:
        return beta
    weight = weight / weight.max()
    p = x.shape[1] if some >= max(ROWS_PER_READING * (x.shape[1] - 1), 2 * FOLDS) else 1
    x = x[:, :p]
    penalty = RIDGE * weight.sum() * torch.diag((torch.arange(p, device=x.device) > 0).to(x.dtype))
    beta[:p] = torch.linalg.solve((x * weight[:, None]).mT @ x + penalty, (x * weight[:, None]).mT @ y)
    return beta


def freedom(shares: Tensor) -> float:
    r"""Degrees of freedom of a variance $\sum c_i$ by its shares, $2(\sum c)^2/(\sum c^2 - (\sum c)^2/m)$, at
    most the number $m$ of shares that are not 0.
    """
    m, total = int((shares > 0).sum()), float(shares.sum())
    if m == 0:
        return math.inf
    scaled = shares / total
    uneven = float(scaled.square().sum()) - 1 / m
    return max(1.0, min(float(m), 2 / uneven if uneven > 0 else math.inf))


def t_quantile(level: float, freedom: float) -> float:
    """The $t$ within which, on both sides of 0, Student's law of some degrees of freedom, rounded down, holds a
    probability.
    """
    if freedom > MANY:
        return NormalDist().inv_cdf(0.5 + 0.5 * level)
    freedom = int(freedom)
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return 0.5 * (low + high)


def _within(t: float, freedom: int) -> float:
    """The probability of $|T| < t$, by its finite series in the angle (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cos if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


def standardised(readings: Tensor) -> tuple[Tensor, Tensor]:
    """How far each row's readings are from the median, `(N,)`, in the mean of their scales; and the readings, clipped,
    centred and of unit variance, without those that are the same in all rows.
    """
    readings = readings.nan_to_num(HUGE, HUGE, -HUGE)
    middle = readings.median(0).values
    away = readings - middle
    scale = 1.4826 * away.abs().median(0).values
    scale = torch.where(scale > 1e-9 * middle.abs(), scale, away.abs().mean(0))
    told = scale > 1e-9 * middle.abs()
    away, scale = away[:, told], scale[told]
    clipped = (away / scale).clamp(-CLIP, CLIP)
    centred = clipped - clipped.mean(0)
    return away.abs().sum(1) / scale.mean(), centred / centred.square().mean(0).sqrt()


def sizes_by_readings(far: Tensor, readings: Tensor) -> Tensor:
    """Sizes of rows by how far their readings are from the others', of each alone and of all together."""
    sizes = torch.ones_like(far)
    if readings.shape[1] == 0:
        return sizes
    u, s, _ = torch.linalg.svd(readings, full_matrices=False)
    leverage = u[:, s > 1e-3 * s[0]].square().sum(1).sqrt()
    for each in (far, leverage):
        sizes = sizes + over_mean(each)
    return sizes


def over_mean(size: Tensor) -> Tensor:
    """Sizes over their mean, of which none counts for more than `MOST` of the rows: outliers do not hide each other."""
    most = MOST * len(size)
    for _ in range(50):
        mean = size.mean()
        if not mean > 0:
            return torch.zeros_like(size)
        size = (size / mean).clamp_max(most)
    return size
