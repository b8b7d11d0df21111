r"""The scaling between data as they come and data as a model sees them, one mean and one scale per column.

$$ z = (x - m)/s, \qquad x = s\,z + m, \qquad \log p(x) = \log p(z) - \sum_d \log s_d $$

A column is an entry of the first axis of a sample: a coordinate of vectors `(N, D)`, a channel of images
`(N, C, H, W)`. All of it is computed in float64: in float32 nothing is left of a time stamp of 1.7e9 but a few values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.data._scaling import CHUNK, LOSS, Columns, Scaling, dtype_of, parts
from sde_diffusion.data.sources.base import Source

__all__ = ["Standardise"]


@dataclass(frozen=True, eq=False)
class Standardise(Scaling):
    r"""Mean and scale, for all of a sample or per column; float64, on the CPU.

    Args:
        mean: $m$: a number; or one per entry of the first axis of a sample, shape `(D,)`, or `(C, 1, 1)`.
        std: $s$, likewise; the two have one shape, or one of them is a number.

    Raises:
        TypeError: Something else than real numbers.
        ValueError: Another shape, a mean that is not finite, or a std that is not positive and finite.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        mean, std = _numbers(self.mean, "mean"), _numbers(self.std, "std")
        if mean.ndim and std.ndim and mean.shape != std.shape:
            raise ValueError(f"mean has shape {tuple(mean.shape)} and std {tuple(std.shape)}: wanted one shape")
        mean, std = (v.clone() for v in torch.broadcast_tensors(mean, std))
        bad = ~(mean.isfinite() & std.isfinite() & (std > 0)).flatten()
        if bool(bad.any()):
            i = int(bad.nonzero()[0, 0])
            where = f" in entry {i}" if mean.ndim else ""
            raise ValueError(
                f"wanted a finite mean and a positive std, got mean={float(mean.flatten()[i])!r} and "
                f"std={float(std.flatten()[i])!r}{where}"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @classmethod
    def of(cls, x: Tensor | Source, name: str = "the data", *, missing: bool = False) -> Standardise:
        """The mean and standard deviation of each column.

        Args:
            x: Data, shape `(N, *)`, or a source of them, of which a part at a time is in memory.
            name: What an error calls them.
            missing: NaN is a value that is not known, and left out.

        Raises:
            ValueError: A column that is constant, up to the rounding of the dtype of `x`; one with NaN, or with
                nothing else where it may be missing; infinity.
        """
        if isinstance(x, Tensor):
            of, dtype = Columns.of(x, name), x.dtype
            found = _of_tensor(x.detach().cpu(), missing)
        else:
            of, dtype = Columns.of(x, name), dtype_of(x)
            found = reduce(_Moments.__add__, (_of_tensor(part, missing) for part in parts(x)))
        _refuse_constant(found, dtype, of)
        return cls(found.mean, found.std).fitting(of.shape)

    def fitting(self, shape: Sequence[int]) -> Standardise:
        """This scaling for samples of shape `shape`, along whose first axis a column lies.

        Raises:
            ValueError: Neither one number, nor one per entry of that axis.
        """
        if self.mean.ndim == 0:
            return self
        column, full = tuple(shape[:1]), (*shape[:1], *[1] * len(shape[1:]))
        if tuple(self.mean.shape) not in {column, full}:
            raise ValueError(
                f"mean and std have shape {tuple(self.mean.shape)}, but samples {tuple(shape)}: wanted one number, or "
                f"one per entry of the first axis, shape {column}"
            )
        return Standardise(self.mean.reshape(full), self.std.reshape(full))

    def apply(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standardised data, computed in float64: shape `(N, *)` -> same, in `dtype`."""
        if len(x) > (most := max(1, CHUNK // x[0].numel())):
            return torch.cat([self.apply(part, dtype) for part in x.split(most)])
        x, (mean, std) = self._wide(x)
        return ((x - mean) / std).to(dtype)

    def undo(self, z: Tensor) -> Tensor:
        """Data from standardised ones, shape `(N, *)`: in float32, or in float64 where that loses too much.

        That is where rounding to float32 would move a column by a thousandth of its standard deviation, where its
        range has no float32, or where `z` is in float64 already.
        """
        dtype = torch.float64 if self._needs_double else z.dtype
        z, (mean, std) = self._wide(z)
        return (z * std + mean).to(dtype)

    def log_jacobian(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), -self.log_det(x.shape[1:]), dtype=torch.float64, device="cpu")

    def log_slopes(self, x: Tensor) -> Tensor:
        return -self.fitting(x.shape[1:]).std.log().expand(x.shape)

    @property
    def config(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def log_det(self, shape: Sequence[int]) -> float:
        r"""$\sum_d \log s_d$ over the coordinates of a sample of shape `shape`: $\log p(z) - \log p(x)$."""
        return math.fsum(self.fitting(shape).std.log().expand(tuple(shape)).flatten().tolist())

    def __str__(self) -> str:
        shown = []
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = [f"{v:.4g}" for v in values.flatten()[:5].tolist()]
            shown.append(f"{name} {', '.join(numbers)}{', ...' * (values.numel() > 5)}")
        return ", ".join(shown)

    @property
    def _needs_double(self) -> bool:
        size, single = self.mean.abs(), torch.finfo(torch.float32)
        lost = size * (single.eps / 2) > LOSS * self.std
        return bool((lost | (size + 100 * self.std > single.max) | (self.std < 100 * single.tiny)).any())

    def _wide(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A batch and what is to be broadcast against it, in float64."""
        own = self.fitting(x.shape[1:])
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # which has no float64
        return x.to(device, torch.float64), [v.to(device) for v in (own.mean, own.std)]


class _Moments(NamedTuple):
    """Number, mean and standard deviation of every column, `(D,)`."""

    n: Tensor
    mean: Tensor
    std: Tensor

    def __add__(self, other: _Moments) -> _Moments:  # type: ignore[override]  # those of both, and no longer tuple
        """Those of two sets of rows together (Chan et al., 1983)."""
        n = self.n + other.n
        a, b = self.n / n.clamp(min=1), other.n / n.clamp(min=1)
        shift = other.mean - self.mean
        unit = torch.stack([self.std, other.std, shift.abs()]).amax(0)  # whose square may not be a number
        unit = torch.where(unit > 0, unit, 1.0)
        square = a * (self.std / unit) ** 2 + b * (other.std / unit) ** 2 + a * b * (shift / unit) ** 2
        return _Moments(n, torch.where(a > 0, self.mean + b * shift, other.mean), square.sqrt() * unit)


def _moments(columns: Tensor, missing: bool = False) -> _Moments:
    """Those of each row of `(D, N)`."""
    rows = columns.to(torch.float64)
    unknown = rows.isnan() if missing else None
    n = torch.full((len(rows), 1), float(rows.shape[1]), dtype=torch.float64)
    if unknown is not None:
        rows = rows.masked_fill(unknown, 0.0)
        n -= unknown.sum(1, keepdim=True)

    def centred(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = values.sum(1, keepdim=True) / n.clamp(min=1)
        values = values - mean
        return values if unknown is None else values.masked_fill_(unknown, 0.0), mean

    # a power of two, which is exact and keeps squares in range
    unit = torch.exp2(torch.frexp(rows.abs().amax(1, keepdim=True)).exponent.clamp(-1000, 1000).double())
    rows, mean = centred(rows / unit)
    rows, shift = centred(rows)  # what rounding left in the first mean
    std = (rows.square().sum(1, keepdim=True) / n.clamp(min=1)).sqrt()
    return _Moments(n.flatten(), ((mean + shift) * unit).flatten(), (std * unit).flatten())


def _of_tensor(x: Tensor, missing: bool) -> _Moments:
    columns = x.transpose(0, 1)
    found = [_moments(part.flatten(1), missing) for part in columns.split(max(1, CHUNK // columns[0].numel()))]
    return _Moments(*(torch.cat(moment) for moment in zip(*found, strict=True)))


def _refuse_constant(found: _Moments, dtype: torch.dtype, of: Columns) -> None:
    if len(unknown := (found.n == 0).nonzero()):
        raise ValueError(f"{of.named(int(unknown[0, 0]))} holds no value that is known: leave it out")
    if len(broken := (~(found.mean.isfinite() & found.std.isfinite())).nonzero()):
        raise ValueError(
            f"{of.named(int(broken[0, 0]))} holds NaN or infinity, or numbers whose square has no float64: remove or "
            "replace those rows"
        )
    _, mean, std = found
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    bad = (std <= eps * mean.abs()).nonzero().flatten().tolist()
    if not bad:
        return
    almost, advice = "", "leave it out"
    if bool((std[bad] > 0).any()):
        almost = f" up to the rounding of {str(dtype).removeprefix('torch.')}"
        advice += ", or centre it before it is rounded"
    if len(bad) == len(mean):
        raise ValueError(f"every column of {of.data} is constant{almost}: there is nothing to learn")
    named = ", ".join(map(of.short, bad[1:6])) + ", ..." * (len(bad) > 6)
    others = f" (and others: {named})" if len(bad) > 1 else ""
    raise ValueError(f"{of.named(bad[0])} is constant at {mean[bad[0]]:.6g}{almost}{others}: {advice}")


def _numbers(value: Any, name: str) -> Tensor:
    """A number, a list or a tensor as float64, `()` or `(n,)` or `(n, 1, ..., 1)`."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
        if getattr(value, "dtype", None) is not None and torch.as_tensor(value).is_complex():
            raise TypeError("complex numbers")
        found = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except Exception as error:
        raise TypeError(f"{name} must be a number or a tensor of real numbers, got {type(value).__name__}") from error
    if (found.ndim > 1 and math.prod(found.shape[1:]) != 1) or not found.numel():
        raise ValueError(
            f"{name} has shape {tuple(found.shape)}: wanted one number, or one per entry of the first axis of a "
            "sample, shape (D,) or (C,)"
        )
    return found
