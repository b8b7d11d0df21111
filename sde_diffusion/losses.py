r"""Denoising score matching: one loss, with parametrisation, weighting and time sampling as three independent objects.

$$ L = \mathrm E_{x_0, t, \varepsilon}\big[\,w(t)\,|\hat x_0(x_t, t) - x_0|^2\,\big], \quad x_t = \alpha x_0 +
  \sigma\varepsilon $$

A weighting is defined once, on this loss on $x_0$; each parametrisation turns it into a weight on its own regression
by the factor $(\partial\,\mathrm{data}/\partial F)^2$. Without a weighting the loss is the plain square error of what
the network answers, the natural one of each parametrisation: the simple loss of DDPM for noise, EDM's for `edm`, flow
matching's for `velocity` on `FlowSDE`. The loss is a mean over the coordinates of a sample; it does not go to zero,
but to the variance of the data given $x_t$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import (
    check_callable,
    check_count,
    check_finite,
    check_flag,
    check_like,
    check_positive,
    check_real,
    check_state,
)
from sde_diffusion._linear import as_float64, rows
from sde_diffusion._network import Network
from sde_diffusion.conditions import Conditions
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.predict import Parametrisation, held
from sde_diffusion.sde import GaussianSDE, Level, Scalar

Weighting = Callable[[Level], Scalar]
TimeSampler = Callable[[GaussianSDE, Tensor], Tensor]


def data_weight(at: Level) -> Scalar:
    r"""$w = 1$: the square error of the data."""
    return at.alpha * 0 + 1.0


def noise_weight(at: Level) -> Scalar:
    r"""$w = \alpha^2/\sigma^2$: the square error of the noise, DDPM's simple loss (Ho et al., 2020)."""
    return (at.alpha / at.sigma) ** 2


def likelihood_weight(at: Level) -> Scalar:
    r"""$w = -\lambda'\,e^{2\lambda}$, the same as $g^2/2$ on the score (Song et al., 2021).

    With uniform times, the loss times $D\,(t_{max} - t_{min})$ bounds minus the log-likelihood in nats, up to a
    constant.
    """
    turn = at.alpha * at.dsigma - at.sigma * at.dalpha  # -lambda' alpha sigma, finite where alpha = 0
    return turn * at.alpha / at.sigma**3


@dataclass(frozen=True)
class EDMWeight:
    r"""$w = (S^2 + c^2)/(Sc)^2$ with $S = \sigma/\alpha$: unit effective weight at every level for EDM's $F$ (Karras
    et al., 2022).

    Args:
        data_std: $c$.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.data_std, "data_std")

    def __call__(self, at: Level) -> Scalar:
        return (at.alpha / at.sigma) ** 2 + 1 / self.data_std**2


@dataclass(frozen=True)
class MinSNR:
    r"""$w = \min(\mathrm{SNR}, \gamma)$ with $\mathrm{SNR} = \alpha^2/\sigma^2$ (Hang et al., 2023).

    Args:
        gamma: $\gamma$.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive(self.gamma, "gamma")

    def __call__(self, at: Level) -> Scalar:
        snr = (at.alpha / at.sigma) ** 2
        return (snr if isinstance(snr, Tensor) else as_float64(snr)).clamp_max(self.gamma)


