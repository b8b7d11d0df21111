r"""The law of a measurement given data, $p(y \mid x_0) = \mathcal N(y; A(x_0), \operatorname{diag}\sigma_y^2)$."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite, check_real, is_real
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.conditions import PerSample, Shared
from sde_diffusion.guidance.posterior.measurement import Measurement


class GaussianLikelihood(nn.Module):
    r"""A measurement with Gaussian noise, all in units of the noise: $A/\sigma_y$ and $(y - A\,x_0)/\sigma_y$.

    Args:
        measurement: $A$.
        noise: $\sigma_y > 0$, a float or one for each coordinate of what is measured.
        like: One sample, shape `(1, *)`, of the dtype and on the device of the model.

    Raises:
        TypeError: Not a measurement, or noise that is no number; and as `Measurement.check`.
        ValueError: Noise that is not positive and finite, or of another shape; and as `Measurement.check`.
    """

    std: Tensor

    def __init__(self, measurement: Measurement, noise: float | Tensor, like: Tensor) -> None:
        super().__init__()
        given: object = measurement
        if not isinstance(given, Measurement):
            raise TypeError(
                f"measurement must be a Measurement such as Matrix(a), Mask(mask) or Operator(forward), got {given!r}"
            )
        self.measurement = measurement
        self.shape = measurement.check(like)
        self.size = math.prod(self.shape)
        std = _noise(noise, self.shape)
        least = torch.finfo(like.dtype).tiny ** 0.5
        if not bool((std > least).all()):
            raise ValueError(
                f"noise is {float(std.min()):g}, whose square is 0 in {like.dtype}: take at least {least:.1g}, and for "
                "samples that make sense what the steps resolve, such as noise=0.01"
            )
        self.register_buffer("std", std.to(like), persistent=False)

    def ahead(self, v: Tensor, x0: Tensor) -> Tensor:
        r"""$A\,v/\sigma_y$, the derivative at `x0`: `(B, *)` -> `(B, d)`."""
        return rows(self.measurement.push(v, x0)) / self.std.to(v)

    def back(self, u: Tensor, x0: Tensor) -> Tensor:
        r"""$A^Tu/\sigma_y$, its adjoint: `(B, d)` -> `(B, *)`."""
        return self.measurement.adjoint((u / self.std.to(u)).reshape(len(u), *self.shape), x0)

    def rows(self, x0: Tensor) -> Tensor:
        r"""$A/\sigma_y$ as matrices, shape `(B, d, D)` or `(1, d, D)`."""
        return self.measurement.rows(x0, self.size) / self.std.to(x0).reshape(-1, 1)

    def residual(self, y: Tensor, x0: Tensor) -> Tensor:
        r"""$(y - A(x_0))/\sigma_y$, shape `(B, d)`, for `y` of shape `(d,)` or `(B, d)`."""
        return (y - rows(self.measurement(x0))) / self.std.to(x0)

    def log_scale(self) -> Tensor:
        r"""$\sum\log\sigma_y$: what a density loses when it is taken in units of the noise."""
        return torch.log(self.std).sum() * (self.size if self.std.numel() == 1 else 1)

    def log_prob(self, y: Tensor, x0: Tensor) -> Tensor:
        r"""$\log p(y \mid x_0)$ in nats, shape `(B,)`."""
        square = self.residual(y, x0).square().sum(1)
        return -0.5 * (square + self.size * math.log(2 * math.pi)) - self.log_scale().to(square)

    def marked(self, y: Any, name: str, n: int) -> PerSample | Shared:
        """What was measured of `n` samples, marked as one for all or a row for each.

        Raises:
            TypeError: Something else than numbers.
            ValueError: Another shape, or numbers that are not finite.
        """
        given = y.value if isinstance(y, PerSample | Shared) else y
        try:
            found = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must hold numbers, what was measured, got {type(given).__name__}") from None
        if found.dtype == torch.bool or found.is_complex():
            raise TypeError(f"{name} must hold real numbers, what was measured, got {found.dtype}: {name}.float()")
        shared = self._is_shared(found, name, n)
        if isinstance(y, PerSample if shared else Shared):
            raise ValueError(
                f"{name} has shape {tuple(found.shape)}, which is {'one for all' if shared else 'a row for each'}, and "
                "is marked as the other: leave the mark out"
            )
        check_finite(found, name)
        return Shared(found) if shared else PerSample(found)

    def flat(self, y: Tensor, name: str, x: Tensor) -> Tensor:
        """What was measured, as shape `(1, d)` or `(B, d)`, in the dtype of the state `x`; `ValueError` as `marked`."""
        rows_of_y = 1 if self._is_shared(y, name, len(x)) else len(y)
        return y.to(x).reshape(rows_of_y, self.size)

    def _is_shared(self, y: Tensor, name: str, n: int) -> bool:
        """Whether it is of the shape of one measurement, for all samples, rather than a row for each."""
        if tuple(y.shape) == self.shape:
            return True
        if y.ndim == len(self.shape) + 1 and tuple(y.shape[1:]) == self.shape and len(y) in (1, n):
            return False
        raise ValueError(
            f"{name} has shape {tuple(y.shape)}: {self.measurement!r} answers {self.shape}, so that wanted is "
            f"this, for all {n} samples, or {(n, *self.shape)}, a row for each"
        )


def _noise(noise: object, shape: tuple[int, ...]) -> Tensor:
    """The standard deviations in float64, flattened: one for all, or one for each coordinate."""
    if not isinstance(noise, Tensor):
        if not is_real(noise):
            raise TypeError(
                f"noise must be a number, or a tensor with one for each coordinate that is measured, got {noise!r}"
            )
        found = torch.tensor([check_real(noise, "noise")], dtype=torch.float64, device="cpu")
    elif noise.ndim and tuple(noise.shape) != shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, wanted that of what is measured, {shape}, or a number")
    else:
        found = noise.detach().to(torch.float64).reshape(-1)
    if not bool(((found > 0) & torch.isfinite(found)).all()):
        worst = float(found.min())
        raise ValueError(
            f"noise must be positive and finite, got {worst:g}: exact data are put in by replacement, "
            "Inpaint(solver, known, mask), or come close with a small value such as noise=0.01"
        )
    return found
