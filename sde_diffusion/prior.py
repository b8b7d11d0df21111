"""A prior with the mean and variance of the data, on any Gaussian SDE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._checks import check_state
from sde_diffusion._linear import as_float64, rows
from sde_diffusion.sde import SDE, GaussianSDE, standard_normal_log_prob


class MatchedPrior(GaussianSDE):
    r"""A Gaussian SDE whose prior has the first two moments of $x_t$.

    $$ x_t \sim \mathcal N(\alpha_t\mu,\ \alpha_t^2 C + \sigma_t^2 I) $$

    Exact when the data are Gaussian; for other data it removes the mismatch of mean and scale that a centred prior
    leaves, which matters most for VE and Brownian processes of moderate final noise. Made by `GaussianSDE.matched_to`.

    Args:
        base: The process; its kernel is unchanged, and denoisers made for it fit.
        mean: Mean of the data: a float or a tensor of the event shape.
        variance: A float, a tensor of the event shape, or a covariance `(D, D)` over the flattened event.

    Raises:
        ValueError: A negative variance, a covariance that is not symmetric positive semi-definite, or shapes that do
            not fit.
    """

    def __init__(self, base: GaussianSDE, mean: float | Tensor, variance: float | Tensor) -> None:
        self.base: GaussianSDE = base.base if isinstance(base, MatchedPrior) else base
        self.t_min, self.t_max = base.t_min, base.t_max
        self.time_is_index = base.time_is_index  # type: ignore[misc]
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
        return f"{self.base!r}.matched_to(mean, variance)"

    @property
    def process(self) -> SDE:
        return self.base.process

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.rates(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return self.base.half_log_snr(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return self.base.time_of(lam)

    def _moments(self, t: float | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, of the event shape or a scalar, and standard deviations, along the eigenvectors if there are any."""
        (at,) = self.levels([self.t_max if t is None else t])
        std = torch.sqrt(at.alpha**2 * self._spread + at.sigma**2)
        return (at.alpha * self.mean).to(like), std.to(like)

    def prior(self, z: Tensor, t: float | None = None) -> Tensor:
        mean, std = self._moments(t, check_state(z, "z"))
        if self._basis is None:
            return mean + std * z
        basis = self._basis.to(z)
        # Row by row, not one matrix product: a product's rounding depends on how many rows it has.
        mixed = [basis @ (std * (basis.T @ row)) for row in rows(z)]
        return mean + torch.stack(mixed).reshape(z.shape)

    def prior_log_prob(self, x: Tensor, t: float | None = None) -> Tensor:
        mean, std = self._moments(t, check_state(x, "x"))
        centred = x - mean
        if self._basis is not None:
            centred = rows(centred) @ self._basis.to(x)
        log_det = torch.log(std).sum() * (x[0].numel() / std.numel())
        return (
            standard_normal_log_prob(centred / std) - log_det
            if math.isfinite(float(log_det))
            else x.new_full((len(x),), -math.inf)
        )
