r"""Likelihood of discrete data from a density: what probability a density gives to a value.

Data take values $v = 0, \dots, Q - 1$ in every coordinate, placed at the centres $c_v$ of bins of width $2h$ (`Bins`).
A density $p$ gives the bin around $c_v$ the probability $P(v) = \int_{|x - c_v| < h} p(x)\,dx$, and every function here
bounds $\log P(v)$ from below, in nats per sample:

$$ \log P(v) \ge \mathrm E_{x \sim q}\Big[\log\frac1K\sum_k\frac{p(x_k)}{q(x_k \mid v)}\Big]
   \ge \mathrm E_{x \sim q}\big[\log p(x) - \log q(x \mid v)\big] $$

for any $q$ inside the bin; the left bound tightens with $K$ and loses its meaning without the $1/K$. They differ in
$q$: `uniform`, `truncated_normal`. `gaussian_encoder` lets $q$ leave the bin and pays with a decoder. A bound is as
good as its $q$ resembles the noise that the model was trained with.

The density comes in as any function `log_prob(x)`, `(B, *)` to `(B,)` in nats and in the units of `x`: for a sampler
`lambda x: sampler.log_prob(x).value`. For a model of standardised data see `rescaled`, or place the bins there by
`Bins.scaled`; a probability of a value does not depend on the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion._tensors import as_float64, rows
from sde_diffusion.likelihood.bits import check_no_width
from sde_diffusion.likelihood.decoder import Bins, categorical_log_prob
from sde_diffusion.noise.seeds import Use, apart, seed_list
from sde_diffusion.noise.sources import Streams

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BinLogProb:
    r"""A lower bound on the log-probability of discrete data.

    Attributes:
        value: Bound on $\log P(v)$, in nats, shape `(B,)`, float64 on the CPU.
        standard_error: Standard error of `value` over its random draws, shape `(B,)`; NaN for one draw.
        dim: $D$, coordinates per sample.
    """

    value: Tensor
    standard_error: Tensor
    dim: int

    def bits_per_dim(self, bin_width: None = None) -> Tensor:
        r"""$-\mathrm{value}/(D\log 2)$, shape `(B,)`: the cost of one coordinate, in bits.

        Args:
            bin_width: No width is needed, as $P$ is that of bins already.

        Raises:
            ValueError: A width.
        """
        check_no_width(bin_width)
        return -self.value / (self.dim * math.log(2))

    @property
    def bits_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim`, shape `(B,)`."""
        return self.standard_error / (self.dim * math.log(2))


def uniform(
    log_prob: LogDensity, x: Tensor, bins: Bins, *, draws: int = 1, seed: int | Sequence[int] | None = None
) -> BinLogProb:
    r"""Uniform dequantisation: $\log P(v) \ge \mathrm E\log\frac1K\sum_k p(c_v + h(2u_k - 1)) + D\log 2h$.

    With `draws=1` it is the usual bound; with more it rises towards $\log P(v)$. `draws` calls of `log_prob`.

    Args:
        log_prob: Log-density, `(B, *)` to `(B,)`, in nats.
        x: Data at bin centres, shape `(B, *)`.
        bins: Where the values lie in the units of `x`.
        draws: $K$.
        seed: Sample `i` draws from stream `seed + i`, or from that of its own entry in a sequence; None: fresh entropy.

    References:
        Theis et al., A Note on the Evaluation of Generative Models, 2016; Burda et al., Importance Weighted
        Autoencoders, 2016 (the K-draw bound).
    """
    bins.index(x)
    cell = x[0].numel() * math.log(bins.width)

    def weigh(z: Tensor) -> Tensor:
        u = torch.special.ndtr(z)
        return _nats(log_prob, x + (bins.width * (u - 0.5)).to(x)) + cell

    return _bound(weigh, x, draws, seed, importance=True)


def truncated_normal(
    log_prob: LogDensity,
    x: Tensor,
    bins: Bins,
    *,
    std: float,
    draws: int = 1,
    seed: int | Sequence[int] | None = None,
    importance: bool = False,
) -> BinLogProb:
    r"""Truncated-normal dequantisation, which needs no training: the noise is that of the model's own smallest level.

    $$ \log P(v) \ge \mathrm E\log p(c_v + S\epsilon) + D\Big[\tfrac12(1 + \log 2\pi S^2) + \log Z -
       \frac{\tau e^{-\tau^2/2}}{\sqrt{2\pi}Z}\Big], \quad \epsilon \sim \mathcal N(0, 1) \text{ on } |\epsilon| < \tau,
       \ \tau = \frac hS,\ Z = \mathrm{erf}\frac{\tau}{\sqrt2} $$

    For a model trained on bin centres, whose density at its smallest noise level $S = \sigma/\alpha$ is that of centres
    blurred by $S$. `draws` calls of `log_prob`.

    Args:
        log_prob: Log-density at noise level `std`, `(B, *)` to `(B,)`, in nats.
        x: Data at bin centres, shape `(B, *)`.
        bins: Where the values lie in the units of `x`.
        std: $S$, in the units of `x`; about $h/2$ does well.
        draws: $K$.
        seed: Sample `i` draws from stream `seed + i`, or from that of its own entry in a sequence; None: fresh entropy.
        importance: Take the log of the mean of the $K$ weights, a tighter bound, not the mean of their logs.

    References:
        Zheng et al., Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, 2023.
    """
    bins.index(x)
    d, tau = x[0].numel(), bins.width / 2 / check_positive(std, "std")
    mass, edge = math.erf(tau / math.sqrt(2)), 0.5 * math.erfc(tau / math.sqrt(2))
    constant = d * (0.5 * math.log(2 * math.pi * std**2) + math.log(mass))
    energy = d * (0.5 - tau * math.exp(-tau * tau / 2) / (math.sqrt(2 * math.pi) * mass))  # of eps^2 / 2

    def weigh(z: Tensor) -> Tensor:
        eps = torch.special.ndtri(edge + mass * torch.special.ndtr(z)).clamp(-tau, tau)
        spent = 0.5 * _wide(rows(eps).square().sum(1)) if importance else energy
        return _nats(log_prob, x + (std * eps).to(x)) + constant + spent

    return _bound(weigh, x, draws, seed, importance)


