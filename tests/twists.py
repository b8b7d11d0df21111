"""Exact targets for particles: a linear measurement of a mixture, and a product of powers of mixtures in 1-D."""

from __future__ import annotations

import math

import torch

from sde_diffusion import VPSDE, Denoiser, Prediction
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance import Matrix, Posterior, Product

SDE = VPSDE(0.1, 40)


def given(model, a, noise, **options):
    """`y = A x0 + s eps`."""
    return Posterior(model, Matrix(a), noise, **options)


class Powers(Denoiser, Product):
    """The product of powers of models."""

    careful = True

    def __init__(self, models, powers):
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.each = models
        self.sde, self.shape, self.data_std = models[0].sde, models[0].shape, models[0].data_std
        self.cost, self._powers = len(models), tuple(powers)

    @property
    def powers(self):
        return self._powers

    def parts(self, x, at, **cond):
        return tuple(model.predict(x, at) for model in self.each)

    def predict(self, x, at, **cond):
        noise = sum(g * p.noise for g, p in zip(self._powers, self.parts(x, at), strict=True))
        return Prediction(lambda: (x - at.sigma * noise) / at.alpha, lambda: noise)


def measured(d, rows, noise, seed, sde=SDE):
    """25 components of unit covariance on a plane grid, repeated over `d` coordinates, and a measurement of a draw."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)], dtype=torch.float64)
    prior = GaussianMixture(sde, torch.softmax(randn(25), 0), means.repeat(1, d // 2), 1.0)
    u, v = torch.linalg.qr(randn(rows, rows)).Q, torch.linalg.qr(randn(d, d)).Q[:, :rows]
    a = (u * torch.rand(rows, generator=generator, dtype=torch.float64).sort(descending=True).values) @ v.T
    y = (prior.sample(1, seed=generator) @ a.T)[0] + noise * randn(rows)
    return prior, a, y


def line(weights, means, variance, sde=SDE):
    """A mixture in one dimension."""
    means = torch.tensor(means, dtype=torch.float64)[:, None]
    return GaussianMixture(sde, torch.tensor(weights, dtype=torch.float64), means, variance)


def product_on_a_line(models, powers):
    """The product of powers of mixtures in one dimension, by quadrature: nodes, their probabilities, log-integral."""
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    log_p = sum(g * model.data_log_prob(x[:, None]) for g, model in zip(powers, models, strict=True))
    return x, torch.softmax(log_p, 0), float(torch.logsumexp(log_p, 0)) + math.log(x[1] - x[0])
