r"""Data within bounds: $p(x_0 \mid low \le A(x_0) \le high)$."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import is_real
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.posterior.algebra import products, wide
from sde_diffusion.guidance.posterior.likelihood import GaussianLikelihood
from sde_diffusion.guidance.posterior.measurement import Measurement
from sde_diffusion.guidance.posterior.posterior import like_of
from sde_diffusion.guidance.posterior.view import DENSE, column, cut, mended
from sde_diffusion.guidance.twisted import Look, Twisted, graph_of, without_graph
from sde_diffusion.sde.level import Level

FLOOR = 1e-4
"""The least variance of a measurement, relative to that of data without structure, $r^2|a|^2$."""
FAR = 1e8
"""As far as bounds count, in standard deviations."""
NONE = 1e12
"""What stands for an open side: a number, since a derivative times infinity is none."""


class Within(Twisted):
    r"""A model of data that are known to lie within bounds.

    $$ \psi = \prod_i\Big[\Phi\Big(\frac{h_i - (Am)_i}{s_i}\Big) - \Phi\Big(\frac{l_i - (Am)_i}{s_i}\Big)\Big], \quad
       s^2 = \operatorname{diag}\Big(A\,\tfrac{\sigma^2}{\alpha}J\,A^T\Big) $$

    with the mean $m$ of the data given the state and the Jacobian $J$ of the model, as in `Moments`: exact for one
    bound on Gaussian data. Several are taken as independent given the state. Costs as many products with the Jacobian
    as numbers are bounded. Samples come close to the bounds and may cross them by the error of the last level; a
    `ParticleSampler` weighs them by the bounds themselves.

    Args:
        model: The model of $p(x_0)$, which knows its event shape.
        measurement: $A$, such as `Matrix`, `Mask` or `Nonlinear`.
        low: Lower bounds $l$, a number or of the shape of the measurement; None, or -inf, for none.
        high: Upper bounds $h$.

    Raises:
        TypeError: Not a `Denoiser` or a measurement; bounds that are no numbers.
        ValueError: No bound, bounds that are not `low < high` or of another shape; more than 256 numbers bounded.

    Example:
        >>> model = Within(prior, Matrix(torch.eye(2)), low=0.0)  # both coordinates positive
    """

    of_data = True

    def __init__(
        self,
        model: Denoiser,
        measurement: Measurement,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
    ) -> None:
        super().__init__(model)
        self.likelihood = GaussianLikelihood(measurement, 1.0, like_of(model, "Within"))
        if low is None and high is None:
            raise ValueError("low and high are both None, which bounds nothing: give one")
        size = self.likelihood.size
        if size > DENSE:
            raise ValueError(
                f"Within takes a product with the Jacobian for each number bounded, and these are {size}, more than "
                f"{DENSE}: bound fewer"
            )
        down, up = self._side(low, "low", -math.inf), self._side(high, "high", math.inf)
        if not bool((down < up).all()):
            raise ValueError(f"wanted low < high everywhere, got low={low!r} and high={high!r}")
        self.likelihood.register_buffer("low", down, persistent=False)
        self.likelihood.register_buffer("high", up, persistent=False)
        self.vjps = model.vjps + size
        self.silent = not size
        if self.silent:
            self.kind = model.kind

    def _side(self, value: float | Tensor | None, name: str, none: float) -> Tensor:
        """A bound, shape `(d,)`."""
        shape, std = self.likelihood.shape, self.likelihood.std
        if value is None:
            value = none
        if not isinstance(value, Tensor):
            if not is_real(value):
                raise TypeError(f"{name} must be a number, a tensor or None, got {value!r}")
            return torch.full_like(std, float(value)).expand(self.likelihood.size).clone()
        if value.ndim and tuple(value.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {shape}, as is measured, or a number")
        return value.detach().to(std).expand(shape).reshape(-1).clone()

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low: Any = self.likelihood.low
        high: Any = self.likelihood.high
        return wide(low.to(x.device)), wide(high.to(x.device))

    def weigh(self, x: Tensor, at: Level, **cond: Any) -> Look:
        z, prior = graph_of(self.inner, x, at, cond)
        mean, (low, high) = prior.data, (side.clamp(-NONE, NONE) for side in self._bounds(x))
        a = self.likelihood.rows(mean)
        v = a.transpose(0, 1).expand(-1, len(x), -1).reshape(-1, *mean.shape)
        gain, alpha2, sigma2 = at.sigma**2 / at.alpha, at.alpha**2, at.sigma**2
        g = (products(mean, z, v) * gain).flatten(2).transpose(0, 1)
        c2 = self.data_std**2
        r2 = column(c2 * sigma2 / (alpha2 * c2 + sigma2))
        g = mended(g, a, r2, self.data_std)
        loose = a.square().sum(2) * r2
        variance = torch.maximum((a * g).sum(2), FLOOR * loose)
        s = wide(variance).sqrt()
        centre = wide(rows(self.measurement(mean)))
        log_z, slope = interval((low - centre) / s, (high - centre) / s)
        u = (slope / s).to(g)
        shift = torch.einsum("bd,bdi->bi", u, g)
        shift = cut(shift, (u * torch.einsum("bdi,bi->bd", a.expand_as(g), shift)).sum(1), self.data_std)
        return Look(without_graph(prior), shift.reshape(x.shape), log_z.sum(1).to(x))

    @property
    def measurement(self) -> Measurement:
        """What is bounded."""
        return self.likelihood.measurement

    def log_likelihood(self, x0: Tensor, **cond: Any) -> Tensor:
        low, high = self._bounds(x0)
        found = wide(rows(self.measurement(x0)))
        inside = ((found >= low) & (found <= high)).all(1)
        return torch.where(inside, 0.0, -math.inf).to(x0)

    def __repr__(self) -> str:
        low, high = (_said(side) for side in self._bounds(self.likelihood.std))
        return f"Within(model, {self.measurement!r}, low={low}, high={high})"


def _said(side: Tensor) -> str:
    return f"{float(side[0]):g}" if len(side) and bool((side == side[0]).all()) else f"tensor of {len(side)} numbers"


def interval(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\log(\Phi(b) - \Phi(a))$ and its derivative along $-(1, 1)$, $(\varphi(a) - \varphi(b))/(\Phi(b) - \Phi(a))$.

    In the tail that both lie in, whichever it is, so that neither cancels.
    """
    a, b = a.clamp(-FAR, FAR), b.clamp(-FAR, FAR)
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    top = torch.special.log_ndtr(b)
    log_z = top + torch.log(-torch.expm1(torch.special.log_ndtr(a) - top))
    half = 0.5 * math.log(2 * math.pi)
    slope = torch.exp(-0.5 * a * a - half - log_z) - torch.exp(-0.5 * b * b - half - log_z)
    return log_z, torch.where(flip, -slope, slope)
