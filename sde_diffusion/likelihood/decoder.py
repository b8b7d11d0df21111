r"""The last step of a bound: where the values of discrete data lie, and the decoders that give a probability to them.

A decoder $p(x_0 \mid x_{t_0})$ leads from the lowest noise level of a bound to the data.

References: Ho et al., Denoising Diffusion Probabilistic Models, 2020 (equation 13); Kingma et al., Variational
Diffusion Models, 2021 (the categorical one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_positive, check_state


@dataclass(frozen=True)
class Bins:
    r"""$Q$ values at $c_v = \mathrm{first} + \mathrm{width}\cdot v$, each in the middle of a bin of that width.

    Bytes scaled by `2 * (v + 0.5) / 256 - 1` are `Bins.tiling(256)`, of width 2/256; scaled by `v / 127.5 - 1` they are
    `Bins.spanning(256)`, of width 2/255. The digits of `data.digits` are `Bins.tiling(17)`.

    Args:
        count: $Q$, the number of values, at least 2.
        first: $c_0$, the centre of the first bin.
        width: $2h$, the distance between two centres.

    Raises:
        TypeError, ValueError: Fewer than two values, a centre that is not finite, or a width that is not positive.
    """

    count: int
    first: float
    width: float

    def __post_init__(self) -> None:
        if check_count(self.count, "count") < 2:
            raise ValueError("bins need at least two values")
        if not (0 < self.width < math.inf and math.isfinite(self.first)):
            raise ValueError(
                f"bins need a finite first centre and a positive width, got {self.first!r}, {self.width!r}"
            )

    @classmethod
    def tiling(cls, count: int, low: float = -1.0, high: float = 1.0) -> Bins:
        """Bins that fill `[low, high]`."""
        width = (high - low) / count
        return cls(count, low + width / 2, width)

    @classmethod
    def spanning(cls, count: int, low: float = -1.0, high: float = 1.0) -> Bins:
        """Bins whose first and last centres are `low` and `high`."""
        return cls(count, low, (high - low) / max(count - 1, 1))

    def scaled(self, mean: float, std: float) -> Bins:
        """The bins of `(x - mean) / std`."""
        return Bins(self.count, (self.first - mean) / std, self.width / std)

    def centre(self, v: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """$c_v$ of integer values `v`, any shape, in the default dtype unless told."""
        if v.is_floating_point() or v.dtype == torch.bool:
            raise TypeError(f"centre takes integer values, got {v.dtype}")
        if v.numel() and (int(v.min()) < 0 or int(v.max()) >= self.count):
            raise ValueError(f"values run from 0 to {self.count - 1}, got {int(v.min())} to {int(v.max())}")
        return (self.first + self.width * v.to(torch.float64)).to(dtype or torch.get_default_dtype())

    def index(self, x: object, name: str = "x") -> Tensor:
        """The integer values of data at bin centres, shape `(B, *)`, on the CPU.

        Raises:
            TypeError: Integer or half-precision data.
            ValueError: Empty data, or data that are not at the centres, such as dequantised ones.
        """
        if isinstance(x, Tensor) and not x.is_floating_point():
            raise TypeError(f"{name} holds values as {x.dtype}: give their place in the units of the model, centre(v)")
        x = check_finite(check_state(x, name), name).to("cpu", torch.float64)
        place = (x - self.first) / self.width
        v = place.round()
        off = (place - v).abs() > 0.01
        if bool(off.any()) or float(v.min()) < 0 or float(v.max()) >= self.count:
            raise ValueError(
                f"{name} is not at the centres of {self!r}: {int(off.sum())} of {x.numel()} values lie between them, "
                f"and values run from {float(v.min()):g} to {float(v.max()):g}. Give centre(v), with no noise added"
            )
        return v.long()


@dataclass(frozen=True)
class GaussianDecoder:
    r"""A normal law about the data prediction at the lowest noise level; over bins, if given, the probability of each.

    With bins it is the discretised Gaussian of DDPM, its end bins open: it gives a probability to a value, and the
    bound is one on $-\log P(v)$. Without, the bound is on a density. One network evaluation a draw.

    Args:
        std: The standard deviation of the law, in the units of the data; by default the bound chooses it.
        bins: Where the values of discrete data lie.

    Raises:
        TypeError: `bins` is not a `Bins`.
        ValueError: A `std` that is not positive and finite.
    """

    std: float | None = None
    bins: Bins | None = None

    def __post_init__(self) -> None:
        if self.std is not None:
            check_positive(self.std, "std")
        if self.bins is not None:
            _check_bins(self.bins)


@dataclass(frozen=True)
class CategoricalDecoder:
    r"""$P(v \mid x_{t_0}) \propto \mathcal N(x_{t_0}; \alpha c_v, \sigma^2)$ over the values, without the network.

    Args:
        bins: Where the values of discrete data lie.

    Raises:
        TypeError: `bins` is not a `Bins`.
    """

    bins: Bins

    def __post_init__(self) -> None:
        _check_bins(self.bins)


Decoder = GaussianDecoder | CategoricalDecoder


def _check_bins(bins: object) -> None:
    if not isinstance(bins, Bins):
        raise TypeError(f"bins must be Bins, such as Bins.tiling(256), got {type(bins).__name__}")


def discretised_gaussian_log_prob(mean: Tensor, std: float | Tensor, v: Tensor, bins: Bins) -> Tensor:
    r"""$\log[\Phi(\tfrac{c_v + h - m}{s}) - \Phi(\tfrac{c_v - h - m}{s})]$, the end bins open, in the shape of `mean`.

    It is computed in float64 by differences of $\log\Phi$, on the side where that is small, and so is exact to rounding
    1,000 deviations out.
    """
    centre = bins.centre(v, torch.float64)
    high = torch.where(v == bins.count - 1, math.inf, (centre + bins.width / 2 - mean) / std)
    low = torch.where(v == 0, -math.inf, (centre - bins.width / 2 - mean) / std)
    flip = low > 0
    high, low = torch.where(flip, -low, high), torch.where(flip, -high, low)
    top = torch.special.log_ndtr(high)
    gap = torch.special.log_ndtr(low) - top
    near = gap > -math.log(2)
    return top + torch.where(near, torch.log(-torch.expm1(gap)), torch.log1p(-torch.exp(gap)))


def categorical_log_prob(z: Tensor, std: float, v: Tensor, bins: Bins) -> Tensor:
    r"""$\log P(v \mid z)$, $P \propto e^{-(z - c_v)^2/2s^2}$ over the values, in the shape of `z`, float64."""
    z, own = z.to(torch.float64), bins.centre(v, torch.float64)
    total = torch.full_like(z, -math.inf)
    for k in range(bins.count):
        c = bins.first + bins.width * k
        total = torch.logaddexp(total, (c - own) * (2 * z - c - own) / (2 * std * std))
    return -total
