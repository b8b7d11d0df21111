r"""A linear-Gaussian autoencoder, of which all is known: $z \sim N(\mu, C)$, $x = Wz + b + \text{noise}\,\varepsilon$.

The columns of $W$ are orthogonal and $C$ is diagonal, so that the posterior $N(m(x), \operatorname{diag} s^2)$ is one
that an encoder can have. `codec.encode` answers it, moved by `off` standard deviations and `stretch` times as wide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from sde_diffusion import VPSDE, SDESampler
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.latent import LatentSampler

F64 = torch.float64
D, CODE, NOISE = 6, 3, 0.3
_GENERATOR = torch.Generator().manual_seed(0)
W = torch.linalg.qr(torch.randn(D, CODE, dtype=F64, generator=_GENERATOR))[0] * torch.tensor([1.5, 0.7, 0.4], dtype=F64)
B = torch.randn(D, dtype=F64, generator=_GENERATOR)
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
SCALE, SHIFT = torch.tensor([2.0, 0.5, -1.0], dtype=F64), torch.tensor([1.0, 0.0, -1.0], dtype=F64)


def spread(level: float = 0.0) -> Tensor:
    """The variances of a code at a noise level."""
    return torch.tensor([1.2, 0.8, 0.5], dtype=F64) + level**2


class Linear(nn.Module):
    """The codec. Its own units are not those of unit scale."""

    def __init__(self, off: float = 0.0, stretch: float = 1.0, level: float = 0.0) -> None:
        super().__init__()
        self.off, self.stretch, self.noise, self.level = off, stretch, NOISE, level
        self.drop = nn.Dropout(0.5)  # of which nothing is to be seen
        for name, value in (("w", W), ("scale", SCALE), ("shift", SHIFT)):
            self.register_buffer(name, value)
        self.w: Tensor
        self.scale: Tensor
        self.shift: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = posterior(x, self.level)
        return (mean + self.off * std) / self.scale + self.shift, self.stretch * std / self.scale.abs()

    def decode(self, z: Tensor) -> Tensor:
        return self.drop((z - self.shift) * self.scale) @ self.w.to(z).mT + B.to(z)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (CODE,)


def posterior(x: Tensor, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the code of `x` at unit scale."""
    precision = 1 / spread(level) + W.square().sum(0) / NOISE**2
    mean = (MEAN / spread(level) + (x - B) @ W / NOISE**2) / precision
    return mean, precision.rsqrt().expand_as(mean)


def law(level: float = 0.0) -> MultivariateNormal:
    """That of the data, the noise of the decoder included."""
    cov = W @ torch.diag(spread(level)) @ W.mT + NOISE**2 * torch.eye(D, dtype=F64)
    return MultivariateNormal(W @ MEAN + B, cov)


def draw(n: int, seed: int) -> Tensor:
    """Data, shape `(n, D)`."""
    generator = torch.Generator().manual_seed(seed)
    z = MEAN + spread().sqrt() * torch.randn(n, CODE, dtype=F64, generator=generator)
    return z @ W.mT + B + NOISE * torch.randn(n, D, dtype=F64, generator=generator)


def codes(**options: Any) -> SDESampler:
    """The exact sampler of the codes."""
    sde = VPSDE()
    return SDESampler(sde, Gaussian(sde, MEAN, spread()), **options)


def latent_sampler(off: float = 0.0, stretch: float = 1.0, level: float = 0.0, **options: Any) -> LatentSampler:
    return LatentSampler(codes(**options), Linear(off, stretch, level))
