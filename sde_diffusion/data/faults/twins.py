"""Columns that follow from others: together they have no density, and a model of them gains without end."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 1024
"""Columns above which none are compared."""
CLOSE, EXACT = 1e-3, 1e-6
"""What is left of a column beside another, in standard deviations: below the least noise of a training; rounding."""
DEPENDENT = 256
"""Columns above which only pairs are looked at."""


class Pair(NamedTuple):
    """Column `j` is `slope * column i + shift`, but for `left` of its standard deviations."""

    i: int
    j: int
    slope: float
    shift: float
    left: float


class Twins:
    """The covariance of the columns, `(D, M)` values at a time."""

    def __init__(self) -> None:
        self.n = 0

    def add(self, columns: Tensor) -> None:
        """Takes more values in, float64."""
        if columns.shape[0] > MOST or columns.shape[0] < 2:
            return
        mean = columns.mean(1)
        centred = columns - mean[:, None]
        square, n = centred @ centred.T, columns.shape[1]
        if not self.n:
            self.n, self.mean, self.square = n, mean, square
            return
        shift, total = mean - self.mean, self.n + n
        self.square = self.square + square + torch.outer(shift, shift) * (self.n * n / total)
        self.mean, self.n = self.mean + shift * (n / total), total

    def pairs(self, leaving: set[int]) -> list[Pair]:
        """The columns that are one another's image under a straight line, each once; some columns left out."""
        r = self._correlation(leaving)
        if r is None:
            return []
        near = (1 - r.square() < CLOSE**2).triu(1).nonzero().tolist()
        found: dict[int, Pair] = {}
        for i, j in near:
            if i not in found and j not in found:
                slope = float(self.square[i, j] / self.square[i, i])
                left = math.sqrt(max(0.0, 1 - float(r[i, j]) ** 2))
                found[j] = Pair(i, j, slope, float(self.mean[j] - slope * self.mean[i]), left)
        return list(found.values())

    def dependent(self, leaving: set[int]) -> list[int]:
        """Columns of which one is a sum of multiples of the others, the most telling first; empty without."""
        r = self._correlation(leaving)
        if r is None or len(r) > DEPENDENT:
            return []
        keep = [i for i in range(len(r)) if i not in leaving and float(self.square[i, i]) > 0]
        if len(keep) < 3:
            return []
        values, vectors = torch.linalg.eigh(r[keep][:, keep])
        if float(values[0]) > EXACT**2:
            return []
        weight = vectors[:, 0].abs()
        return [keep[k] for k in weight.argsort(descending=True).tolist() if float(weight[k]) > 1e-3]

    def _correlation(self, leaving: set[int]) -> Tensor | None:
        """`(D, D)`, zero for columns that are left out or constant; None where the rows are too few to tell."""
        if not self.n or self.n < max(20, 4 * len(self.square)):
            return None
        size = self.square.diagonal().sqrt()
        size[[*leaving]] = 0.0
        inverse = torch.where(size > 0, 1 / size, 0.0)
        return (self.square * torch.outer(inverse, inverse)).nan_to_num(0.0, 0.0, 0.0)
