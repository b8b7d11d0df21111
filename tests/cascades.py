"""Stages that know the law of high resolutions given a low one exactly, on Gaussian data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_diffusion import Denoiser, Level, Prediction, SDESampler, analytic
from sde_diffusion.cascade import Cascade, Upsampler
from sde_diffusion.sde import schedules

WIDE = torch.float64
SDE = schedules.EDMSDE(0.002, 80.0)


def gaussian(shape, seed=0):
    """A mean and a covariance of data of an event shape, of standard deviation about 1."""
    generator, d = torch.Generator().manual_seed(seed), torch.Size(shape).numel()
    root = torch.randn(d, d, generator=generator, dtype=WIDE) / d**0.5
    return torch.randn(shape, generator=generator, dtype=WIDE), root @ root.T + 0.2 * torch.eye(d, dtype=WIDE)


def pooling(low, shape):
    """P of `low.shrink`, shape (m, d), column by column."""
    unit = torch.eye(torch.Size(shape).numel(), dtype=WIDE).reshape(-1, *shape)
    return low.shrink(unit).flatten(1).T


def conditional(mean, covariance, low, z, s):
    """Mean (d,) and covariance (d, d) of the data given one z = P x + s eps, by the textbook."""
    p = pooling(low, mean.shape)
    gain = covariance @ p.T @ torch.linalg.inv(p @ covariance @ p.T + s**2 * torch.eye(len(p), dtype=WIDE))
    return mean.flatten() + gain @ (z.flatten() - p @ mean.flatten()), covariance - gain @ p @ covariance


class Told(Denoiser):
    """The exact denoiser of N(mean, covariance) told a low resolution; of the residual, if that is what is answered."""

    per_sample: tuple[str, ...] = ("image", "haze")
    noise_range = 0.0, float("inf")

    def __init__(self, mean, covariance, low, sde=SDE):
        super().__init__()
        self.sde, self.shape, self.low = sde, tuple(mean.shape), low
        self.mean, self.covariance = torch.nn.Buffer(mean), torch.nn.Buffer(covariance)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        mean, c = self.law(cond["image"], cond.get("haze"))
        if self.low.residual:
            mean, c = (mean - cond["image"].flatten(1)) / self.low.residual, c / self.low.residual**2
        alpha, sigma = (torch.as_tensor(v, dtype=WIDE).reshape(-1, 1) for v in (at.alpha, at.sigma))
        v = torch.linalg.inv(alpha[..., None] ** 2 * c + sigma[..., None] ** 2 * torch.eye(c.shape[-1], dtype=WIDE))
        data = (mean + alpha * _times(c @ v, x.flatten(1) - alpha * mean)).reshape(x.shape)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)

    def law(self, image, haze=None):
        """Mean (B, d) and covariance (B, d, d) of data given what is told of them; one covariance where haze is one."""
        s = torch.zeros(1, 1, dtype=WIDE) if haze is None else (haze + 1) / 2 * self.low.most
        s = s[:1] if bool((s == s[:1]).all()) else s
        p, c, mean = pooling(self.low, self.shape), self.covariance, self.mean.flatten()
        gain = c @ p.T @ torch.linalg.inv(p @ c @ p.T + s[..., None] ** 2 * torch.eye(len(p), dtype=WIDE))
        return mean + _times(gain, self.low.shrink(image).flatten(1) - p @ mean), c - gain @ p @ c


def _times(matrix, rows):
    """Each row by its matrix, or by the one of all."""
    return rows @ matrix[0].T if len(matrix) == 1 else (matrix @ rows[..., None])[..., 0]


def stage(law, low, *, level=0.2, kind: type[Told] = Told, **options):
    mean, covariance = law
    model = kind(mean, covariance, low)
    return Upsampler(SDESampler(SDE, model, **options), low, level=level)


def cascade(lows, shape=(1, 8), levels=0.2, **options):
    """Exact stages of Gaussian data of a shape, whose low resolutions are made one from the other; and all their laws.

    Returns:
        The cascade; the mean and the covariance at each of its resolutions, the coarsest first.
    """
    laws = [gaussian(shape)]
    for low in reversed(lows):
        mean, covariance = laws[0]
        p = pooling(low, mean.shape)
        laws.insert(0, (low.shrink(mean[None])[0], p @ covariance @ p.T))
    base = SDESampler(SDE, analytic.Gaussian(SDE, *laws[0]), **options)
    ups = [stage(law, low, level=levels, **options) for law, low in zip(laws[1:], lows, strict=True)]
    return Cascade([base, *ups]), laws


__all__ = ["SDE", "Told", "cascade", "conditional", "gaussian", "pooling", "stage"]
