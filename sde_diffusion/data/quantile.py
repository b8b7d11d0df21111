r"""A scaling for heavy tails and long ranges: every column is brought to a standard normal by its own quantiles.

$$ z = f(x), \quad f(q_k) = \zeta_k, \quad q_k = \hat F^{-1}\big(\Phi(\zeta_k)\big), \quad
   \log p(x) = \log p(z) + \sum_d \log f_d'(x_d) $$

The knots $\zeta_1 < \dots < \zeta_K$ are equally spaced; the first and last $q$ are the least and greatest value of the
data. Between two knots $f$ is a quotient of two quadratics, with a slope at each knot that is the geometric mean of
those of the chords beside it: strictly increasing, its inverse in closed form, its slope continuous. Beyond the data it
goes on as a straight line, with the slope that it has over the last unit of $z$: the last two values alone may be
close together by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_positive
from sde_diffusion.data._scaling import CHUNK, LOSS, Columns, Scaling, parts
from sde_diffusion.data.sources.base import Source

__all__ = ["Quantile"]

MOST_KNOTS = 256
"""The most knots of a column."""
TIES = 0.1
"""The share of the rows that one value may have."""
MOST_ROWS = 2**20
"""Values of a column that are sorted; of more, as many at even distances, and the least and the greatest."""


def knots(n: int) -> int:
    """The number of knots for `n` values, Rice's rule for histograms: $2 n^{1/3}$, from 3 up to 256."""
    return max(3, min(MOST_KNOTS, round(2 * n ** (1 / 3))))


