r"""The angle coordinate: a Gaussian SDE on a quarter circle, through which any other can be seen.

With $c$ the standard deviation of the data and $u = \arctan(\sigma / (\alpha c)) \in [0, \pi/2]$, the
variance-normalised state

$$ y = \frac{x}{\sqrt{\alpha^2c^2 + \sigma^2}} = \frac{\cos u}{c}\,x_0 + \sin u\;\varepsilon $$

is again a Gaussian process, regular at both ends, whose probability flow stands still for data $\mathcal N(0, c^2
I)$. So the coordinate is an SDE like any other: the wrapper `Angle` steps in it, the likelihood is integrated in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_positive
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level

MUCH_NOISE = 6.0
"""The logarithm of the noise over the data from which `balance` takes no notice of more."""


def balance(u: np.ndarray, rate: float = 0.05, power: float = 2.0) -> np.ndarray:
    r"""$z = (2u/\pi)^{1/p} + \tfrac r2\log(1 + \min(\tan u, e^6)^2)$: a coordinate for steps, 0 at zero noise.

    Near the data it goes by the angle, with $p > 1$ denser the less noise there is. In noise above the data, where the
    angle hardly moves, it goes by the logarithm of the noise: a network that is told that, or whose error in the noise
    is an error $\sigma/\alpha$ times as large in the data, varies with it.

    Args:
        u: Angles in $[0, \pi/2]$.
        rate: $r$, what a factor of $e$ of noise counts beside the whole of the angle.
        power: $p$.
    """
    z: np.ndarray = (2 / math.pi * u) ** (1 / power) - rate * np.log(np.maximum(np.cos(u), math.exp(-MUCH_NOISE)))
    return z


@dataclass(frozen=True)
class AngleSDE(GaussianSDE):
    r"""$\alpha(u) = \cos(u)/c$, $\sigma(u) = \sin u$, with the angle $u \in (0, \pi/2]$ as time.

    Args:
        data_std: $c$, the standard deviation of the data.
    """

    data_std: float = 1.0
    t_min: float = 1e-12
    t_max: float = math.pi / 2

    def __post_init__(self) -> None:
        check_positive(self.data_std, "data_std")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 - t) / self.data_std

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.sin(t) / self.data_std, torch.sin(math.pi / 2 - t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.log(torch.sin(math.pi / 2 - t)) - torch.log(torch.sin(t)) - math.log(self.data_std)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam) / self.data_std)

    def angle(self, at: Level) -> float:
        """The angle of a level of any Gaussian SDE."""
        return math.atan2(at.sigma, at.alpha * self.data_std)

    def radius(self, at: Level) -> float:
        r"""$\sqrt{\alpha^2c^2 + \sigma^2}$, the factor between the state of a Gaussian SDE and $y$."""
        return math.hypot(at.alpha * self.data_std, at.sigma)
