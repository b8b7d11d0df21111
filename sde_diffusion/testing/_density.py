r"""The Fokker-Planck equation as a test, and the density of a prior against its draws.

With $\ell = \log p_t$ and $s = \nabla\ell$ the equation $\partial_t p = -\nabla\cdot(fp) + \tfrac12\sum_i g_i^2
\partial_i^2 p$ reads

$$ \partial_t\ell + \nabla\cdot f + f\cdot s - \tfrac12\sum_i g_i^2\,(\partial_i s_i + s_i^2) = 0 $$

and its gradient is an equation for the score alone. Derivatives in $x$ are by autograd. So are those in $t$, where
central differences confirm them up to their rounding: near the data $\ell$ hardly changes where $g$ is small, and its
differences would drown. For the same reason $\partial_t\ell$ of the mixture is put together from $\alpha'$ and
$\sigma'$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.sde.base import SDE, GaussianSDE

EPS = torch.finfo(torch.float64).eps
Field = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> log-density (B,) or score (B, *), with t of shape (B,)


ROUNDINGS = 100  # units of rounding by which a difference of two values may be off


class Rate(NamedTuple):
    """A derivative by time, with its doubt.

    Attributes:
        value: The derivative.
        doubt: How far rounding may have moved it, of the same shape.
    """

    value: Tensor
    doubt: Tensor


def rate_of(f: Callable[[Tensor], Tensor], t: Tensor, h: float) -> Rate:
    """Differentiates a function of times `()` or `(B,)`, all equal, which answers with that shape or `(B, *)`.

    The derivative is that of autograd where central differences of order 6, which reach as far as `h`, confirm it up to
    their rounding. Where they do not, as for a function that leaves torch on its way, it is theirs.
    """
    with torch.no_grad():
        here = f(t)
        d1, d2, d4 = ((f(t + k) - f(t - k)) / (2 * k) for k in (h, h / 2, h / 4))
        e1, e2 = (4 * d2 - d1) / 3, (4 * d4 - d2) / 3
        found = (16 * e2 - e1) / 15
        doubt = ROUNDINGS * EPS / h * (here.abs() + float(t.abs().max()) * found.abs())
    exact = _by_autograd(f, t)
    if exact is None or exact.shape != found.shape:
        return Rate(found, doubt)
    good = (exact - found).abs() <= doubt + 1e-6 * found.abs()
    return Rate(torch.where(good, exact, found), torch.where(good, ROUNDINGS * EPS * exact.abs(), doubt))


def _by_autograd(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor | None:
    try:
        with torch.inference_mode(False), torch.enable_grad():
            time = t.detach().clone().requires_grad_()
            value = f(time)
            if value.shape == time.shape:
                return _grad(value, time).detach()
            columns = [_grad(column, time) for column in rows(value).unbind(1)]
            return torch.stack(columns, dim=1).reshape(value.shape).detach()
    except Exception:  # noqa: BLE001 - numpy on the way, an operation without a derivative: the differences remain
        return None


def worst(found: Iterable[float]) -> float:
    """Returns the greatest, or NaN if there is one."""
    return max(found, key=lambda v: math.inf if math.isnan(v) else v, default=0.0)


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
    x = x.detach()
    return _relative(terms, rate_of(lambda u: log_prob(x, u), _at(t, x), reach(sde, t)))


def residual_of_mixture(sde: GaussianSDE, x: Tensor, t: float) -> float:
    r"""The residual for the mixture: $\partial_t\ell = \alpha'\,\partial_\alpha\ell + \sigma'\,\partial_\sigma\ell$."""
    time = torch.tensor(t, dtype=torch.float64)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        ends = [f(time).detach().expand(len(x)).clone().requires_grad_() for f in (sde.alpha, sde.sigma)]
        log_p = mixture_log_prob(x, *ends)
        by_alpha, by_sigma = (_grad(log_p, end).detach() for end in ends)
        terms = [v.detach() for v in _space_terms(sde, _grad(log_p, x), x, t)]
    alpha, sigma = (rate_of(f, time, reach(sde, t)) for f in (sde.alpha, sde.sigma))
    value = by_alpha * alpha.value + by_sigma * sigma.value
    doubt = by_alpha.abs() * alpha.doubt + by_sigma.abs() * sigma.doubt
    return _relative(terms, Rate(value, doubt))


def residual_of_score(sde: SDE, score: Field, x: Tensor, t: float) -> float:
    """The residual of the gradient of the equation, into which the score alone enters."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        s = score(x, _at(t, x))
        terms = [rows(_grad(v, x)).detach() for v in _space_terms(sde, s, x, t)]
    x = x.detach()
    return _relative(terms, rate_of(lambda u: rows(score(x, u)), _at(t, x), reach(sde, t)))


def _relative(terms: Sequence[Tensor], rate: Rate) -> float:
    """The sum of all terms, as far as rounding does not explain it, over the sum of their sizes."""
    size = sum((v.abs() for v in terms), rate.value.abs())
    total = (sum(terms, rate.value).abs() - rate.doubt).clamp_min(0.0)
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
    """Draws data of the mixture and unit noise, `(n, 2)` each."""
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
