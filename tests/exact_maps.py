"""A flow map in closed form: that of Gaussian data, whose coordinates are stretched on their way, each by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion import FlowMap, clocks, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.sde import GaussianSDE

VARIANCES = torch.tensor([0.04, 0.5, 1.9], dtype=torch.float64)
C = math.sqrt(2.44 / 3)
"""The standard deviation of the data, all coordinates together."""


def teacher(sde: GaussianSDE) -> GaussianMixture:
    one = torch.ones(1, dtype=torch.float64)
    return GaussianMixture(sde, one, torch.zeros(1, 3, dtype=torch.float64), VARIANCES[None])


def size(u: Tensor) -> Tensor:
    """The standard deviation of each coordinate of the normalised state at an angle, `(n, 3)`."""
    return (u.cos().square() * VARIANCES / C**2 + u.sin().square()).sqrt()


def carried(y: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """Where the flow leads, `(n, 3)`, from angles to angles `(n, 1)`."""
    return y * size(s) / size(u)


class ExactNet(nn.Module):
    """Answers as the exact map does, in one of the forms `edm`, `noise`, `data`; told the time by `clocks.edm`."""

    def __init__(self, kind: predict.Parametrisation) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, until: Tensor) -> Tensor:
        u = torch.atan(torch.exp(4 * time) / C)[:, None]
        s = 0.05 * torch.sinh(2 * until)[:, None]
        y = x if isinstance(self.kind, predict.EDM) else x / self.radius(u)
        middle = (u + s) / 2  # where they are all but the same, the slope there
        slope = middle.sin() * middle.cos() * (1 - VARIANCES / C**2) / size(middle) ** 2
        near = (u - s).abs() < 1e-5
        g = torch.where(near, slope * y, (y - carried(y, u, s)) / torch.where(near, 1.0, u - s))
        if isinstance(self.kind, predict.EDM):
            return -g + self.weight
        if self.kind == predict.noise:
            return u.sin() * y + u.cos() * g + self.weight
        return C * (u.cos() * y - u.sin() * g) + self.weight

    def radius(self, u: Tensor) -> Tensor:
        """On `EDMSDE`, where alpha is 1."""
        return C / u.cos()


def exact_map(sde: GaussianSDE, kind: Any = None, reach: Any = "any") -> FlowMap:
    kind = predict.EDM(C) if kind is None else kind
    made = FlowMap(ExactNet(kind), sde, kind, clock=clocks.edm, shape=(3,), reach=reach)
    made.data_std = C
    return made
