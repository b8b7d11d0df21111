"""The cells of the posterior benchmark: mixtures whose posterior and evidence are exact, and guidance that tilts them.

The prior is that of Cardoso et al., Monte Carlo guided Diffusion for Bayesian linear inverse problems, 2023: 25
components of unit covariance at (-8 i, -8 j), repeated over all coordinates, seen through a matrix of sorted singular
values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance import Matrix, Posterior
from sde_diffusion.particles import Particles, ParticleSampler

SDE = VPSDE(0.1, 40.0)
DIRECTIONS, SETS = 1000, 4
FLOAT = torch.float64


@dataclass(frozen=True, eq=False)
class Cell:
    """One problem: a prior, a measurement, and what is exact of them.

    Attributes:
        prior: The prior.
        a: The matrix, `(d_y, d)`.
        y: What is measured, `(d_y,)`.
        noise: Its noise.
    """

    prior: GaussianMixture
    a: Tensor
    y: Tensor
    noise: float

    @classmethod
    def of(cls, d: int, rows: int, noise: float, seed: int) -> Cell:
        """The problem of a seed: weights, matrix, data and noise are drawn from one stream."""
        g = torch.Generator().manual_seed(seed)
        grid = range(-2, 3)
        means = torch.tensor([[-8.0 * i, -8.0 * j] for i in grid for j in grid], dtype=FLOAT).repeat(1, d // 2)
        weights = torch.softmax(torch.randn(25, generator=g, dtype=FLOAT), 0)
        u = torch.linalg.qr(torch.randn(rows, rows, generator=g, dtype=FLOAT)).Q
        v = torch.linalg.qr(torch.randn(d, rows, generator=g, dtype=FLOAT)).Q
        scale = torch.rand(rows, generator=g, dtype=FLOAT).sort(descending=True).values
        prior, a = GaussianMixture(SDE, weights, means, 1.0), (u * scale) @ v.T
        y = (prior.sample(1, seed=g) @ a.T)[0] + noise * torch.randn(rows, generator=g, dtype=FLOAT)
        return cls(prior, a, y, noise)

    @property
    def target(self) -> Posterior:
        """The model given the measurement, by moments."""
        return Posterior(self.prior, Matrix(self.a), self.noise)

    @property
    def log_evidence(self) -> float:
        """The exact evidence, in nats."""
        return self.prior.log_evidence(self.a, self.y, self.noise)

    def distance(self, x: Tensor) -> float:
        """The sliced distance of samples `(n, d)` to the posterior, over that of exact samples to each other."""
        exact = self.prior.posterior(self.a, self.y, self.noise)
        sets = [exact.sample(len(x), seed=seed) for seed in range(2 * SETS)]
        floor = sum(sliced(a, b) for a, b in zip(sets[:SETS], sets[SETS:], strict=True)) / SETS
        return sum(sliced(x, other) for other in sets) / len(sets) / floor

    def particles(self, systems: int, particles: int, steps: int, seed: int, **options: object) -> Particles:
        """Particles of the posterior."""
        sampler = ParticleSampler(SDE, self.target, particles=particles, steps=steps, **options)  # type: ignore[arg-type]
        return sampler.sample(systems, seed=seed, y=self.y)


def sliced(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Sliced 1-Wasserstein distance of two sets of equally many samples, over `DIRECTIONS` directions."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(x.shape[1], DIRECTIONS, generator=g, dtype=FLOAT)
    theta /= theta.norm(dim=0)
    return float(((x @ theta).sort(0).values - (y @ theta).sort(0).values).abs().mean())


@dataclass(frozen=True, eq=False)
class Tilt:
    """A class and all data, as two mixtures, and the exact law that a guidance scale means.

    Attributes:
        given: The model of one class.
        every: The model of all data.
    """

    given: GaussianMixture
    every: GaussianMixture

    @classmethod
    def of(cls, d: int) -> Tilt:
        """Three modes in a row, or five on a circle, of which the class prefers some."""
        if d == 1:
            means = torch.tensor([[-2.0], [0.0], [2.0]], dtype=FLOAT)
            shares = torch.tensor([0.1, 0.2, 0.7], dtype=FLOAT), torch.tensor([0.3, 0.4, 0.3], dtype=FLOAT)
        else:
            angle = torch.arange(5, dtype=FLOAT) * (2 * math.pi / 5)
            means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
            shares = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=FLOAT), torch.full((5,), 0.2, dtype=FLOAT)
        given, every = (GaussianMixture(SDE, share, means, 0.25) for share in shares)
        return cls(given, every)

    def exact(self, w: float, n: int, seed: int, width: int = 601) -> tuple[Tensor, float]:
        """Draws of the law tilted by a scale, `(n, d)`, uniform in the cells of a grid, and the log of its integral."""
        d = self.every.means.shape[1]
        axis = torch.linspace(-6.0, 6.0, width if d > 1 else 100 * width, dtype=FLOAT)
        nodes = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
        log_p = w * self.given.data_log_prob(nodes) + (1 - w) * self.every.data_log_prob(nodes)
        g, step = torch.Generator().manual_seed(seed), float(axis[1] - axis[0])
        total = torch.softmax(log_p, 0).cumsum(0)
        at = torch.searchsorted(total, torch.rand(n, generator=g, dtype=FLOAT)).clamp_max(len(nodes) - 1)
        draws = nodes[at] + step * (torch.rand(n, d, generator=g, dtype=FLOAT) - 0.5)
        return draws, float(torch.logsumexp(log_p, 0)) + d * math.log(step)

    def distance(self, w: float, x: Tensor) -> float:
        """The sliced distance of samples `(n, d)` to the tilted law, over that of exact samples to each other."""
        sets = [self.exact(w, len(x), seed)[0] for seed in range(2 * SETS)]
        floor = sum(sliced(a, b) for a, b in zip(sets[:SETS], sets[SETS:], strict=True)) / SETS
        return sum(sliced(x, other) for other in sets) / len(sets) / floor