def uniform_time(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$t$ uniform on `[t_min, t_max]`."""
    return sde.t_min + (sde.t_max - sde.t_min) * u


@dataclass(frozen=True)
class LogNormalSigma:
    r"""$\log(\sigma/\alpha) \sim \mathcal N(m, s^2)$, clipped to the range of the SDE (Karras et al., 2022).

    Args:
        mean: $m$; the defaults suit data of standard deviation about 0.5 to 1.
        std: $s$.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_real(self.mean, "mean")
        check_positive(self.std, "std")

    def __call__(self, sde: GaussianSDE, u: Tensor) -> Tensor:
        log_ratio = self.mean + self.std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return _at_lam(sde, -log_ratio)

    def scaled(self, data_std: float) -> LogNormalSigma:
        r"""The same for data of standard deviation $c$: $m + \log c$, since noise counts relative to the data."""
        return replace(self, mean=self.mean + math.log(data_std))


def uniform_log_snr(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$\lambda$ uniform over the range of the SDE: importance sampling for the likelihood weight on every Gaussian
    SDE.

    Raises:
        ValueError: The range is infinite.
    """
    low, high = sde.ends()
    if low == -float("inf"):
        raise ValueError(f"log-SNR is infinite at t_max of {sde!r}: choose t_max a little smaller")
    return _at_lam(sde, high + (low - high) * u)


def _at_lam(sde: GaussianSDE, lam: Tensor) -> Tensor:
    return sde.time_of(lam.clamp(*sde.ends())).clamp(sde.t_min, sde.t_max)


def stratified(n: int, generator: torch.Generator | None = None) -> Tensor:
    r"""`n` draws $u_i = \mathrm{mod}(u_0 + i/n, 1)$, each uniform on `[0, 1)`, one in every stratum, in random order.

    A low-discrepancy batch, at no cost: where the times dominate the variance of the loss, as on images, its noise
    falls to a third or a half; on small two-dimensional data by little.

    References:
        Kingma et al., Variational Diffusion Models, 2021 (Appendix I.1).
    """
    check_count(n, "n")
    u0 = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
    return (u0 + torch.randperm(n, generator=generator, device="cpu").to(torch.float64) / n) % 1.0


def denoising_score_matching(
    model: Denoiser,
    x0: Tensor,
    *,
    weight: Weighting | None = None,
    times: TimeSampler = uniform_time,
    low_discrepancy: bool = True,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    reduction: str = "mean",
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Tensor:
    r"""The denoising score matching loss of a model on one batch.

    Args:
        model: A `Network` (loss on what it answers), or any `Denoiser` (loss on the data prediction).
        x0: Data, shape `(B, *)`.
        weight: Weight on the loss on $x_0$, such as `noise_weight`; by default the plain square error of the answer.
        times: Maps uniform draws to times: `uniform_time`, `LogNormalSigma()`, `uniform_log_snr`. Those that suit the
            model, with their weight, are `recipes.recipe(model)`.
        low_discrepancy: Spreads the times of the batch evenly, `stratified`, rather than drawing them independently.
        generator: Source of the times and the noise, on the CPU.
        t: Times, shape `(B,)`, instead of drawn ones.
        eps: Noise, of the shape of `x0`, instead of drawn noise.
        reduction: `"mean"` over the batch, or `"none"` for one value per sample, shape `(B,)`.
        cond: Conditions by name, for those that are called as an argument here is: `cond={"weight": weight}`.
        **conditions: Handed to the model, as those of `cond` are.

    Returns:
        A scalar, or `(B,)`; differentiable in the parameters. One network evaluation.

    Raises:
        TypeError: Integer or half-precision data, or a model that is not a `Denoiser`.
        ValueError: Empty or non-finite data, a wrong shape or an unknown reduction; a time where alpha = 0 and the
            weight on the answer of this network grows without bound.

    References:
        Vincent, 2011; Song et al., Score-Based Generative Modeling through SDEs, 2021 (equation 7).
    """
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"the loss needs a Denoiser: wrap the network, Network(net, sde, predict.noise), got {type(model).__name__}"
        )
    check_finite(check_state(x0, "x0", shape=model.shape), "x0")
    if weight is not None:
        check_callable(weight, "weight", "a function of a level, such as losses.noise_weight")
    check_callable(times, "times", "a function (sde, u) -> t, such as losses.uniform_time")
    check_flag(low_discrepancy, "low_discrepancy")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: torch.Generator()")
    if str(reduction) not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    n = len(x0)
    if t is None:
        u = (
            stratified(n, generator)
            if low_discrepancy
            else torch.rand(n, dtype=torch.float64, generator=generator, device="cpu")
        )
        t = times(model.sde, u).to(x0.device)
    if eps is None:
        eps = torch.randn(x0.shape, dtype=x0.dtype, generator=generator, device="cpu").to(x0.device)
    check_like(eps, "eps", x0, "x0")
    at = model.sde.level(t, x0)
    x = at.alpha * x0 + at.sigma * eps
    given = Conditions.of(model, {"cond": cond, **conditions}, len(x0)).whole
    error = _error(model, x, x0, eps, at, weight, given)
    return error.mean() if reduction == "mean" else error


def _error(
    model: Denoiser, x: Tensor, x0: Tensor, eps: Tensor, at: Level, weight: Weighting | None, cond: dict[str, Any]
) -> Tensor:
    """The weighted square error per sample, shape `(B,)`."""
    if isinstance(model, Network):
        on_x0, on_eps = model.kind.target(at)
        difference = model.output(x, at, **cond) - (on_x0 * x0 + on_eps * eps)
        w: Scalar = 1.0 if weight is None else _on_answer(weight, at, model.kind)
    else:
        difference = held(model.predict(x, at, **cond), x).data - x0
        w = 1.0 if weight is None else _on_answer(weight, at, None)
    square = rows(difference.square()).mean(1)
    return square * w.reshape(-1).to(square) if isinstance(w, Tensor) else square * w


def name_of(thing: object) -> str:
    """Name of a function, or the repr of what has none."""
    return getattr(thing, "__name__", None) or repr(thing)


def _on_answer(weight: Weighting, at: Level, kind: Parametrisation | None) -> Scalar:
    r"""$w\,(\partial\,\mathrm{data}/\partial F)^2$; where alpha = 0 its limit, or `ValueError` where it has none."""
    w = _product(weight, at, kind)
    zero: Tensor = at.alpha == 0
    if not bool(zero.any()):
        return w
    limit = as_float64(_product(weight, _short_of_the_end(at), kind)).broadcast_to(zero.shape)
    grows = zero & ~(limit.abs() < 1e30).to(zero.device)
    if bool(grows.any()):
        t = float(at.t[grows].flatten()[0])
        what = "the data" if kind is None else f"the answer of {kind!r}"
        raise ValueError(
            f"the weight {name_of(weight)} on {what} grows without bound where alpha = 0 "
            f"(t = {t:g}): end at a smaller t (t_max= of the SDE, or times=), or take noise_weight, or "
            "predict.velocity, v, edm or data"
        )
    return torch.where(zero, limit.to(zero.device, at.alpha.dtype), w)


def _product(weight: Weighting, at: Level, kind: Parametrisation | None) -> Scalar:
    w = weight(at)
    return w if kind is None else w * kind.coefficients(at).data_f ** 2


def _short_of_the_end(at: Level) -> Level:
    """The level, in float64, with an alpha of 1e-100 where it is 0: what is finite there is the limit."""
    columns = [c.to("cpu", torch.float64) for c in (at.t, at.alpha, at.sigma, at.dalpha, at.dsigma)]
    t, alpha, sigma, dalpha, dsigma = columns
    alpha = torch.where(alpha == 0, 1e-100, alpha)
    return Level(t, alpha, sigma, dalpha, dsigma, torch.log(alpha / sigma))
