r"""What the states at the first time are drawn from, and their density there.

A prior is told of the process and of the time by whoever asks, so that one prior serves any process:

* `Standard`, the default: $\mathcal N(0, \sigma_t^2 I)$ of a Gaussian SDE, and of a general SDE its own `prior`.
* `Matched`: the first two moments of the noised data, $\mathcal N(\alpha_t\mu,\ \alpha_t^2 C + \sigma_t^2 I)$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion._checks import check_like, check_state
from sde_diffusion._tensors import as_float64, rows, standard_normal_log_prob
from sde_diffusion.sde.base import SDE, GaussianSDE


class Prior(ABC):
    """The law of the state from which sampling starts.

    Attributes:
        holds_data: Whether it has the mean and the spread of the data that the state still holds.
    """

    holds_data: ClassVar[bool] = False

    def check(self, sde: SDE, shape: tuple[int, ...] | None = None) -> None:  # noqa: B027 - most priors fit all of them
        """Raises `TypeError` unless a process can have the prior, and `ValueError` if an event has another shape."""

    @abstractmethod
    def draw(self, z: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        r"""Turns draws `z` of $\mathcal N(0, I)$, shape `(B, *)`, into draws of the prior.

        Args:
            z: The draws.
            sde: The process.
            t: Its time; `t_max` by default.
        """

    @abstractmethod
    def log_prob(self, x: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        """Log-density at `x`, shape `(B, *)`, in nats, shape `(B,)`; `sde` and `t` as in `draw`."""

    @abstractmethod
    def std(self, sde: GaussianSDE, t: float | None = None) -> Tensor:
        """Standard deviations, float64: one for all coordinates, or one along each axis of the Gaussian."""


@dataclass(frozen=True)
class Standard(Prior):
    r"""The prior of the process itself: $\mathcal N(0, \sigma_t^2 I)$ of a `GaussianSDE`.

    A general SDE answers by its methods `prior` and `prior_log_prob`, at `t_max` alone.

    Raises:
        ValueError: Another time than `t_max` of a general SDE, or an answer of its methods that has another shape.
    """

    def draw(self, z: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        if isinstance(sde, GaussianSDE):
            return sde.prior(z, t)
        return check_like(sde.prior(_at_the_end(z, sde, t)), "the prior's answer", z, "the draws")

    def log_prob(self, x: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        if isinstance(sde, GaussianSDE):
            return sde.prior_log_prob(x, t)
        value: object = sde.prior_log_prob(_at_the_end(x, sde, t))
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"prior_log_prob of {type(sde).__name__} answered {what} to {len(x)} states, wanted shape ({len(x)},): "
                "one number per state, the sum over its coordinates alone, .flatten(1).sum(1)"
            )
        return value

    def std(self, sde: GaussianSDE, t: float | None = None) -> Tensor:
        (at,) = sde.levels([sde.t_max if t is None else t])
        return torch.tensor(at.sigma, dtype=torch.float64, device="cpu")


def _at_the_end(x: Tensor, sde: SDE, t: float | None) -> Tensor:
    if t is not None and t != sde.t_max:
        raise ValueError(
            f"the grid starts at t = {t:g}, but the prior of {type(sde).__name__} is known at "
            f"t_max = {sde.t_max:g} alone: start there, or give x_T="
        )
    return x


class Matched(Prior):
    r"""A prior with the first two moments of the noised data, of any Gaussian SDE.

    $$ x_t \sim \mathcal N(\alpha_t\mu,\ \alpha_t^2 C + \sigma_t^2 I) $$

    Exact when the data are Gaussian; for other data it removes the mismatch of mean and scale that a centred prior
    leaves, which matters most for VE and Brownian processes of moderate final noise.

    Args:
        mean: Mean $\mu$ of the data: a float or a tensor of the event shape.
        variance: A float, a tensor of the event shape, or a covariance `(D, D)` over the flattened event.

    Raises:
        ValueError: A negative variance, a covariance that is not symmetric positive semi-definite, or shapes that do
            not fit.

    Example:
        >>> sampler = SDESampler(Problem(sde, model, prior=Matched(data.mean(0), data.var(0))))
    """

    holds_data: ClassVar[bool] = True

    def __init__(self, mean: float | Tensor, variance: float | Tensor) -> None:
        self.mean = as_float64(mean)
        self.variance = as_float64(variance)
        self._basis: Tensor | None = None
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError("the mean of the data must be finite")
        spread, full = self.variance, (self.mean.numel(), self.mean.numel())
        if self.mean.ndim == 0 and spread.ndim == 2 and spread.shape[0] == spread.shape[1] > 1:
            raise ValueError(
                f"a variance of shape {tuple(spread.shape)} may be a covariance or a variance per pixel: "
                "give the mean as a tensor of the event shape, which tells"
            )
        if self.mean.ndim and spread.ndim and spread.shape not in (self.mean.shape, full):
            raise ValueError(
                f"the variance has shape {tuple(spread.shape)}, but the mean {tuple(self.mean.shape)}: "
                f"wanted (), {tuple(self.mean.shape)} or {full}"
            )
        if self.mean.ndim and spread.ndim and spread.shape != self.mean.shape:
            if not torch.allclose(spread, spread.T):
                raise ValueError("the covariance is not symmetric")
            spread, self._basis = torch.linalg.eigh(spread)
        if not bool((spread >= -1e-9 * spread.abs().max()).all()) or not bool(torch.isfinite(spread).all()):
            raise ValueError(
                f"the variance of the data must be >= 0 and finite, got a smallest value of {float(spread.min()):g}"
            )
        self._spread = spread.clamp_min(0.0)

    def __repr__(self) -> str:
        known = self.mean.ndim == 0 == self.variance.ndim
        return f"Matched({float(self.mean)}, {float(self.variance)})" if known else "Matched(mean, variance)"

    def check(self, sde: SDE, shape: tuple[int, ...] | None = None) -> None:
        _gaussian(sde)
        if shape is not None:
            self._check_shape(tuple(shape))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises `ValueError` unless the moments are those of an event: one number, or one for each coordinate."""
        for name, part in (("mean", self.mean), ("variance", self.variance)):
            fits = part.ndim == len(shape) and all(n in (1, m) for n, m in zip(part.shape, shape, strict=True))
            if name == "variance" and self._basis is not None:
                fits = part.shape == (math.prod(shape), math.prod(shape))
            if part.ndim and not fits:
                raise ValueError(
                    f"the {name} of the prior has shape {tuple(part.shape)}, but a state has {shape}: give one number, "
                    "or a tensor of the event shape, with 1 where it is the same along an axis"
                )

    def _moments(self, sde: SDE, t: float | None) -> tuple[Tensor, Tensor]:
        """Mean, of the event shape or a scalar, and standard deviations, along the eigenvectors if there are any."""
        (at,) = _gaussian(sde).levels([sde.t_max if t is None else t])
        return at.alpha * self.mean, torch.sqrt(at.alpha**2 * self._spread + at.sigma**2)

    def draw(self, z: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        self._check_shape(tuple(check_state(z, "z").shape[1:]))
        mean, std = (v.to(z) for v in self._moments(sde, t))
        if self._basis is None:
            return mean + std * z
        basis = self._basis.to(z)
        # Row by row, not one matrix product: a product's rounding depends on how many rows it has.
        mixed = [basis @ (std * (basis.T @ row)) for row in rows(z)]
        return mean + torch.stack(mixed).reshape(z.shape)

    def log_prob(self, x: Tensor, sde: SDE, t: float | None = None) -> Tensor:
        self._check_shape(tuple(check_state(x, "x").shape[1:]))
        mean, std = (v.to(x) for v in self._moments(sde, t))
        centred = x - mean
        if self._basis is not None:
            centred = rows(centred) @ self._basis.to(x)
        log_det = torch.log(std).sum() * (x[0].numel() / std.numel())
        return (
            standard_normal_log_prob(centred / std) - log_det
            if math.isfinite(float(log_det))
            else x.new_full((len(x),), -math.inf)
        )

    def std(self, sde: GaussianSDE, t: float | None = None) -> Tensor:
        return self._moments(sde, t)[1].cpu()


def _gaussian(sde: SDE) -> GaussianSDE:
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"Matched carries the moments of the data along a GaussianSDE, and {type(sde).__name__} is a general SDE, "
            "whose prior is its own: leave prior out"
        )
    return sde
