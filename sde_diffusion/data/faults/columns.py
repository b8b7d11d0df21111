"""The moments and the range of each column of data, and whether other data are in the same units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OUTSIDE = 0.2
"""The part of the numbers of a column outside of the range of other data from which it is in other units."""
NARROW, MANY, LIGHT = 10.0, 20, 12.0
"""By which factor its spread is less than theirs then; of how many numbers that can be said, where theirs lie within so
many standard deviations."""


class Columns:
    """Mean, standard deviation and range of each column, by chunks, NaN left out; in float64.

    Args:
        among: Other data, of whose range it is counted how many numbers lie outside.
    """

    def __init__(self, among: Columns | None = None) -> None:
        self.count: Tensor | None = None
        self.among = None if among is None or among.count is None else among
        self.outside: Tensor | float = 0.0
        self.rows = 0
        self.event = 0

    def add(self, x: Tensor) -> None:
        """Takes more rows in, shape `(B, *)`, a column being an entry of the first axis of a row."""
        self.rows, self.event = self.rows + len(x), x.ndim
        wide = x.detach().double()
        flat = (wide[:, None] if x.ndim == 1 else wide.transpose(0, 1)).reshape(1 if x.ndim == 1 else x.shape[1], -1)
        if self.among is not None and self.among.low.shape == flat.shape[:1]:
            low, high = self.among.low[:, None], self.among.high[:, None]
            self.outside = self.outside + ((flat < low) | (flat > high)).sum(1).double()
        if math.isfinite(x.sum().item()):  # none is NaN: a third of the time
            count = torch.full((len(flat),), float(flat.shape[1]), dtype=torch.float64, device=flat.device)
            variance, mean = torch.var_mean(flat, 1, correction=0)
            self._join(count, mean, variance * count, flat.amin(1), flat.amax(1))
            return
        known = ~flat.isnan()
        count, zero = known.sum(1).double(), torch.zeros((), dtype=torch.float64, device=flat.device)
        mean = torch.where(known, flat, zero).sum(1) / count.clamp_min(1)
        square = torch.where(known, flat - mean[:, None], zero).square().sum(1)
        low = torch.where(known, flat, zero + math.inf).amin(1)
        high = torch.where(known, flat, zero - math.inf).amax(1)
        self._join(count, mean, square, low, high)

    def _join(self, count: Tensor, mean: Tensor, square: Tensor, low: Tensor, high: Tensor) -> None:
        """Takes the moments of more rows in."""
        if self.count is None:
            self.count, self.mean, self.square, self.low, self.high = count, mean, square, low, high
            return
        total = self.count + count
        shift = mean - self.mean
        self.square = self.square + square + shift.square() * self.count * count / total.clamp_min(1)
        self.mean = self.mean + shift * count / total.clamp_min(1)
        self.count, self.low, self.high = total, torch.minimum(self.low, low), torch.maximum(self.high, high)

    def found(self) -> tuple[list[float], list[float], list[bool]]:
        """The means, the standard deviations, and which columns are constant."""
        if self.count is None:
            return [], [], []
        stds = (self.square / self.count.clamp_min(1)).sqrt()
        return self.mean.tolist(), stds.tolist(), (self.low >= self.high).tolist()

    @property
    def unknown(self) -> set[int]:
        """Columns of a table with numbers that are NaN."""
        return set() if self.count is None else {i for i, n in enumerate(self.count.tolist()) if n < self.rows}

    @property
    def single(self) -> bool:
        """Whether a column has one number, and no spread."""
        return self.count is None or float(self.count.max()) <= 1

    def strange(self) -> tuple[int, float] | None:
        """The first column that is not in the units of the other data, and which part of its numbers lies outside.

        A fifth of them do, beyond what chance has in few rows; or many have a tenth of the others' spread, where
        theirs is not that of a few outliers.
        """
        others = self.among
        if others is None or others.count is None or self.count is None or others.single:
            return None
        outside = torch.zeros_like(self.count) + self.outside
        chance = 2 * self.count / (others.count + 1)
        most = OUTSIDE * self.count + 1 + chance + 4 * chance.sqrt()
        std, wide = ((each.square / n.clamp_min(1)).sqrt() for each, n in ((self, self.count), (others, others.count)))
        light = others.high - others.low < LIGHT * wide
        narrow = light & (std * NARROW < wide) & (std > 0) & (self.count >= MANY)
        off = ((outside > most) | narrow).nonzero()
        if not len(off):
            return None
        i = int(off[0, 0])
        return i, float(outside[i] / self.count[i].clamp_min(1))
