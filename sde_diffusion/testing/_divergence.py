r"""The divergence of a velocity against differences: $z\cdot Jz$ with $J = \partial v/\partial x$, for random $z$."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.sampler.sampler import SDESampler


def derivatives(sampler: SDESampler, x: Tensor, cond: dict[str, Any], seed: int) -> tuple[float, float]:
    r"""$z\cdot Jz$ by autograd against differences, at three times, relative to $|z|\,|Jz|$ and what $J$ may be.

    Where the velocity hardly depends on the state there is nothing to be relative to: $|z|\,|Jz|$ is then replaced by
    $|z|^2\,|u'|$, with $u$ the angle of the noise level, or $|z|^2$ over the range of times.

    Args:
        sampler: The model and its process.
        x: Data or samples, at whose noised states the velocity is asked.
        cond: Their conditions.
        seed: Decides the noise and the directions $z$.

    Returns:
        The largest deviation less the error of the differences, and that error in the median row.
    """
    generator = one_stream(seed, use=Use.CHECKS)
    eps, z = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
    low, high = sampler.times[-1], sampler.times[0]
    worst, unknown = 0.0, 0.0
    eq = sampler.problem.equation(cond)
    for fraction in (0.1, 0.4, 0.8):
        at = eq.level(low + fraction * (high - low))
        if math.isnan(at.alpha):
            y, scale, rate = x + eps, 1.0, 1 / (high - low)
        else:
            y, scale = at.alpha * x + at.sigma * eps, math.hypot(at.alpha, at.sigma)
            rate = abs(at.alpha * at.dsigma - at.sigma * at.dalpha) / scale**2
        velocity = partial(eq.velocity, t=at)
        product = _by_autograd(velocity, y, z)
        with torch.no_grad():
            slope, error, length = _differences(velocity, y, z, scale)
        size = float((length * rows(z).norm(dim=1)).double().square().mean().sqrt())
        size = max(size, rate * float(rows(z).double().square().sum(1).mean()))
        beyond = (rows(product * z).double().sum(1) - slope).abs() - 2 * error
        worst = max(worst, float(beyond.clamp_min(0).max()) / size, key=_nan_first)
        unknown = max(unknown, float(error.median()) / size, key=_nan_first)
    return worst, unknown


def _by_autograd(velocity: Callable[[Tensor], Tensor], y: Tensor, z: Tensor) -> Tensor:
    """The product $z^TJ$ by autograd, shape `(B, *)`; zero where no graph leads from the velocity to the state."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        v = velocity(y)
        if not v.requires_grad:
            return torch.zeros_like(y)
        return torch.autograd.grad(v, y, z, materialize_grads=True)[0]


def _differences(
    velocity: Callable[[Tensor], Tensor], y: Tensor, z: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""$z\cdot Jz$ by central differences, its error, and $|Jz|$, each `(B,)`.

    Those of two steps $h$ and $h/2$ are extrapolated: with $h = \epsilon^{1/5}$ of the size of the state, and
    $\epsilon$ the rounding of its dtype, what is left of order $h^4$ equals the rounding, $\epsilon/h$. The error is
    the change by the extrapolation, with that rounding.
    """
    rounding, size = torch.finfo(y.dtype).eps, rows(velocity(y)).double().norm(dim=1)
    length_z, length_y = (rows(w).double().norm(dim=1) for w in (z, y))
    h = scale * rounding**0.2
    changes = [rows(velocity(y + step * z) - velocity(y - step * z)).double() / (2 * step) for step in (h, h / 2)]
    coarse, fine = ((change * rows(z)).sum(1) for change in changes)
    length = changes[1].norm(dim=1)
    floor = 2 * rounding * (size * length_z + length * length_y) / h
    return (4 * fine - coarse) / 3, (fine - coarse).abs() / 3 + floor, length


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value
