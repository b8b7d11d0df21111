"""Toy data in two dimensions, for examples and tests: `n` independent points, shape `(n, 2)`, float32.

All rows of one call are drawn from one stream, so that data of two seeds are independent: `seed=` is an integer, which
gives the same data again, a `torch.Generator`, from which they are drawn, or None for fresh entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion.data.images import Seed
from sde_diffusion.noise.seeds import one_stream


def moons(n: int, *, noise: float = 0.08, seed: Seed = None) -> Tensor:
    """Two interleaved half circles of radius one with Gaussian noise, placed as scikit-learn's `make_moons`: (n, 2).

    Args:
        n: Number of points.
        noise: Standard deviation of the noise, `>= 0`.
        seed: The stream of all rows; None: fresh entropy.

    Raises:
        TypeError, ValueError: `n` is not a positive integer or `noise` is negative.
    """
    gen, device = _generator(n, seed, noise)
    angle = math.pi * torch.rand(n, generator=gen, device=device)
    lower = torch.rand(n, generator=gen, device=device) < 0.5
    upper_x, upper_y = angle.cos(), angle.sin()
    x = torch.stack([torch.where(lower, 1 - upper_x, upper_x), torch.where(lower, 0.5 - upper_y, upper_y)], dim=1)
    return x + noise * torch.randn(n, 2, generator=gen, device=device)


def ring(n: int, *, modes: int = 8, radius: float = 2.0, noise: float = 0.1, seed: Seed = None) -> Tensor:
    """A mixture of Gaussians, equally likely, with means equally spaced on a circle: (n, 2).

    Args:
        n: Number of points.
        modes: Number of Gaussians.
        radius: The radius of the circle on which their means lie.
        noise: Standard deviation of each Gaussian, `>= 0`.
        seed: The stream of all rows; None: fresh entropy.

    Raises:
        TypeError, ValueError: `n` or `modes` is not a positive integer or `noise` is negative.
    """
    gen, device = _generator(n, seed, noise)
    check_count(modes, "modes")
    angle = 2 * math.pi / modes * torch.randint(0, modes, (n,), generator=gen, device=device)
    x = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x + noise * torch.randn(n, 2, generator=gen, device=device)


def _generator(n: int, seed: Seed, noise: float = 0.0) -> tuple[torch.Generator, torch.device]:
    check_count(n, "n")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is a standard deviation and must be at least 0, got {noise!r}.")
    generator = one_stream(seed)
    return generator, generator.device