@dataclass(frozen=True, eq=False)
class Quantile(Scaling):
    r"""The map of every column by its quantiles to a standard normal; float64, on the CPU.

    It costs a search and some twenty operations on every value, in either direction. A slope is known to about
    $\sqrt{K/N}$; where the data are light-tailed already, `Standardise` makes no such error.

    Args:
        values: $q_k$, strictly increasing: shape `(K,)` for all of a sample, or `(D, K)` for each entry of the first
            axis of a sample, with `K >= 3`.
        top: $\zeta_K$, `> 0`; the knots are equally spaced from `-top` to `top`.

    Raises:
        TypeError: Something else than real numbers.
        ValueError: Another shape, values that do not increase or are not finite, a `top` that is not positive.

    References:
        Gregory and Delbourgo, Piecewise Rational Quadratic Interpolation to Monotonic Data, 1982.
    """

    values: Tensor
    top: float

    def __post_init__(self) -> None:
        try:
            values = torch.as_tensor(self.values, dtype=torch.float64, device="cpu").detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"values must be real numbers, got {type(self.values).__name__}") from error
        gaps = values.diff(dim=-1) if values.ndim else values
        if values.ndim not in (1, 2) or values.shape[-1] < 3 or not values.numel():
            raise ValueError(f"values have shape {tuple(values.shape)}, wanted (K,) or (D, K) with K >= 3")
        if not bool(values.isfinite().all() and (gaps > 0).all() and gaps.isfinite().all()):
            raise ValueError("values must be finite and strictly increasing along each row, and these are not")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "top", check_positive(self.top, "top"))

    @classmethod
    def of(
        cls, x: Tensor | Source, name: str = "the data", *, missing: bool = False, linear: Sequence[int | str] = ()
    ) -> Quantile:
        """The map of each column, by Rice's number of knots.

        Args:
            x: Data, shape `(N, *)`, or a source of them, of which a part at a time is in memory.
            name: What an error calls them.
            missing: NaN is a value that is not known, and left out.
            linear: Columns, by number or name, that are brought to mean 0 and standard deviation 1 alone, as by
                `Standardise`: those of few different values, which have no quantiles.

        Raises:
            ValueError: A column in which one value has more than a tenth of the rows; fewer than 8 values; one
                with NaN, or with nothing else where it may be missing; infinity; a name in `linear` that is no column.
        """
        of = Columns.of(x, name)
        straight = {of.place(column) for column in linear}
        if isinstance(x, Tensor):
            some, low, high = x.detach().cpu().transpose(0, 1).flatten(1), None, None
        else:
            some, low, high = _gathered(x)
        known = [_known(column, i, missing, of) for i, column in enumerate(some)]
        n = min(map(len, known))
        top = -float(torch.special.ndtri(torch.tensor(0.5 / n, dtype=torch.float64, device="cpu")))
        at = torch.linspace(-top, top, knots(n), dtype=torch.float64, device="cpu")
        rows = []
        for i, column in enumerate(known):
            ends = (column[0], column[-1]) if low is None or high is None else (low[i], high[i])
            found = _straight(column, at) if i in straight else _quantiles(column, at, ends)
            _check(found, column, i, of, straight=i in straight)
            rows.append(_strict(found, at))
        return cls(torch.stack(rows), top)

    def fitting(self, shape: Sequence[int]) -> Quantile:
        """This scaling for samples of shape `shape`.

        Raises:
            ValueError: Neither one map, nor one per entry of the first axis.
        """
        if self.values.ndim == 2 and tuple(shape[:1]) != tuple(self.values.shape[:1]):
            raise ValueError(
                f"the quantiles are those of {len(self.values)} columns, but samples have shape {tuple(shape)}: wanted "
                "one map, or one per entry of the first axis"
            )
        return self

    def apply(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._by_parts(x, lambda part: self._mapped(part)[0].to(dtype))

    def undo(self, z: Tensor) -> Tensor:
        """Data from what the model sees, shape `(N, *)`: in float32, or in float64 where that loses too much.

        That is where rounding to float32 would move a value by a thousandth of what one unit of $z$ moves it, where it
        has no float32, or where `z` is in float64 already.
        """
        dtype = torch.float64 if self._needs_double else z.dtype
        return self._by_parts(z, lambda part: self._inverse(part).to(dtype))

    def log_jacobian(self, x: Tensor) -> Tensor:
        return self._by_parts(x, lambda part: self._mapped(part)[1].flatten(1).sum(1).cpu())

    def log_slopes(self, x: Tensor) -> Tensor:
        return self._by_parts(x, lambda part: self._mapped(part)[1].cpu())

    @property
    def config(self) -> dict[str, Any]:
        return {"values": self.values.tolist(), "top": self.top}

    def __str__(self) -> str:
        table = self.values.reshape(-1, self.values.shape[-1])
        shown = [f"{row[0]:.4g} to {row[-1]:.4g} around {row[len(row) // 2]:.4g}" for row in table[:3].tolist()]
        return f"by {table.shape[1]} quantiles, {', '.join(shown)}{', ...' * (len(table) > 3)}"

    def _by_parts(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        self.fitting(x.shape[1:])
        most = max(1, CHUNK // (8 * max(1, x[0].numel())))
        return torch.cat([change(part) for part in x.split(most)]) if len(x) > most else change(x)

    @property
    def _step(self) -> float:
        return 2 * self.top / (self.values.shape[-1] - 1)

    @property
    def _needs_double(self) -> bool:
        size, single = self.values.abs(), torch.finfo(torch.float32)
        unit = self.values.diff(dim=-1) / self._step  # of x per unit of z
        lost = torch.maximum(size[..., 1:], size[..., :-1]) * (single.eps / 2) > LOSS * unit
        far = self.values[..., -1] - self.values[..., 0] > single.max / 100
        return bool(lost.any() or far.any() or (size > single.max).any() or (unit < 100 * single.tiny).any())

    def _mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of data and the log of the slope there, in the shape of `x`, in float64."""
        table = self._table(x)
        q, step = self._at(table), self._step
        k = (torch.searchsorted(q, table, right=True) - 1).clamp(0, q.shape[1] - 2)
        left, wide, a, b = self._segments(q, k)
        xi = (table - left) / wide
        bent = xi * (1 - xi)
        below = 1 + (a + b - 2) * bent
        u = _with_tails(xi, (xi * xi + a * bent) / below, a * xi, 1 + b * (xi - 1))
        slope = _with_tails(xi, (b * xi * xi + 2 * bent + a * (1 - xi) ** 2) / below**2, a, b)
        z = step * (k + u) - self.top
        return self._back(torch.where(table.isnan(), table, z), x), self._back(slope.log() + (step / wide).log(), x)

    def _inverse(self, z: Tensor) -> Tensor:
        table = self._table(z)
        q = self._at(table)
        place = (table + self.top) / self._step
        k = place.nan_to_num().clamp(0, q.shape[1] - 2).long()
        left, wide, a, b = self._segments(q, k)
        u = place - k
        bend = a + b - 2
        half = a - u * bend
        xi = 2 * u / (half + (half**2 + 4 * u * (1 - a + u * bend)).clamp(min=0).sqrt())
        return self._back(left + wide * _with_tails(u, xi, u / a, 1 + (u - 1) / b), z)

    def _segments(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the segments `k`: where they begin, their length, and the slopes at their ends over that of the chord."""
        wide = q.diff(dim=1)
        ratio = (wide[:, 1:] / wide[:, :-1]).sqrt()  # slope of a chord over that of the next, under the root
        m = max(1, min(wide.shape[1], round(1 / self._step)))  # chords within one unit of z
        low, high = wide[:, :1] / wide[:, :m].mean(1, keepdim=True), wide[:, -1:] / wide[:, -m:].mean(1, keepdim=True)
        before, after = torch.cat([low, ratio], 1), torch.cat([1 / ratio, high], 1)
        return q.gather(1, k), wide.gather(1, k), before.gather(1, k), after.gather(1, k)

    def _table(self, x: Tensor) -> Tensor:
        """Data as `(D, M)`, a row for each map, in float64."""
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # which has no float64
        wide = x.detach().to(device, torch.float64)
        table = wide.reshape(1, -1) if self.values.ndim == 1 else wide.transpose(0, 1).reshape(x.shape[1], -1)
        return table.contiguous()

    def _back(self, table: Tensor, x: Tensor) -> Tensor:
        """`(D, M)` in the shape of the data that it was made of."""
        if self.values.ndim == 1:
            return table.reshape(x.shape)
        return table.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)

    def _at(self, table: Tensor) -> Tensor:
        return self.values.reshape(-1, self.values.shape[-1]).to(table.device)


def _with_tails(place: Tensor, inside: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """One value where a place lies in its segment `[0, 1]`, others below and above it."""
    return torch.where(place < 0, below, torch.where(place > 1, above, inside))


def _gathered(x: Source) -> tuple[Tensor, Tensor, Tensor]:
    """Values of every column of a source, `(D, M)`, at even distances, and the least and the greatest of all."""
    stride = max(1, math.ceil(len(x) * math.prod(x.shape[1:]) / MOST_ROWS))
    some, lows, highs, first = [], [], [], 0
    for part in parts(x):
        rows = part.to(torch.float64).transpose(0, 1).flatten(1)
        lows.append(torch.where(rows.isnan(), math.inf, rows).amin(1))
        highs.append(torch.where(rows.isnan(), -math.inf, rows).amax(1))
        some.append(part[-first % stride :: stride])
        first += len(part)
    taken = torch.cat(some).transpose(0, 1).flatten(1)
    return taken, torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _known(column: Tensor, i: int, missing: bool, of: Columns) -> Tensor:
    """The values of a column that are known, sorted, in float64."""
    column = column.to(torch.float64)
    if missing:
        column = column[~column.isnan()]
    if not bool(column.isfinite().all()):
        raise ValueError(f"{of.named(i)} holds NaN or infinity: remove or replace those rows")
    if len(column) < 8:
        raise ValueError(f"{of.named(i)} has {len(column)} values, and quantiles need 8 or more: take Standardise")
    return column.sort().values


def _quantiles(column: Tensor, at: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """Those of a sorted column at the knots, at Hazen's places, the first and last of which are its ends."""
    place = (torch.special.ndtr(at) * len(column) - 0.5).clamp(0, len(column) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(column) - 1)
    found = torch.lerp(column[low], column[high], place - low)
    found[0], found[-1] = ends
    return found


def _straight(column: Tensor, at: Tensor) -> Tensor:
    """The values at the knots of the map to mean 0 and standard deviation 1."""
    return column.mean() + column.std(correction=0) * at


def _strict(values: Tensor, at: Tensor) -> Tensor:
    """Quantiles that increase: a value that several knots fall on has the middle of them, and the others lie beside."""
    if bool((values.diff() > 0).all()):
        return values
    distinct, which, count = values.unique(return_inverse=True, return_counts=True)
    middle = torch.zeros_like(distinct).index_add_(0, which, at) / count
    k = (torch.searchsorted(middle, at, right=True) - 1).clamp(0, len(middle) - 2)
    slope = distinct.diff() / middle.diff()
    return distinct[k] + slope[k] * (at - middle[k])


def _check(values: Tensor, column: Tensor, i: int, of: Columns, *, straight: bool) -> None:
    """Raises `ValueError` for a column that is not finite, or in which one value comes too often."""
    if not bool(values.isfinite().all() and values.diff().isfinite().all()):
        raise ValueError(f"{of.named(i)} holds infinity, or spans more than float64: remove or replace those rows")
    _, count = column.unique_consecutive(return_counts=True)
    if len(count) == 1:
        raise ValueError(f"{of.named(i)} is constant at {float(column[0]):.6g}: leave it out")
    if not straight and int(count.max()) > TIES * len(column):
        value = column[int(count.cumsum(0)[count.argmax()]) - 1]
        raise ValueError(
            f"{of.named(i)} has the value {float(value):.6g} in {int(count.max()) / len(column):.1%} of its rows, so "
            f"that it has no quantiles to tell them apart by: Quantile.of(..., linear=({of.short(i)},)) standardises "
            "it alone, and Dequantised makes whole numbers continuous"
        )
