"""Mixtures whose density is known, as the problems of the likelihood tests and of its benchmark."""

from __future__ import annotations

import math

import torch

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.analytic import GaussianMixture


def mixture(d: int, components: int = 5, low: float = 0.05, high: float = 0.4, seed: int = 0) -> GaussianMixture:
    """Components rotated at random, of standard deviations between `low` and `high`: on a circle in the plane, else at
    random directions of length `sqrt(d) / 2`. In float64, under `VPSDE()`."""
    generator = torch.Generator().manual_seed(seed)
    if d == 2:
        angles = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        means = torch.stack([angles.cos(), angles.sin()], dim=1)
    else:
        means = torch.randn(components, d, generator=generator, dtype=torch.float64)
        means = means / means.norm(dim=1, keepdim=True) * (0.5 * math.sqrt(d))
    scale = torch.rand(components, d, generator=generator, dtype=torch.float64)
    std = torch.exp(scale * math.log(high / low) + math.log(low))
    turn = torch.linalg.qr(torch.randn(components, d, d, generator=generator, dtype=torch.float64)).Q
    spread = turn @ torch.diag_embed(std**2) @ turn.mT
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.5
    return GaussianMixture(VPSDE(), weights, means, (spread + spread.mT) / 2)
