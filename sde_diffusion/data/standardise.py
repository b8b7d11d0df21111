r"""The scaling between data as they come and data as a model sees them, one mean and one scale per column.

$$ z = (x - m)/s, \qquad x = s\,z + m, \qquad \log p(x) = \log p(z) - \sum_d \log s_d $$

A column is an entry of the first axis of a sample: a coordinate of vectors `(N, D)`, a channel of images
`(N, C, H, W)`. All of it is computed in float64: in float32 nothing is left of a time stamp of 1.7e9 but a few values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Standardise"]

CHUNK = 2**24
"""Values that are in memory in float64 at once, where the data are many."""
LOSS = 1e-3
"""Rounding of samples, in standard deviations of a column, above which they are kept in float64."""


@dataclass(frozen=True, eq=False)
class Standardise:
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
    def of(cls, x: Tensor, name: str = "the data") -> Standardise:
        """The mean and standard deviation of each column.

        Args:
            x: Data, finite, shape `(N, *)`.
            name: What an error calls them.

        Raises:
            ValueError: A column that is constant, up to the rounding of the dtype of `x`.
        """
        columns = x.detach().cpu().transpose(0, 1)
        parts = [_moments(part.flatten(1)) for part in columns.split(max(1, CHUNK // columns[0].numel()))]
        mean, std = (torch.cat(moment) for moment in zip(*parts, strict=True))
        _refuse_constant(mean, std, x, name)
        return cls(mean, std).fitting(x.shape[1:])

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


def _moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row of `(D, N)`."""
    rows = columns.to(torch.float64)
    # a power of two, which is exact and keeps squares in range
    unit = torch.exp2(torch.frexp(rows.abs().amax(1, keepdim=True)).exponent.clamp(-1000, 1000).double())
    rows = rows / unit
    mean = rows.mean(1, keepdim=True)
    rows -= mean
    shift = rows.mean(1, keepdim=True)  # what rounding left in the first mean
    rows -= shift
    std = rows.square().mean(1, keepdim=True).sqrt()
    return ((mean + shift) * unit).flatten(), (std * unit).flatten()


def _refuse_constant(mean: Tensor, std: Tensor, x: Tensor, name: str) -> None:
    bad = (std <= torch.finfo(x.dtype).eps * mean.abs()).nonzero().flatten().tolist()
    if not bad:
        return
    almost, advice = "", "leave it out"
    if bool((std[bad] > 0).any()):
        almost = f" up to the rounding of {str(x.dtype).removeprefix('torch.')}"
        advice += ", or centre it before it is rounded"
    if len(bad) == len(mean):
        raise ValueError(f"every column of {name} is constant{almost}: there is nothing to learn")
    what = "channel" if x.ndim > 2 else "column"
    named = ", ".join(map(str, bad[1:6])) + ", ..." * (len(bad) > 6)
    others = f" (and others: {named})" if len(bad) > 1 else ""
    raise ValueError(f"{what} {bad[0]} of {name} is constant at {mean[bad[0]]:.6g}{almost}{others}: {advice}")


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
