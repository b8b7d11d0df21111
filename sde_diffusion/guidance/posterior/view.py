r"""One state as a rule sees it: the prediction, its Jacobian and the measurement, all in units of the noise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import is_real
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
MOST = 16.0
"""The largest eigenvalue of a covariance of the data given a state, in units of the variance of all data together."""

SLACK = 0.05
"""How negative a variance may be by rounding, and be taken for 0, in units of that of data without structure."""
RANK = 1e-12
"""Eigenvalues of a measurement below this, relative to the largest, are none."""


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

    def bounded(self, shift: Tensor, u: Tensor, *, over: float = 1.0) -> Tensor:
        r"""A shift $\Delta = VA^Tu$, cut to the length that a covariance $V$ can give it, and to the measurement.

        $$ |\Delta|^2 \le \lVert V\rVert\,u^TA\,\Delta, \quad \lVert V\rVert \le 16\,D\,c^2, \quad
           u^TA\,\Delta \le k\,u^Tr $$

        The last holds by itself, with $k = 1$, where $u = (AVA^T + 1)^{-1}r$. Rules with another $u$ would shoot over
        where $V$ is larger than they take it for, and away on networks. The others hold for every exact model. The
        Jacobian of a network errs, and $\sigma^2/\alpha$ makes of a small error at much noise a $V$ that is no
        covariance: negative, or hundreds of times the variance of the data.

        Args:
            shift: $\Delta$, shape `(B, D)`.
            u: $u$, shape `(B, d)`.
            over: $k$, how far it may go in units of the way to the measurement.
        """
        shift = cut(shift, (u * self.ahead(shift)).sum(1), self.data_std)
        power, reach = (u * self.ahead(shift)).sum(1), over * (u * self.r).sum(1)
        far = (power > reach) & (reach > 0)
        return shift * torch.where(far, reach / torch.where(far, power, 1.0), 1.0)[:, None]

    def spread(self, r2: float | Callable[[Any], Any] | None) -> Scalar:
        r"""$r^2$, by default $c^2\sigma^2/(\alpha^2c^2 + \sigma^2)$: a float, or shape `(B, 1)`."""
        if callable(r2):
            return column(_spread(r2(self.at.ratio)))
        if r2 is not None:
            return float(r2)
        c2, s2 = self.data_std**2, self.at.sigma**2
        return column(c2 * s2 / (self.at.alpha**2 * c2 + s2))


def mended(g: Tensor, a: Tensor, r2: Scalar, data_std: float) -> Tensor:
    r"""$AV$ where $V$ is a covariance in the row space of $A$; $r^2$ stands for it along those axes where it is none.

    $$ AV' = AV - T^T(AV - r^2A), \quad T^T = \sum_kAA^Tb_kb_k^T $$

    over the eigenvectors $A^Tb_k$ of $V$ there whose value is negative, or above the limit of `View.bounded`. An exact
    model comes back as it is. $T$ is not differentiated, which is warned of where gradients are on.

    Args:
        g: $AV$, shape `(B, d, D)`.
        a: $A$, shape `(B, d, D)` or `(1, d, D)`.
        r2: $r^2$, a float or shape `(B, 1)`.
        data_std: $c$.
    """
    r2 = r2 if isinstance(r2, float) else r2[..., None]
    most = MOST * g.shape[2] * data_std**2
    with torch.no_grad():
        m, both = wide(g) @ wide(a).mT, wide(a) @ wide(a).mT
        m = 0.5 * (m + m.mT)
        if _is_positive(m + SLACK * r2 * both) and _is_positive(most * both - m):
            return g
        values, vectors = torch.linalg.eigh(both)
        kept = values > RANK * values[:, -1:]
        white = vectors * (torch.where(kept, values, 1.0).rsqrt() * kept)[:, None]
        variances, axes = torch.linalg.eigh(torch.nan_to_num(white.mT @ m @ white))
        wrong = (variances[:, None] < -SLACK * r2) | (variances[:, None] > most)
        b = white @ axes
        t = ((b * wrong) @ (b.mT @ both)).to(g)
    if torch.is_grad_enabled() and bool(wrong.any()):  # a row that is lost has nothing mended
        warnings.warn(
            "at this noise the Jacobian of the network is no covariance, and what the rule puts in its place is not "
            "differentiated: the density of this posterior, and gradients through it, are approximate",
            UserWarning,
            stacklevel=2,
        )
    return g - t.mT @ (g - a * r2)


def _is_positive(m: Tensor) -> bool:
    """Whether symmetric matrices `(B, d, d)` have no negative eigenvalue, but for rounding."""
    least = RANK * m.diagonal(dim1=1, dim2=2).abs().mean(1)
    eye = torch.eye(m.shape[1], dtype=m.dtype, device=m.device)
    return bool((torch.linalg.cholesky_ex(m + least[:, None, None] * eye).info == 0).all())


def cut(shift: Tensor, power: Tensor, data_std: float) -> Tensor:
    r"""The shift of `View.bounded`, of which $u^TA\,\Delta$ is known.

    Args:
        shift: $\Delta = VA^Tu$, shape `(B, D)`.
        power: $u^TA\,\Delta$, shape `(B,)`.
        data_std: $c$.
    """
    square, allowed = shift.square().sum(1), MOST * shift.shape[1] * data_std**2 * power
    long = square > allowed  # false for NaN, which stays
    some = long & (allowed > 0)
    factor = torch.where(some, allowed, 1.0).div(torch.where(some, square, 1.0)).sqrt()
    return shift * factor.masked_fill(long & ~some, 0.0)[:, None]


def covariant(shift: Tensor, pull: Tensor, at: Level, data_std: float) -> Tensor:
    r"""A shift $\Delta = Vw$ along the gradient $w$ of a reward, as a covariance $V$ can make it: `mended`, and `cut`.

    Args:
        shift: $\Delta$, shape `(B, D)`.
        pull: $w$, shape `(B, D)`.
        at: The level.
        data_std: $c$.
    """
    c2, s2 = data_std**2, at.sigma**2
    shift = mended(shift[:, None], pull[:, None], column(c2 * s2 / (at.alpha**2 * c2 + s2)), data_std)[:, 0]
    return cut(shift, (pull * shift).sum(1), data_std)


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


def _spread(value: object) -> Scalar:
    """Returns what a function for $r^2$ answered, if it is a variance, or one for each sample."""
    if isinstance(value, Tensor) and value.is_floating_point():
        if bool((torch.isfinite(value) & (value >= 0)).all()):
            return value
    elif not is_real(value):
        raise TypeError(f"r2 as a function must answer a number, a variance in units of the data, got {value!r}")
    elif 0 <= value < math.inf:
        return float(value)
    raise ValueError(f"r2 as a function answered {value!r}, wanted a variance: finite and at least 0")


def column(value: Any) -> Scalar:
    """A float, or a tensor `(B, 1)` where time differs per sample."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) and value.ndim else value
