r"""One state as a rule sees it: the prediction, its Jacobian and the measurement, all in units of the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.guidance.posterior.algebra import gaussian, krylov, products, wide
from sde_diffusion.guidance.posterior.likelihood import GaussianLikelihood
from sde_diffusion.sde.level import Level, Scalar

DENSE = 256
"""The most numbers in a measurement that `Moments` forms a matrix for: a product with the Jacobian for each."""
EIGEN = 1024
"""The most for which the matrix of a measurement is taken apart once, for `PseudoInverse` and `JacobianFree`."""
STEPS = 64
"""Steps of conjugate gradients above that, which ask no network."""


@dataclass(frozen=True)
class View:
    r"""One state, as a rule sees it, all in units of the noise of the measurement.

    Args:
        z: The state, shape `(B, *)`, which the prediction has a graph to if the rule wants one.
        prior: The prediction there.
        at: The level.
        data_std: Standard deviation of the data, as far as the model knows it.
        likelihood: The measurement and its noise.
        r: Residual $(y - A(m))/\sigma_y$, shape `(B, d)`.
        spectrum: What `spectrum` found, if the rule wants it.
    """

    z: Tensor
    prior: Prediction
    at: Level
    data_std: float
    likelihood: GaussianLikelihood
    r: Tensor
    spectrum: Spectrum | None

    @property
    def mean(self) -> Tensor:
        """$m$, shape `(B, *)`."""
        return self.prior.data

    @property
    def gain(self) -> Scalar:
        r"""$\sigma^2/\alpha$: a float, or shape `(B, 1)`."""
        return column(self.at.sigma * self.at.sigma / self.at.alpha)

    def pulled(self, v: Tensor) -> Tensor:
        r"""$\frac{\sigma^2}{\alpha}J^Tv$ for several $v$: `(k, B, D)` -> same."""
        found = products(self.mean, self.z, v.reshape(len(v), *self.mean.shape))
        return found.flatten(2) * self.gain

    def back(self, u: Tensor) -> Tensor:
        r"""$A^Tu$: `(B, d)` -> `(B, D)`."""
        return rows(self.likelihood.back(u, self.mean))

    def ahead(self, v: Tensor) -> Tensor:
        r"""$A\,v$: `(B, D)` -> `(B, d)`."""
        return self.likelihood.ahead(v.reshape(self.mean.shape), self.mean)

    def spread(self, r2: float | Callable[[Any], Any] | None) -> Scalar:
        r"""$r^2$, by default $c^2\sigma^2/(\alpha^2c^2 + \sigma^2)$: a float, or shape `(B, 1)`."""
        if callable(r2):
            return column(r2(self.at.ratio))
        if r2 is not None:
            return float(r2)
        c2, s2 = self.data_std**2, self.at.sigma**2
        return column(c2 * s2 / (self.at.alpha**2 * c2 + s2))


class Spectrum(NamedTuple):
    r"""$A A^T = Q\Lambda Q^T$ in units of the noise.

    Attributes:
        values: $\Lambda$, shape `(d,)`.
        vectors: $Q$, shape `(d, d)`; None for the identity.
    """

    values: Tensor
    vectors: Tensor | None


def spectrum(likelihood: GaussianLikelihood, like: Tensor) -> Spectrum | None:
    """What a linear measurement is made of; None for one that is not linear, or too large to take apart."""
    if not likelihood.measurement.linear:
        return None
    std = likelihood.std.to(like.device)
    diagonal = likelihood.measurement.diagonal(like.new_zeros(likelihood.shape))
    if diagonal is not None:
        return Spectrum(wide(diagonal.reshape(-1)) / wide(std).square(), None)
    if likelihood.size > EIGEN:
        return None
    a = wide(likelihood.rows(like)[0])
    return Spectrum(*torch.linalg.eigh(a @ a.mT))


def isotropic(view: View, r2: Scalar) -> tuple[Tensor, Tensor | None]:
    r"""$(I + r^2AA^T)^{-1}r$ and $\log\mathcal N(r; 0, I + r^2AA^T)$ where it is found.

    Args:
        view: A state.
        r2: $r^2$, a float or shape `(B, 1)`.
    """
    known, r = view.spectrum, view.r
    if known is not None:
        s = 1 + r2 * known.values
        inside = wide(r) if known.vectors is None else wide(r) @ known.vectors
        u = inside / s
        log_p = -0.5 * (inside * u + torch.log(s) + math.log(2 * math.pi)).sum(1)
        return (u if known.vectors is None else u @ known.vectors.mT).to(r), log_p
    if view.likelihood.size <= DENSE:
        a = wide(view.likelihood.rows(view.mean))
        m = a @ a.mT
        u, log_p = gaussian(m * (r2 if isinstance(r2, float) else r2[..., None]), r)
        return u.to(r), log_p

    def product(q: Tensor) -> tuple[Tensor, Tensor]:
        return q, view.ahead(view.back(q)) * r2

    return krylov(product, r, min(STEPS, view.likelihood.size))[0], None


def column(value: Any) -> Scalar:
    """A float, or a tensor `(B, 1)` where time differs per sample."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) and value.ndim else value
