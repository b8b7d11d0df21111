r"""Mixtures with a linear measurement, whose posterior is known, and how far samples are from it.

The prior is the published one of 25 round components of variance 1 at $(8i, 8j)$, $i, j \in \{-2, \dots, 2\}$, repeated
over the coordinates, with weights drawn as squares of normal numbers; the measurement is $A = U \mathrm{diag}(s) V^T$
with sorted uniform $s$ (Cardoso et al., Monte Carlo guided Diffusion for Bayesian linear inverse problems, 2023).

The distance is the sliced 1-Wasserstein distance to exact samples of the posterior. Two exact sets of the same size are
not at 0 either: their mean distance is the floor, and what is reported is the distance over the floor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.sde.level import Level

F64 = torch.float64
SDE = VPSDE(0.1, 40.0)
DIRECTIONS = 200
SETS = 12
"""Exact sets that a method is held against, each; the floor is the mean over all pairs of them."""


class RoundMixture(Denoiser):
    r"""The exact denoiser of round components of variance 1, without an array of components times coordinates.

    $$ \mathrm{data} = \frac{\alpha x + \sigma^2\sum_kr_k\mu_k}{\alpha^2 + \sigma^2}, \quad
       r_k \propto w_k\exp\frac{\alpha\mu_k\cdot x - \alpha^2|\mu_k|^2/2}{\alpha^2 + \sigma^2} $$

    Args:
        sde: Any Gaussian SDE.
        weights: $w_k$, shape `(K,)`.
        means: $\mu_k$, shape `(K, D)`.
    """

    noise_range = 0.0, math.inf
    means: Tensor
    log_weights: Tensor
    squares: Tensor

    def __init__(self, sde: GaussianSDE, weights: Tensor, means: Tensor) -> None:
        super().__init__()
        self.sde, self.shape = sde, tuple(means.shape[1:])
        self.register_buffer("means", means)
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))
        self.register_buffer("squares", means.square().sum(1))
        w = self.log_weights.exp()[:, None]
        centre = (w * means).sum(0)
        self.data_std = float((1 + (w * (means - centre).square()).sum(0)).mean().sqrt())

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        alpha, sigma = at.alpha, at.sigma
        v = alpha * alpha + sigma * sigma
        r = torch.softmax(self.log_weights + (alpha * (x @ self.means.T) - 0.5 * alpha * alpha * self.squares) / v, 1)
        mean = r @ self.means
        return Prediction(
            lambda: (alpha * x + sigma * sigma * mean) / v,
            lambda: sigma / v * (x - alpha * mean),
        )


class Cell(NamedTuple):
    """Size of the data, of the measurement, and its noise."""

    d: int
    d_y: int
    noise: float

    def __str__(self) -> str:
        return f"{self.d}, {self.d_y}, {self.noise:g}"


class Problem(NamedTuple):
    r"""One problem of a cell.

    Attributes:
        model: The exact model of the data.
        a: $A$, shape `(d_y, d)`.
        noise: Its standard deviation.
        y: What was measured, shape `(d_y,)`.
    """

    model: RoundMixture
    a: Tensor
    noise: float
    y: Tensor

    def exact(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` samples of the posterior, shape `(n, d)`."""
        a, s = self.a, self._covariance()
        log_p = self._log_parts()
        k = torch.multinomial(torch.softmax(log_p, 0), n, replacement=True, generator=generator)
        z = torch.randn(n, a.shape[1], generator=generator, dtype=F64)
        e = self.noise * torch.randn(n, len(a), generator=generator, dtype=F64)
        x = self.model.means[k] + z  # of the component; what it would have measured is then moved to what was
        return x + torch.linalg.solve(s, self.y - x @ a.T - e, left=False) @ a

    def log_evidence(self) -> float:
        """Log p(y), in nats."""
        return float(torch.logsumexp(self._log_parts(), 0))

    def _covariance(self) -> Tensor:
        return self.a @ self.a.T + self.noise**2 * torch.eye(len(self.a), dtype=F64)

    def _log_parts(self) -> Tensor:
        gap = self.y - self.model.means @ self.a.T
        law = torch.distributions.MultivariateNormal(torch.zeros(len(self.y), dtype=F64), self._covariance())
        return self.model.log_weights + law.log_prob(gap)


def problem(cell: Cell, seed: int) -> Problem:
    """A problem of a cell."""
    g = torch.Generator().manual_seed(1_000_000 * cell.d_y + 1_000 * cell.d + seed)
    places = torch.tensor([(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)], dtype=F64)
    means = places.repeat(1, cell.d // 2)
    weights = torch.randn(len(means), generator=g, dtype=F64).square()
    model = RoundMixture(SDE, weights, means)
    u, _ = torch.linalg.qr(torch.randn(cell.d_y, cell.d_y, generator=g, dtype=F64))
    v, _ = torch.linalg.qr(torch.randn(cell.d, cell.d_y, generator=g, dtype=F64))
    s = torch.rand(cell.d_y, generator=g, dtype=F64).sort(descending=True).values
    a = (u * s) @ v.T
    k = int(torch.multinomial(weights, 1, generator=g))
    x0 = means[k] + torch.randn(cell.d, generator=g, dtype=F64)
    y = a @ x0 + cell.noise * torch.randn(cell.d_y, generator=g, dtype=F64)
    return Problem(model, a, cell.noise, y)


class Judge:
    """Exact sets of one problem, sorted along directions, and the floor.

    Args:
        exact: The problem.
        n: Samples in a set.
        seed: Of the sets and the directions.
    """

    def __init__(self, exact: Problem, n: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        theta = torch.randn(exact.a.shape[1], DIRECTIONS, generator=g, dtype=F64)
        self.theta = theta / theta.norm(dim=0)
        self.sets = [self._sorted(exact.exact(n, g)) for _ in range(SETS)]
        pairs = [(a - b).abs().mean() for i, a in enumerate(self.sets) for b in self.sets[:i]]
        self.floor = float(torch.stack(pairs).mean())

    def ratio(self, x: Tensor) -> float:
        """The distance of samples, as many as a set has, over the floor; infinite where they are not finite."""
        if not bool(torch.isfinite(x).all()):
            return math.inf
        found = self._sorted(x)
        return float(torch.stack([(found - exact).abs().mean() for exact in self.sets]).mean()) / self.floor

    def _sorted(self, x: Tensor) -> Tensor:
        return (x @ self.theta).sort(dim=0).values
