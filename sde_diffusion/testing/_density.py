r"""The Fokker-Planck equation as a test, and the density of a prior against its draws.

With $\ell = \log p_t$ and $s = \nabla\ell$ the equation $\partial_t p = -\nabla\cdot(fp) + \tfrac12\sum_i g_i^2
\partial_i^2 p$ reads

$$ \partial_t\ell + \nabla\cdot f + f\cdot s - \tfrac12\sum_i g_i^2\,(\partial_i s_i + s_i^2) = 0 $$

and its gradient is an equation for the score alone. Derivatives in $x$ by autograd, in $t$ by central differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion._linear import rows
from sde_diffusion.sde import SDE

Field = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> log-density (B,) or score (B, *), with t of shape (B,)


def difference(f: Callable[[float], Tensor], t: float, h: float) -> Tensor:
    """`f'(t)` by central differences of order 6, reaching as far as `h`."""
    d1, d2, d4 = ((f(t + k) - f(t - k)) / (2 * k) for k in (h, h / 2, h / 4))
    e1, e2 = (4 * d2 - d1) / 3, (4 * d4 - d2) / 3
    return (16 * e2 - e1) / 15


def reach(sde: SDE, t: float) -> float:
    """How far differences at an interior time may reach."""
    room = min(t - sde.t_min, sde.t_max - t)
    return 0.02 * (min(room, 0.4) if sde.time_is_index else room)  # a chain has a kink at every index


def interior(sde: SDE, n: int = 24) -> list[float]:
    """Times inside the range: half of them close to the data on a geometric scale, half spread evenly."""
    low = torch.logspace(-6, -1, n // 2, dtype=torch.float64)
    u = torch.cat([low, torch.linspace(0.12, 0.98, n - n // 2, dtype=torch.float64)])
    times = sde.t_min + (sde.t_max - sde.t_min) * u
    if sde.time_is_index:
        times = (torch.floor(times) + 0.5).unique()
    return [float(t) for t in times]


def _grad(y: Tensor, x: Tensor) -> Tensor:
    """Gradient of `y.sum()`; zero where `y` does not depend on `x`."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True)[0]


def _diagonal(field: Tensor, x: Tensor) -> Tensor:
    r"""$\partial_i F_i$ of a field `(B, *)`, flattened to `(B, D)`."""
    flat = rows(field)
    return torch.stack([rows(_grad(flat[:, i], x))[:, i] for i in range(flat.shape[1])], dim=1)


def _space_terms(sde: SDE, score: Tensor, x: Tensor, t: float) -> list[Tensor]:
    """The three terms of the equation without a time derivative, `(B,)` each."""
    time = torch.tensor(t, dtype=torch.float64)
    g = torch.as_tensor(sde.diffusion(time)).to(x)
    half_g2 = 0.5 * rows((g * g).expand_as(x))
    f = sde.drift(x, time)
    s = rows(score)
    return [
        _diagonal(f, x).sum(1),
        (rows(f) * s).sum(1),
        -(half_g2 * (_diagonal(score, x) + s * s)).sum(1),
    ]


def residual_of_density(sde: SDE, log_prob: Field, x: Tensor, t: float) -> float:
    """The residual of the equation at points `x` `(B, *)`, relative to the size of its terms."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        score = _grad(log_prob(x, _at(t, x)), x)
        terms = [v.detach() for v in _space_terms(sde, score, x, t)]
    with torch.no_grad():
        terms.append(difference(lambda u: log_prob(x, _at(u, x)), t, reach(sde, t)))
    return _relative(terms)


def residual_of_score(sde: SDE, score: Field, x: Tensor, t: float) -> float:
    """The residual of the gradient of the equation, which knows the score alone."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        s = score(x, _at(t, x))
        terms = [rows(_grad(v, x)).detach() for v in _space_terms(sde, s, x, t)]
    with torch.no_grad():
        terms.append(rows(difference(lambda u: score(x, _at(u, x)), t, reach(sde, t))))
    return _relative(terms)


def _relative(terms: Sequence[Tensor]) -> float:
    size = sum((v.abs() for v in terms), torch.zeros(()))
    total = sum(terms, torch.zeros(()))
    return float(total.square().mean().sqrt() / size.square().mean().sqrt().clamp_min(1e-300))


def _at(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=x.dtype)


MEANS = torch.tensor([[0.7, -0.4], [-0.5, 0.6]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.2, 0.5], [0.1, 0.3]], dtype=torch.float64)


def mixture_log_prob(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""$\log p$ of $\alpha x_0 + \sigma\varepsilon$ for $x_0$ from two unequal Gaussians in the plane, `(B,)`."""
    variance = (alpha**2).reshape(-1, 1, 1) * VARIANCES + (sigma**2).reshape(-1, 1, 1)
    centred = x[:, None] - alpha.reshape(-1, 1, 1) * MEANS
    terms = centred.square() / variance + torch.log(variance) + math.log(2 * math.pi)
    return torch.logsumexp(-0.5 * terms.sum(-1) + math.log(0.5), dim=1)


def mixture_draws(n: int) -> tuple[Tensor, Tensor]:
    """Data of the mixture and unit noise, `(n, 2)` each."""
    source = torch.Generator().manual_seed(0)
    k = torch.randint(2, (n,), generator=source)
    z, eps = torch.randn(2, n, 2, generator=source, dtype=torch.float64)
    return MEANS[k] + VARIANCES[k].sqrt() * z, eps


def imbalance_of_prior(sde: SDE, shape: tuple[int, ...]) -> tuple[float, float]:
    r"""$\mathrm E_p\frac q{p + q} - \mathrm E_q\frac p{p + q}$ with its standard error: 0 if the prior has density $p$.

    The first mean is over draws of the prior, with $p$ from `prior_log_prob`; $q$ is a mixture of Gaussians about other
    draws, so that it covers the prior whatever its form. Both means are of bounded quantities.
    """
    source = torch.Generator().manual_seed(1)

    def normal(n: int) -> Tensor:
        return torch.randn(n, *shape, generator=source, dtype=torch.float64)

    with torch.no_grad():
        centres, x = sde.prior(normal(256)), sde.prior(normal(8192))
        width = 0.4 * centres.std(dim=0)
        y = centres[torch.randint(256, (8192,), generator=source)] + width * normal(8192)
        wide, near = rows(width[None]), rows(centres)
        norm = torch.log(wide).sum() + 0.5 * wide.numel() * math.log(2 * math.pi) + math.log(len(near))

        def excess(at: Tensor) -> Tensor:  # log q - log p
            log_q = torch.logsumexp(-0.5 * torch.cdist(rows(at) / wide, near / wide).square(), dim=1) - norm
            return log_q - sde.prior_log_prob(at)

        one, two = torch.sigmoid(excess(x)), torch.sigmoid(-excess(y))
    return float(one.mean() - two.mean()), float(torch.sqrt((one.var() + two.var()) / len(x)))
