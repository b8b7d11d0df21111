r"""What a loss weighs in the end: any pair of a parametrisation, a weight and a draw of times as one function of
$\lambda$.

Every loss here is $\int w(\lambda)\,\mathrm E|\varepsilon - \hat\varepsilon|^2\,d\lambda$ with $\lambda =
\log(\alpha/\sigma)$ and

$$ w(\lambda) = p(\lambda)\;W\;\Big(\frac{\partial F}{\partial\varepsilon}\Big)^2 $$

from the density $p$ of the drawn levels, the weight $W$ on the square error of the answer $F$, and the change of the
answer with the noise at a given state. The likelihood weight is constant. Losses of equal $w$ have the same minimum and
the same gradient on average, whatever they are called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite
from sde_diffusion.denoiser.objectives.time_samplers import TimeSampler
from sde_diffusion.denoiser.objectives.weights import name_of
from sde_diffusion.sde.base import GaussianSDE

STEP = 1e-4
"""Half the distance in lambda over which a density is a difference of the distribution."""
CHECKED = 257
"""Draws at which a time sampler is asked whether it rises."""


def as_lam(lam: Tensor) -> Tensor:
    r"""Values of $\lambda$ as a float64 tensor `(n,)` on the CPU.

    Raises:
        TypeError: Not a tensor of floats.
        ValueError: Another shape, or not finite.
    """
    given: object = lam
    if not isinstance(given, Tensor) or not given.is_floating_point():
        raise TypeError(f"lam must be a float tensor of log(alpha / sigma), torch.linspace(-5, 5, 100), got {lam!r}")
    if lam.ndim != 1 or not len(lam):
        raise ValueError(f"lam has shape {tuple(lam.shape)}, wanted (n,) with n at least 1")
    return check_finite(lam.detach().to("cpu", torch.float64), "lam")


def density(times: TimeSampler, sde: GaussianSDE, lam: Tensor) -> Tensor:
    r"""$p(\lambda)$ of the levels that a sampler draws, shape `(n,)`; 0 outside the range of the process.

    From the map itself, inverted by bisection, so that a sampler of one's own has one too. Draws that are clipped to an
    end of the range are no part of a density, and are left out.

    Raises:
        ValueError: A sampler that does not rise.
    """
    u = torch.linspace(0, 1 - 1e-9, CHECKED, dtype=torch.float64, device="cpu")
    if not bool((times(sde, u).diff() >= 0).all()):
        raise ValueError(f"the times of {name_of(times)} fall with u, wanted a map that rises: hand it 1 - u")

    def share(at: Tensor) -> Tensor:
        """Share of the draws with more noise than that, found as the draw in which it begins."""
        a, b = torch.zeros_like(at), torch.ones_like(at)
        for _ in range(60):
            mid = (a + b) / 2
            less = sde.half_log_snr(times(sde, mid)) > at
            a, b = torch.where(less, mid, a), torch.where(less, b, mid)
        return 1 - (a + b) / 2

    low, high = sde.ends()
    inside = (lam > low) & (lam < high)
    above, below = (lam + STEP).clamp_max(high), (lam - STEP).clamp_min(low)
    return torch.where(inside, (share(above) - share(below)) / (above - below), 0.0)
