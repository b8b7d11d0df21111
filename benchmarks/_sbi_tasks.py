"""Two tasks of simulation-based inference with exact posteriors, and how far a sampler is from one.

From Lueckmann et al., Benchmarking Simulation-Based Inference, 2021 (appendix T): two moons (T.8) and the Gaussian
mixture (T.7). Both posteriors are sampled exactly here, by rejection, where that paper does the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FOLDS = 5


@dataclass(frozen=True)
class Task:
    """A prior that is uniform in a square, a simulator, and its noise, from which the posterior is drawn.

    Attributes:
        half: Half the side of the square, around zero, in which the prior is uniform.
        noise: Draws of the noise, `(n, generator) -> (n, 2)`.
        placed: The observation at parameters and noise: `(theta, noise) -> x`.
        back: Parameters, each as likely as any other, at which an observation has a noise; NaN where there are none.
        observed: The first three observations of the benchmark, by which others are measured too, (3, 2).
    """

    half: float
    noise: Callable[[int, torch.Generator], Tensor]
    placed: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    observed: tuple[tuple[float, float], ...]

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Parameters, (n, 2)."""
        return self.half * (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Observations, (n, 2)."""
        return self.placed(theta, self.noise(len(theta), generator))

    def posterior(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Exact draws of the parameters at an observation `x` (2,), (n, 2): those inside the square are kept."""
        found, have = [], 0
        while have < n:
            theta = self.back(x, self.noise(n, generator), generator)
            found.append(theta[theta.abs().amax(1) <= self.half])  # NaN is in no square
            have += len(found[-1])
        return torch.cat(found)[:n]


def _crescent(n: int, generator: torch.Generator) -> Tensor:
    a = math.pi * (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5)
    r = 0.1 + 0.01 * torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.stack([r * a.cos() + 0.25, r * a.sin()], 1)


def _mirrored(theta: Tensor, noise: Tensor) -> Tensor:
    u, v = theta.sum(1).abs() / math.sqrt(2), theta.diff(dim=1)[:, 0] / math.sqrt(2)
    return noise + torch.stack([-u, v], 1)


def _unmirrored(x: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    u, v = (noise - x)[:, 0], (x - noise)[:, 1]
    u = torch.where(u >= 0, u, math.nan) * (2 * torch.randint(0, 2, u.shape, generator=generator) - 1)
    return torch.stack([u - v, u + v], 1) / math.sqrt(2)


def _two_widths(n: int, generator: torch.Generator) -> Tensor:
    narrow = torch.rand(n, 1, generator=generator, dtype=torch.float64) < 0.5
    return torch.where(narrow, 0.1, 1.0) * torch.randn(n, 2, generator=generator, dtype=torch.float64)


TASKS = {
    "two moons": Task(
        1.0,
        _crescent,
        _mirrored,
        _unmirrored,
        ((-0.6396706, 0.16234657), (-0.5676688, -0.33194834), (0.0030109584, -0.6457662)),
    ),
    "Gaussian mixture": Task(
        10.0,
        _two_widths,
        torch.add,
        lambda x, noise, _: x - noise,
        ((-9.472713, -1.4950509), (-2.940192, -8.682056), (7.1683364, -3.0470583)),
    ),
}


def c2st(found: Tensor, wanted: Tensor, *, seed: int = 1) -> float:
    """The accuracy of a network that tells two sets of samples apart, on data that it has not seen: .5 is the best.

    As in the benchmark: two hidden layers of ten units for each dimension, five folds, all in units of `wanted`.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, std = wanted.mean(0), wanted.std(0)
    data = torch.cat([(wanted - mean) / std, (found.to(wanted) - mean) / std]).numpy()
    target = np.repeat([0, 1], [len(wanted), len(found)])
    units = 10 * data.shape[1]
    classifier = MLPClassifier((units, units), max_iter=1000, solver="adam", random_state=seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, data, target, cv=folds, scoring="accuracy").mean())
