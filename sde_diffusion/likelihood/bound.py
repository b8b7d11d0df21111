r"""The variational bound: minus the log-likelihood of a chain, bounded from above, term by term.

A chain has levels $t_0 < t_1 < \dots < t_{T-1}$, the least noisy first; the lectures count them from 1. With $\hat x_0$
the data prediction at $x_t$ and $s$ the level below $t$,

$$ -\log p(x_0) \le \underbrace{\mathrm{KL}(q(x_{t_{T-1}} \mid x_0)\,\|\,\mathrm{prior})}_{\text{prior}}
   + \sum_{(s, t)}\underbrace{\mathrm E\,\mathrm{KL}(q(x_s \mid x_t, x_0)\,\|\,\mathcal N(\mu_{s|t}(x_t, \hat x_0),
     \varsigma^2I))}_{\text{transitions}}
   + \underbrace{\mathrm E[-\log p(x_0 \mid x_{t_0})]}_{\text{reconstruction}} $$

With $h = \lambda_s - \lambda_t$ and $\tilde\varsigma^2 = \sigma_s^2(1 - e^{-2h})$ the variance of the posterior $q$,

$$ \mathrm{KL} = \frac D2\Big(\frac{\tilde\varsigma^2}{\varsigma^2} - 1 - \log\frac{\tilde\varsigma^2}{\varsigma^2}\Big)
   + \frac{\alpha_s^2(1 - e^{-2h})^2}{2\varsigma^2}\,|x_0 - \hat x_0|^2, \quad
   |x_0 - \hat x_0|^2 = \frac{\sigma_t^2}{\alpha_t^2}\,|\varepsilon - \hat\varepsilon|^2 $$

The two variances of DDPM are `"posterior"`, $\varsigma^2 = \tilde\varsigma^2$, where the weights are $\tfrac12(e^{2
\lambda_s} - e^{2\lambda_t})$ on the data and $\tfrac12(e^{2h} - 1)$ on the noise, and `"forward"`, $\varsigma^2 =
\sigma_t^2(1 - e^{-2h})$, its $\beta_t$. All of it holds for the levels of any Gaussian SDE; a chain of infinitely many
is `continuous_elbo`. A network may have learnt a variance between the two, `"learned"`, for each coordinate; see
`denoiser.variance`.

References: Sohl-Dickstein et al., 2015; Ho et al., Denoising Diffusion Probabilistic Models, 2020 (equations 5 to 13);
Kingma et al., Variational Diffusion Models, 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_reals, check_state
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.chunks import counted_from
from sde_diffusion.denoiser.conditions import Conditions, check_options
from sde_diffusion.denoiser.variance import Step
from sde_diffusion.likelihood.bound_terms import Estimate, Run, decoder_std_of, one_of, prior_kl, proposal, weights
from sde_diffusion.likelihood.decoder import Decoder, GaussianDecoder
from sde_diffusion.likelihood.result import Elbo
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.prior import Prior, Standard
from sde_diffusion.sde.times import as_grid

__all__ = ["Estimate", "continuous_elbo", "elbo"]

_ESTIMATE = ("levels", "importance", "control", "draws", "chunk")
OPTIONS = {name: f"estimate=Estimate({name}=...)" for name in _ESTIMATE} | {
    "bins": "decoder=GaussianDecoder(bins=...)",
    "decoder_std": "decoder=GaussianDecoder(std=...)",
    "sde": "model.on(sde) for another process, prior=Matched(mean, variance) for another prior",
}
"""What belongs into a value, by the name under which it may be looked for among the arguments."""


@torch.no_grad()
def elbo(
    model: Denoiser,
    x0: Tensor,
    *,
    prior: Prior = Standard(),
    times: Iterable[float] | Tensor | None = None,
    variance: str = "posterior",
    decoder: Decoder = GaussianDecoder(),
    estimate: Estimate = Estimate(),
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    **cond: Any,
) -> Elbo:
    r"""The variational bound of a chain, such as DDPM's.

    Visits every level, at `draws * T` evaluations for `T` of them; or `levels` random ones, at `draws * (levels + 1)`,
    without bias: `draws` in each of `levels` slices of equal probability, anew for every sample. (Every `k`-th level
    from one offset is biased. A shorter chain, `times`, has a bound of its own.)

    Args:
        model: A denoiser; seen through another process it is `model.on(sde)`.
        x0: Data, shape `(B, *)`; at bin centres if the decoder has bins.
        prior: The law of the state at the last level: $\mathcal N(0, \sigma_T^2 I)$ by default; `Matched(0.0, 1.0)` is
            the $\mathcal N(0, I)$ of DDPM.
        times: Levels of the chain, on any Gaussian SDE; by default all indices of a process that is one.
        variance: The variance of the reverse step: `"posterior"`, or `"forward"`, which is the tighter on DDPM's linear
            schedule, or `"learned"`, of a network with `predict.LearnedVariance`, the tightest.
        decoder: The last step, by default a Gaussian one without bins, whose `std` is that of DDPM:
            $\beta_0^{1/2}$ for `"forward"`, that of the step above it for `"posterior"`, between them for `"learned"`.
        estimate: Random levels instead of all, draws of the noise, and what is taken out of them.
        seed: `k` gives sample `i` the stream `k + i`, a sequence gives those streams, None fresh entropy.
        batch_size: Rows of the data at once, all by default; changes memory and nothing else.
        **cond: Conditions by name, handed to the model; what is per sample is stacked with the samples, see
            `conditions`. Those that are called as an argument here go into `cond={"times": times}`.

    Returns:
        The bound, term by term.

    Raises:
        TypeError: A model that is no `Denoiser`, or has not learnt the variance that is asked for; an SDE without a
            chain and no `times`; integer or half-precision data.
        ValueError: Empty data, data off the bin centres, a bad grid, or an unknown option.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020 (equations 5 to 13).
    """
    check_options(cond, OPTIONS)
    if batch_size is not None:
        times = times if times is None or isinstance(times, Tensor) else list(times)
        same = partial(elbo, model, prior=prior, times=times, variance=variance, decoder=decoder, estimate=estimate)
        return _in_batches(same, model, x0, batch_size, seed, cond)
    one_of("variance", variance, "posterior", "forward", "learned")
    sde = _process(model, prior)
    if times is None and not sde.time_is_index:
        raise TypeError(
            f"elbo sums over the levels of a chain, such as DiscreteVPSDE, and {sde!r} has none: give times=, or ask "
            "continuous_elbo"
        )
    grid = sorted(as_grid(range(int(sde.t_max) + 1) if times is None else times, sde.t_min, sde.t_max))
    chain = sde.levels(grid)
    run = Run(model, x0, decoder, estimate, seed, cond)
    weight, constant = weights(chain, variance)
    levels_at, n = torch.tensor(grid, dtype=torch.float64, device="cpu"), len(weight)
    every = torch.arange(n, device="cpu")[:, None].expand(n, len(x0))
    p, levels = proposal(chain, estimate.importance), estimate.levels

    def terms(i: Tensor) -> Tensor:
        if variance == "learned":
            return run.divergences(levels_at[i + 1], levels_at[i])
        return weight[i] * run.errors(levels_at[i + 1])

    def transitions() -> tuple[Tensor, Tensor]:
        if levels is None:
            return terms(every), every
        i = torch.searchsorted(p.cumsum(0), run.slices(levels)).clamp_max(n - 1)
        return terms(i) / p[i] / levels, i

    found = _collect(run, transitions, n, chain[0].t, decoder_std_of(chain[0], chain[1], variance))
    return replace(
        found, prior=prior_kl(prior, sde, x0, chain[-1]), transitions=found.transitions + found.dim * constant
    )


@torch.no_grad()
def continuous_elbo(
    model: Denoiser,
    x0: Tensor,
    *,
    prior: Prior = Standard(),
    lam: tuple[float, float] | None = None,
    decoder: Decoder = GaussianDecoder(),
    estimate: Estimate = Estimate(),
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    **cond: Any,
) -> Elbo:
    r"""The variational bound of infinitely many levels, on any Gaussian SDE.

    $$ -\log p(x_0) \le \mathrm{prior} + \int_{\lambda_{min}}^{\lambda_{max}}\mathrm E\,|\varepsilon -
       \hat\varepsilon|^2\,d\lambda + \mathrm{reconstruction} $$

    The integral runs over half the log-SNR alone, whatever the SDE. It is sampled uniformly: one point in each of
    `levels` slices, `draws` times, anew for every sample, at `draws * (levels + 1)` evaluations. With an exact model, a
    prior that fits and little noise at the lower end it is $-\log p(x_0)$ itself.

    Args:
        model: A denoiser; seen through another process it is `model.on(sde)`.
        x0: Data, shape `(B, *)`; at bin centres if the decoder has bins.
        prior: As in `elbo`.
        lam: Smallest and largest $\lambda = \log(\alpha/\sigma)$; by default those of the SDE. $\gamma = -2\lambda$.
        decoder: As in `elbo`; the `std` of a Gaussian one is $\sigma/\alpha$ at the lowest level by default.
        estimate: Slices of the range, 64 by default, and the draws in each.
        seed: As in `elbo`.
        batch_size: As in `elbo`.
        **cond: As in `elbo`.

    Returns:
        The bound, term by term; its `transitions` are the slices.

    Raises:
        ValueError: A range that is infinite, reversed or outside the SDE's; the rest as for `elbo`.

    References:
        Kingma et al., Variational Diffusion Models, 2021 (equation 11).
    """
    check_options(cond, OPTIONS)
    if batch_size is not None:
        same = partial(continuous_elbo, model, prior=prior, lam=lam, decoder=decoder, estimate=estimate)
        return _in_batches(same, model, x0, batch_size, seed, cond)
    sde = _process(model, prior)
    last, first = sde.levels(_span(sde, lam))
    run = Run(model, x0, decoder, estimate, seed, cond)
    if not estimate.importance:
        raise ValueError("importance=False draws the levels of a chain by index: leave it out, here there is none")
    levels = 64 if estimate.levels is None else estimate.levels
    width = (first.lam - last.lam) / levels
    every = torch.arange(levels, device="cpu")[:, None].expand(levels, len(x0))

    def transitions() -> tuple[Tensor, Tensor]:
        at = first.lam - width * levels * run.slices(levels)
        return width * run.errors(sde.time_of(at).clamp(first.t, last.t), of_noise=True), every

    found = _collect(run, transitions, levels, first.t, first.ratio)
    return replace(found, prior=prior_kl(prior, sde, x0, last))


def _in_batches(
    bound: Callable[..., Elbo],
    model: Denoiser,
    x0: Tensor,
    batch_size: int,
    seed: int | Sequence[int] | None,
    cond: dict[str, Any],
) -> Elbo:
    """The bound of the rows of one batch after the other."""
    size, n = check_count(batch_size, "batch_size"), len(check_state(x0, "x0"))
    given, seeds = Conditions.of(model, cond, n), seed_list(seed, n)
    if size < n:
        given.check_apart(f"in batches of {size}")
    batches = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    found = []
    for rows in batches:
        with counted_from(rows.start, UserWarning):
            found.append(bound(x0[rows], seed=seeds[rows], cond=given.marked(rows)))
    return Elbo.join(found)


def _collect(
    run: Run,
    transitions: Callable[[], tuple[Tensor, Tensor]],
    n: int,
    t: float,
    std: float | Step,
) -> Elbo:
    """Averages all draws of the transitions, independent summands with their columns, and of the reconstruction.

    Args:
        run: The data, and the draws that are made of them.
        transitions: Makes one draw: values `(k, B)` and the columns that they belong to, of `n`.
        n: Number of transitions.
        t: Time of the lowest level.
        std: The standard deviation of a Gaussian decoder that has none of its own, or the step whose it is.
    """
    draws = run.draws
    found, recon, total = [], [], torch.zeros(n, len(run.x0), dtype=torch.float64, device="cpu")
    for _ in range(draws):
        values, columns = transitions()
        total.scatter_add_(0, columns, values)
        found.append(values)
        recon.append(run.reconstruction(t, std))
    lost = (~torch.isfinite(total).all(0) | ~torch.isfinite(torch.stack(recon)).all(0)).nonzero()[:, 0].tolist()
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(run.x0)} bounds are NaN or inf, and the others stand: the network answered so at "
            f"some level, first for row {lost[0]}. Call it on such a state to see",
            UserWarning,
            stacklevel=4,
        )
    parts = torch.cat([torch.stack(found), torch.stack(recon)[:, None]], 1)
    error = (parts.var(0).sum(0) / draws).sqrt() if draws > 1 else torch.full_like(recon[0], math.nan)
    recon_mean, d = parts[:, -1].mean(0), run.x0[0].numel()
    return Elbo(torch.zeros_like(error), total.T / draws, recon_mean, error, d, run.v is not None, run.nfe)


def _process(model: Denoiser, prior: Prior) -> GaussianSDE:
    """The process of the bound, which is that of the model."""
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"the bound needs a Denoiser, got {type(model).__name__}: wrap it, Network(net, sde, predict.noise); of a "
            "sampler or a problem give the model inside, sampler.model"
        )
    if not isinstance(prior, Prior):
        raise TypeError(f"prior must be a Prior such as Standard() or Matched(mean, variance), got {prior!r}")
    prior.check(model.sde, model.shape)
    return model.sde


def _span(sde: GaussianSDE, lam: tuple[float, float] | None) -> list[float]:
    """The last and the first time of a range of half log-SNR, by default that of the SDE."""
    low, high = sde.ends()
    if lam is not None:
        if len(check_reals(lam, "lam")) != 2:
            raise ValueError(f"lam must be the pair (smallest, largest) of half log-SNRs, got {lam!r}")
        slack = 1e-9 * max(1.0, abs(high), abs(low) if low > -math.inf else 0.0)
        if not (low - slack <= lam[0] < lam[1] <= high + slack):
            raise ValueError(f"lam must rise inside [{low:.6g}, {high:.6g}], the range of {sde!r}, got {lam!r}")
        low, high = lam
    if low == -math.inf:
        raise ValueError(
            f"the log-SNR is infinite at t_max of {sde!r}: give a range lam=(low, {high:.3g}), or a smaller t_max"
        )
    times = sde.time_of(torch.tensor([low, high], dtype=torch.float64, device="cpu"))
    return times.clamp(sde.t_min, sde.t_max).tolist()