def gaussian_encoder(
    log_prob: LogDensity,
    x: Tensor,
    bins: Bins,
    *,
    std: float,
    draws: int = 1,
    seed: int | Sequence[int] | None = None,
    importance: bool = False,
) -> BinLogProb:
    r"""Gaussian noise for the bin, and a categorical decoder to find the value again.

    $$ \log P(v) \ge \mathrm E\big[\log p(z) + \log P(v \mid z)\big] + \tfrac D2(1 + \log 2\pi S^2), \quad
       z = c_v + S\epsilon, \quad P(v \mid z) \propto e^{-(z - c_v)^2/2S^2} $$

    Here $P(v) = \int P(v \mid z)\,p(z)\,dz$, close to that of the bins where $S \ll h$. `draws` calls of `log_prob`.

    Args:
        log_prob: Log-density at noise level `std`, `(B, *)` to `(B,)`, in nats.
        x: Data at bin centres, shape `(B, *)`.
        bins: Where the values lie in the units of `x`.
        std: $S$, in the units of `x`.
        draws: $K$.
        seed: Sample `i` draws from stream `seed + i`, or from that of its own entry in a sequence; None: fresh entropy.
        importance: Take the log of the mean of the $K$ weights, a tighter bound, not the mean of their logs.

    References:
        Kingma et al., Variational Diffusion Models, 2021.
    """
    v = bins.index(x)
    d = x[0].numel()
    constant = 0.5 * d * math.log(2 * math.pi * check_positive(std, "std") ** 2)

    def weigh(z: Tensor) -> Tensor:
        point = x + (std * z).to(x)
        found = rows(categorical_log_prob(_wide(point), std, v, bins)).sum(1)
        spent = 0.5 * _wide(rows(z).square().sum(1)) if importance else 0.5 * d
        return _nats(log_prob, point) + found + constant + spent

    return _bound(weigh, x, draws, seed, importance)


def rescaled(log_prob: LogDensity, mean: float | Tensor, std: float | Tensor) -> LogDensity:
    r"""The log-density of $x$, from that of $y = (x - \mu)/s$: $\log p(x) = \log p(y) - \sum_d\log s_d$.

    Args:
        log_prob: Log-density of `y`, `(B, *)` to `(B,)`, in nats.
        mean: $\mu$, a float or of the event shape.
        std: $s > 0$, a float or of the event shape.
    """

    def of_x(x: Tensor) -> Tensor:
        scale = as_float64(std)
        jacobian = float(torch.log(scale).sum()) * (x[0].numel() / scale.numel())
        return log_prob((x - as_float64(mean).to(x)) / scale.to(x)) - jacobian

    return of_x


def _bound(
    weigh: Callable[[Tensor], Tensor], x: Tensor, draws: int, seed: int | Sequence[int] | None, importance: bool
) -> BinLogProb:
    """The bound from `draws` log-weights per sample, and its standard error: by the jackknife under the log."""
    k = check_count(draws, "draws")
    source = Streams(apart(seed_list(seed, len(x)), Use.DEQUANTISATION), x.shape[1:], torch.float64, x.device)
    w = torch.stack([weigh(source(0.0, 0.0)) for _ in range(k)])
    value = torch.logsumexp(w, 0) - math.log(k) if importance else w.mean(0)
    error = torch.full_like(value, math.nan).detach()
    if k > 1:
        parts = w.detach()
        if importance:
            top = parts.amax(0)
            e = torch.exp(parts - top)
            parts = torch.log((e.sum(0) - e).clamp_min(0.0)) + top  # each draw left out
            spread = parts.var(0, correction=0) * (k - 1)
        else:
            spread = parts.var(0) / k
        error = spread.sqrt()
    return BinLogProb(value, error, x[0].numel())


def _nats(log_prob: LogDensity, x: Tensor) -> Tensor:
    value = log_prob(x)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"log_prob answered a {type(value).__name__}, wanted a tensor (B,): of a sampler give "
            "lambda x: sampler.log_prob(x).value"
        )
    if value.shape != (len(x),):
        raise ValueError(f"log_prob answered shape {tuple(value.shape)}, wanted one value per sample, ({len(x)},)")
    return _wide(value)


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu", torch.float64)
