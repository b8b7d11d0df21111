"""Columns of which a few values lie far from all others: one broken row, or a number that stands for "missing".

Of every column the least and the greatest few distinct values are kept apart, with how often they come; the others, the
bulk, have a spread of their own, which no value that is far off has a part in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

APART = 5
"""Distinct values that are kept apart at either end."""
FEW, BULK = 30, 20
"""Values of a column, and of its bulk, below which none is far from the others."""
MANY = 200
"""Values of a column below which a few carry it by chance, where its tails are heavy."""
REPEATED = 3
"""How often a value that is far from the others has to come to be taken for a mark."""
CARRIED, SPOILT = 0.1, 1e-3
"""Spread of the bulk, over that of all values, below which the others carry the column; and below which nothing is left
of the bulk, which is then within the least noise of a training."""
CODES = 0.5
"""How far a number written in nines, such as -999, lies from the bulk at least, over its spread, to be a mark."""


class Value(NamedTuple):
    """A value of a column: how often it was met, and the first row that holds it."""

    value: float
    times: int
    row: int


class Found(NamedTuple):
    """What is far off in a column.

    Attributes:
        far: Values far from the bulk, those that come most often first.
        low, high: Between which the bulk lies.
        share: Its spread over that of all.
    """

    far: list[Value]
    low: float
    high: float
    share: float


class Extremes:
    """The ends and the bulk of each column, `(D, M)` values at a time."""

    def __init__(self) -> None:
        self.ends: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.seen = 0

    def add(self, columns: Tensor, stride: int, per_row: int = 1) -> None:
        """Takes more values in.

        Args:
            columns: `(D, M)`, float64, NaN left out.
            stride: The bulk is measured on every so many-th of them; the least and greatest are of all.
            per_row: How many values of a column a row has.
        """
        known = None if math.isfinite(columns.sum().item()) else ~columns.isnan()
        some = columns[:, ::stride]
        left = some.isfinite() if known is None else known[:, ::stride]
        ends = []
        for sign in (1.0, -1.0):
            work = torch.where(left, sign * some, math.inf)
            ends.append(_ends(work, stride, self.seen, per_row, _least(columns, known, sign, stride)))
            left = left & work.isfinite()  # what is taken away is infinite there
        whole, bulk = _Moments.of(columns, known), _Moments.of(some, left)
        if self.ends is None:
            self.ends, self.whole, self.bulk = [], whole, bulk
            joined = ends
        else:
            self.whole, self.bulk = self.whole + whole, self.bulk + bulk
            sides = zip(self.ends, ends, strict=True)
            joined = [_sorted([torch.cat(pair) for pair in zip(*both, strict=True)]) for both in sides]
        self.ends = []
        for sign, (value, count, row) in zip((1.0, -1.0), joined, strict=True):
            self.ends.append((value[:APART], count[:APART], row[:APART]))
            for v, n in zip(value[APART:], count[APART:], strict=True):  # back to the bulk
                self.bulk = self.bulk + _Moments.of_one(sign * v, n)
        self.seen += columns.shape[1]

    @property
    def range(self) -> tuple[list[float], list[float]]:
        """The least and the greatest value of each column."""
        return ([], []) if self.ends is None else (self.whole.low.tolist(), self.whole.high.tolist())

    def found(self) -> dict[int, Found]:
        """What is far off, by column."""
        if self.ends is None or self.seen < FEW:
            return {}
        whole, bulk = self.whole.std.tolist(), self.bulk.std.tolist()
        count, low, high = self.bulk.n.tolist(), self.bulk.low.tolist(), self.bulk.high.tolist()
        found = {}
        for i, all_of in enumerate(whole):
            below, above = (self._end(side, i) for side in (0, 1))
            if not count[i]:
                one = _alone([*below, *above])
            else:
                share = bulk[i] / all_of if all_of > 0 else 1.0
                marks, others = _far(below, above, low[i], high[i], bulk[i])
                carried = 0 < share < (CARRIED if self.seen >= MANY else SPOILT)
                far = marks or (others if carried else [])
                far = far if count[i] >= BULK else []
                one = Found(far, low[i], high[i], share) if far else None
            if one is not None:
                found[i] = one
        return found

    def _end(self, side: int, i: int) -> list[Value]:
        """The values at an end of a column, the outermost first."""
        value, count, row = ((part[:, i]).tolist() for part in (self.ends or [])[side])
        sign = -1.0 if side else 1.0
        return [Value(sign * v, max(n, 1), r) for v, n, r in zip(value, count, row, strict=True) if v < math.inf]


class _Moments(NamedTuple):
    """Number, mean, sum of squares about it, least and greatest of each column, `(D,)`."""

    n: Tensor
    mean: Tensor
    square: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, columns: Tensor, which: Tensor | None) -> _Moments:
        if which is None:
            n = torch.full_like(columns[:, 0], columns.shape[1])
            variance, mean = torch.var_mean(columns, 1, correction=0)
            return cls(n, mean, variance * n, columns.amin(1), columns.amax(1))
        n = which.sum(1).double()
        mean = torch.where(which, columns, 0.0).sum(1) / n.clamp(min=1)
        square = torch.where(which, columns - mean[:, None], 0.0).square().sum(1)
        low, high = torch.where(which, columns, math.inf).amin(1), torch.where(which, columns, -math.inf).amax(1)
        return cls(n, mean, square, low, high)

    @classmethod
    def of_one(cls, value: Tensor, n: Tensor) -> _Moments:
        """Those of one value that comes `n` times, or not at all."""
        there, n = n > 0, n.double()
        low, high = torch.where(there, value, math.inf), torch.where(there, value, -math.inf)
        return cls(n, torch.where(there, value, 0.0), torch.zeros_like(n), low, high)

    def __add__(self, other: _Moments) -> _Moments:  # type: ignore[override]  # those of both, and no longer tuple
        n = self.n + other.n
        shift, part = other.mean - self.mean, other.n / n.clamp(min=1)
        return _Moments(
            n,
            self.mean + shift * part,
            self.square + other.square + shift.square() * self.n * part,
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    @property
    def std(self) -> Tensor:
        return (self.square / self.n.clamp(min=1)).sqrt()


def _least(columns: Tensor, known: Tensor | None, sign: float, stride: int) -> tuple[Tensor, Tensor] | None:
    """The least value of each column and its place, where it may lie between those that are looked at."""
    if stride == 1:
        return None
    if known is None:
        found = columns.min(1) if sign > 0 else columns.max(1)
        return sign * found.values, found.indices
    found = torch.where(known, sign * columns, math.inf).min(1)
    return found.values, found.indices


def _ends(
    work: Tensor, stride: int, first: int, per_row: int, least: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The least distinct values of `(D, m)`, how often they come and in which row, `(APART, D)`; takes them away."""
    values, counts, rows = [], [], []
    for _ in range(APART):
        value = work.amin(1)
        hit = work == value[:, None]
        values.append(value)
        counts.append(torch.where(value < math.inf, hit.sum(1), 0))
        rows.append((first + stride * hit.byte().argmax(1)) // per_row)
        work.masked_fill_(hit, math.inf)
    if least is not None:  # met once more, in full
        values, counts = [least[0], *values], [torch.zeros_like(counts[0]), *counts]
        rows = [(first + least[1]) // per_row, *rows]
    return _sorted([torch.stack(each) for each in (values, counts, rows)])


def _sorted(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Values in order, each once, with all of its counts and its first row; infinite where there are no more."""
    value, order = parts[0].sort(dim=0, stable=True)
    count, row = parts[1].gather(0, order), parts[2].gather(0, order)
    place = torch.cat([torch.zeros_like(order[:1]), (value[1:] != value[:-1]).long()]).cumsum(0)
    return (
        torch.full_like(value, math.inf).scatter_reduce(0, place, value, "amin"),
        torch.zeros_like(count).scatter_add(0, place, count),
        torch.full_like(row, 2**62).scatter_reduce(0, place, row, "amin"),
    )


def _alone(values: list[Value]) -> Found | None:
    """What a column of few values holds beside one that all rows but a handful have."""
    counts: dict[float, Value] = {}
    for value, count, row in values:
        before = counts.get(value, Value(value, 0, row))
        counts[value] = Value(value, before.times + count, min(before.row, row))
    if not counts:  # none is known
        return None
    most = max(counts.values(), key=lambda each: each.times)
    others = [each for each in counts.values() if each is not most]
    if not others or sum(each.times for each in others) > min(APART, most.times / FEW):
        return None
    return Found(others, most.value, most.value, 0.0)


def _far(
    below: list[Value], above: list[Value], low: float, high: float, std: float
) -> tuple[list[Value], list[Value]]:
    """The values at the ends that are marks, those that come most often first; and the others that are far off."""
    far: list[Value] = []
    for end, sign in ((below, -1.0), (above, 1.0)):
        apart = False
        for each in reversed(end):  # outwards
            edge = high if sign > 0 else low
            gap, wide = sign * (each.value - edge), high - low
            apart = apart or (wide > 0 and gap > wide)
            if apart or (is_code(each.value) and gap > CODES * std and each is end[0] and each.times >= REPEATED):
                far.append(each)
            elif sign > 0:
                high = max(high, each.value)
            else:
                low = min(low, each.value)
    marks = [each for each in far if each.times >= REPEATED]
    alone, middle = [each for each in far if each.times < REPEATED], (low + high) / 2
    return sorted(marks, key=lambda each: -each.times), sorted(alone, key=lambda each: -abs(each.value - middle))


def is_code(value: float) -> bool:
    """Whether a number is one of those that stand for a value that is missing: two nines or more, or as many bits."""
    text = f"{abs(value):.10g}" if abs(value) < 1e10 else ""
    return (set(text.replace(".", "")) == {"9"} and abs(value) >= 99) or abs(value) in (32767, 32768, 2147483648)
