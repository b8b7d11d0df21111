"""Exact models of a parameter given one observation of it, y = A x0 + noise: what a trained network approximates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class GivenOne(Denoiser):
    """The posterior given `context`, `(B, m)`, of a mixture; the mixture itself without one."""

    careful = True
    per_sample = ("context",)

    def __init__(self, prior: GaussianMixture, a: Tensor, noise: float) -> None:
        super().__init__()
        self.sde, self.shape, self.data_std = prior.sde, prior.shape, prior.data_std
        self.prior, self.a, self.noise, self.calls = prior, a, noise, 0

    def single(self, y: Tensor) -> GaussianMixture:
        return self.prior.posterior(self.a, y, self.noise)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        self.calls += 1
        context: Tensor | None = cond.get("context")
        if context is None:
            return self.prior.predict(x, at)
        found, where = torch.unique(context, dim=0, return_inverse=True)
        data, noise = torch.empty_like(x), torch.empty_like(x)
        for i, y in enumerate(found):
            chosen = where == i
            timed = isinstance(at.t, Tensor) and at.t.numel() > 1
            level = self.sde.level(at.t.reshape(-1)[chosen], x[chosen]) if timed else at
            p = self.single(y).predict(x[chosen], level)
            data[chosen], noise[chosen] = p.data, p.noise
        return Prediction(lambda: data, lambda: noise)


class GaussianGivenOne(GivenOne):
    """The same of one Gaussian, whose single posteriors have one covariance, for any number of observations at once."""

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        self.calls += 1
        context: Tensor | None = cond.get("context")
        if context is None:
            return self.prior.predict(x, at)
        one = self.single(context[0])
        centre = GaussianMixture(self.sde, torch.ones(1), torch.zeros_like(one.means), _covariance(one)[None]).to(x)
        gain = _covariance(one) @ self.a.T / self.noise**2
        mean = one.means[0] + (context - context[0]) @ gain.T
        p = centre.predict(x - at.alpha * mean, at)
        return Prediction(lambda: p.data + mean, lambda: p.noise)


def _covariance(one: GaussianMixture) -> Tensor:
    assert one.basis is not None
    return (one.basis[0] * one.spread[0]) @ one.basis[0].mT


def product(prior: GaussianMixture, a: Tensor, ys: Tensor, noise: float) -> GaussianMixture:
    """The exact posterior given all observations `ys`, `(n, m)`, by measuring them all at once."""
    return prior.posterior(a.repeat(len(ys), 1), ys.reshape(-1), noise)
