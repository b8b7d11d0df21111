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

    per_sample = ("image", "haze")
    noise_range = 0.0, float("inf")

    def __init__(self, mean, covariance, low, sde=SDE):
        super().__init__()
        self.sde, self.shape, self.low = sde, tuple(mean.shape), low
        self.mean, self.covariance = torch.nn.Buffer(mean), torch.nn.Buffer(covariance)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        image, haze = cond["image"], cond.get("haze")
        z = self.low.shrink(image)
        s = torch.zeros(len(x), 1, dtype=WIDE) if haze is None else (haze + 1) / 2 * self.low.most
        data = []
        for row, (m, c) in zip(x, self._laws(image, z, s), strict=True):
            v = torch.linalg.inv(at.alpha**2 * c + at.sigma**2 * torch.eye(len(m), dtype=WIDE))
            data.append((m + at.alpha * c @ v @ (row.flatten() - at.alpha * m)).reshape(row.shape))
        found = torch.stack(data)
        return Prediction(lambda: found, lambda: (x - at.alpha * found) / at.sigma)

    def _laws(self, image, z, s):
        for row, low, level in zip(image, z, s, strict=True):
            m, c = conditional(self.mean, self.covariance, self.low, low, level)
            yield ((m - row.flatten()) / self.low.residual, c / self.low.residual**2) if self.low.residual else (m, c)


class Batched(Told):
    """The same for one level for all, without a loop."""

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        image, haze = cond["image"], cond.get("haze")
        s = 0.0 if haze is None else float(haze[0, 0] + 1) / 2 * self.low.most
        p, c = pooling(self.low, self.shape), self.covariance
        gain = c @ p.T @ torch.linalg.inv(p @ c @ p.T + s**2 * torch.eye(len(p), dtype=WIDE))
        left = c - gain @ p @ c
        m = self.mean.flatten() + (self.low.shrink(image).flatten(1) - p @ self.mean.flatten()) @ gain.T
        if self.low.residual:
            m, left = (m - image.flatten(1)) / self.low.residual, left / self.low.residual**2
        v = torch.linalg.inv(at.alpha**2 * left + at.sigma**2 * torch.eye(len(left), dtype=WIDE))
        found = (m + at.alpha * (x.flatten(1) - at.alpha * m) @ (left @ v).T).reshape(x.shape)
        return Prediction(lambda: found, lambda: (x - at.alpha * found) / at.sigma)


def stage(law, low, *, level=0.2, kind: type[Told] = Batched, **options):
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


__all__ = ["SDE", "Batched", "Told", "cascade", "conditional", "gaussian", "pooling", "stage"]
