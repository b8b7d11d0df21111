"""What solvers around other solvers share: how deep they nest, and the way up to a noisier level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._tensors import scale
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Solver, parts


def nesting(solver: Solver) -> int:
    """How many solvers a solver wraps at most, one inside the other: what tells its noise from that of its parts."""
    return 1 + max(map(nesting, parts(solver)), default=-1)


def renoised(x: Tensor, t: Level, hat: Level, z: Tensor, factor: float = 1.0) -> Tensor:
    r"""The state carried up from level `t` to the noisier `hat` by the forward process, its noise times `factor`.

    $$ \tfrac{\alpha_{\hat t}}{\alpha_t}\,x + \sqrt{\sigma_{\hat t}^2 -
       \tfrac{\alpha_{\hat t}^2}{\alpha_t^2}\sigma_t^2}\;z $$
    """
    ratio = hat.alpha / t.alpha
    std = math.sqrt(max(hat.sigma**2 - (ratio * t.sigma) ** 2, 0.0))
    return torch.add(scale(x, ratio), z, alpha=factor * std)
