"""The models of `_problems.py` that the library has not: mixtures with classes, a kernel density, guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion import GaussianSDE
from sde_diffusion.denoiser.analytic import Empirical, GaussianMixture
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class ClassMixture(GaussianMixture):
    """A mixture whose components belong to classes: asked for a `label`, it answers for the components of that class.

    Args:
        sde: Any Gaussian SDE.
        weights: As of a mixture.
        means: As of a mixture, `(K, D)`.
        variances: `(K, D)`.
        classes: Component `k` is of class `k % classes`.
    """

    def __init__(self, sde: GaussianSDE, weights: Tensor, means: Tensor, variances: Tensor, classes: int) -> None:
        super().__init__(sde, weights, means, variances)
        self.owner = torch.arange(len(means)) % classes

    def predict(self, x: Tensor, at: Level, *, label: int | None = None, **cond: object) -> Prediction:
        if label is None:
            return super().predict(x, at, **cond)
        mine = self.owner == label
        part = GaussianMixture(self.sde, self.log_weights[mine].exp(), self.means[mine], self.spread[mine])
        return part.predict(x, at, **cond)


class KernelDensity(Empirical):
    r"""The exact denoiser of points blurred by a round Gaussian of width $h$, without a `(B, n, D)` array.

    At $(\alpha, \sigma)$ the responsibilities are those of the points at the noise
    $\sqrt{\sigma^2 + \alpha^2h^2}$, and the mean of the data is $m + \tfrac{\alpha h^2}{\sigma^2 + \alpha^2h^2}(x -
    \alpha m)$, with $m$ the mean of the points.

    Args:
        sde: Any Gaussian SDE.
        points: `(n, D)`.
        width: $h$.
    """

    def __init__(self, sde: GaussianSDE, points: Tensor, width: float) -> None:
        super().__init__(sde, points)
        self.width = width
        self.data_std = math.hypot(self.data_std, width)

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        h2 = (at.alpha * self.width) ** 2
        total = at.sigma**2 + h2
        mean = super().predict(x, Level(at.t, at.alpha, total**0.5), **cond).data
        off = (x - at.alpha * mean) / total
        return Prediction(lambda: mean + at.alpha * self.width**2 * off, lambda: at.sigma * off)

    def sample(self, n: int, *, seed: int | torch.Generator | None = None) -> Tensor:
        """`n` draws of the data, `(n, D)`."""
        points = super().sample(n, seed=seed)
        noise = torch.Generator().manual_seed(seed + 1) if isinstance(seed, int) else None
        return points + self.width * torch.randn(points.shape, generator=noise, dtype=points.dtype)


class Guided(Wrapper):
    r"""Classifier-free guidance: $D = D_u + w\,(D_c - D_u)$, and the noise alike.

    Args:
        inner: A model that takes `label=`, and answers for all data without.
        scale: $w$; 1 is the model itself.
    """

    careful = True
    cost = 2

    def __init__(self, inner: Denoiser, scale: float) -> None:
        super().__init__(inner)
        self.scale = scale

    def predict(self, x: Tensor, at: Level, *, label: object = None, **cond: object) -> Prediction:
        free, told, w = self.inner.predict(x, at, **cond), self.inner.predict(x, at, label=label, **cond), self.scale
        return Prediction(lambda: torch.lerp(free.data, told.data, w), lambda: torch.lerp(free.noise, told.noise, w))
