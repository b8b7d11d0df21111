r"""A bound on log p(x) through a codec: the evidence lower bound of an autoencoder whose prior is a diffusion.

$$ \log p(x) = \log\int p(x \mid z)\,p(z)\,dz \ge
   \mathrm E_{q(z \mid x)}[\log p(x \mid z) + \log p(z)] + \mathrm H[q(z \mid x)] $$

with $p(x \mid z) = \mathcal N(d(z), \text{noise}^2 I)$ of the decoder, $q$ the Gaussian of the encoder and $p(z)$ the
model of the codes. The three terms do not depend on the scale of the codes when taken together. It is never exact: it
lies below by $\mathrm{KL}(q\,\|\,p(z \mid x))$, which is 0 only where the encoder is the posterior.

References: Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Vahdat et al., Score-based Generative Modeling
in Latent Space, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_positive, check_state
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.chunks import counted_from
from sde_diffusion.denoiser.conditions import check_options
from sde_diffusion.latent.codec import Code
from sde_diffusion.latent.result import LatentBound
from sde_diffusion.latent.sampler import LatentSampler
from sde_diffusion.likelihood.bound import continuous_elbo
from sde_diffusion.likelihood.bound_terms import Estimate, one_of
from sde_diffusion.likelihood.decoder import GaussianDecoder, discretised_gaussian_log_prob
from sde_diffusion.likelihood.exact import Method, check_kind
from sde_diffusion.likelihood.route import Density, LikelihoodWarning
from sde_diffusion.noise.seeds import Use, apart, seed_list
from sde_diffusion.noise.sources import Streams

__all__ = ["elbo"]

OPTIONS = {name: f"method=Method({name}=...)" for name in ("solver", "steps", "trace", "solver_error")} | {
    **{name: f"estimate=Estimate({name}=...)" for name in ("levels", "importance", "control", "chunk")},
    **{name: f"density=Density({name}=...)" for name in ("level", "whole", "correct")},
    "noise": "decoder=GaussianDecoder(std=...)",
    "bins": "decoder=GaussianDecoder(bins=...)",
    "codec": "LatentSampler(sampler, codec), which is the first argument",
}
"""What belongs into a value, by the name under which it may be looked for among the arguments."""


@torch.no_grad()
def elbo(
    sampler: LatentSampler,
    x0: Tensor,
    *,
    method: Method | None = None,
    estimate: Estimate | None = None,
    density: Density = Density(),
    decoder: GaussianDecoder = GaussianDecoder(),
    draws: int = 4,
    entropy: str = "drawn",
    stretch: float = 1.0,
    seed: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    **cond: Any,
) -> LatentBound:
    r"""A lower bound on log p(x) of data under a latent diffusion, term by term, each with its standard error.

    The codes are weighed by the density of the probability flow, one ODE a draw, with its solver error, and that of
    random probes above 128 dimensions in the spread of the draws; or, with `estimate`, by the bound of the diffusion,
    which is cheaper and looser.

    Args:
        sampler: The model of the codes and the codec.
        x0: Data, shape `(B, *)`; at bin centres if the decoder has bins.
        method: How the density of a code is integrated, as in `likelihood.log_prob`; the default, without `estimate`.
        estimate: Weighs the codes by `likelihood.continuous_elbo` with this, such as `Estimate(levels=64)`.
        density: Which density of the codes, as in `likelihood.log_prob`; it is not corrected, or would be no density.
        decoder: Its `std`, by default the `noise` of the codec, in units of the data; and bins, with which the bound
            is one on the log-probability of discrete values.
        draws: $K$, codes drawn for each sample; the standard error needs two.
        entropy: `"drawn"`, $-\log q$ at the draws of the other terms, whose noise it cancels where the encoder is near
            the posterior: at the posterior all of it; or `"exact"`, in closed form, the better where the encoder is far
            too narrow. Both are unbiased.
        stretch: How many times as wide as the encoder says the codes are drawn. Whatever the width it is a bound, and
            the tightest is at that of the posterior. A codec trained with `Reconstruction(kl=w)` to its optimum is
            narrower, by $\sqrt w$; one that is not there, or compresses little, may be right at 1. Try several, on
            rows that are not those of the figure.
        seed: `k` gives sample `i` the stream `k + i`, a sequence gives those streams, None fresh entropy.
        batch_size: Rows of the data at once, all by default; changes memory and nothing else.
        **cond: Conditions by name, handed to the model of the codes; see `conditions`. Those that are called as an
            argument here go into `cond={"draws": draws}`.

    Returns:
        The bound.

    Raises:
        TypeError: No `LatentSampler`, both `method` and `estimate`, an `estimate` on a general SDE, a decoder that is
            not Gaussian, or integer or half-precision data.
        ValueError: Data that are empty, not finite or of another shape, a codec without `noise` or with a standard
            deviation of 0, or an unknown option.

    Warns:
        LikelihoodWarning: Codes whose integration did not arrive; their samples are NaN.

    Example:
        >>> print(latent.elbo(LatentSampler(SDESampler(sde, model), codec), x0, seed=0))
    """
    check_options(cond, OPTIONS)
    course = _Course.of(sampler, method, estimate, density, decoder)
    one_of("entropy", entropy, "exact", "drawn")
    course = replace(
        course, draws=check_count(draws, "draws"), entropy=entropy, stretch=check_positive(stretch, "stretch")
    )
    check_finite(check_state(x0, "x0", shape=sampler.shape), "x0")
    n = len(x0)
    given, seeds = sampler.conditions(cond, n), seed_list(seed, n)
    size = n if batch_size is None else check_count(batch_size, "batch_size")
    if size < n:
        given.check_apart(f"in batches of {size}")
    found = []
    for part in (slice(i, min(i + size, n)) for i in range(0, n, size)):
        with counted_from(part.start, LikelihoodWarning, UserWarning):
            found.append(course.bound(x0[part], seeds[part], given.marked(part)))
    return found[0] if len(found) == 1 else LatentBound.join(found)


class _Weighed(NamedTuple):
    """The log-density of a batch of codes or a bound on it, with its errors, each `(B,)`."""

    value: Tensor
    solver_error: Tensor
    truncation: Tensor
    level: float
    nfe: int


@dataclass(frozen=True)
class _Course:
    """How the terms are found: all that the rows have in common."""

    sampler: LatentSampler
    method: Method
    estimate: Estimate | None
    density: Density
    decoder: GaussianDecoder
    std: float
    draws: int = 4
    entropy: str = "drawn"
    stretch: float = 1.0

    @classmethod
    def of(
        cls,
        sampler: LatentSampler,
        method: Method | None,
        estimate: Estimate | None,
        density: Density,
        decoder: GaussianDecoder,
    ) -> _Course:
        given: object = sampler
        if not isinstance(given, LatentSampler):
            raise TypeError(
                f"sampler must be a LatentSampler(sampler, codec), got {type(given).__name__}; without a codec "
                "likelihood.elbo is the bound and sampler.log_prob exact"
            )
        if method is not None and estimate is not None:
            raise TypeError("method= is for the exact density of codes and estimate= for a bound on it: give one")
        method = Method() if method is None else method
        check_kind(method, "method", Method)
        check_kind(density, "density", Density)
        if density.correct:
            raise ValueError("correct=True makes the prior no density, and the sum no bound: leave it out")
        if estimate is not None:
            _check_estimate(sampler, estimate, density)
        law: object = decoder
        if not isinstance(law, GaussianDecoder):
            raise TypeError(f"decoder must be a GaussianDecoder, with or without bins, got {law!r}")
        return cls(sampler, method, estimate, density, decoder, _std(sampler, decoder))

    def bound(self, x: Tensor, seeds: list[int], cond: dict[str, Any]) -> LatentBound:
        """The bound of one batch, whose conditions are marked."""
        v = None if self.decoder.bins is None else self.decoder.bins.index(x, "x0")
        code = self._code(x)
        streams = Streams(apart(seeds, Use.CODES), code.mean.shape[1:], code.mean.dtype, code.mean.device)
        weigh = self._exact if self.estimate is None else self._bounded
        terms, priors = [], []
        for _ in range(self.draws):
            eps = streams(0.0, 0.0)
            own = [int(torch.randint(2**32, (), generator=g, device="cpu")) for g in streams.generators]
            z = code.at(eps)
            prior = weigh(z, own, cond)
            terms.append(torch.stack([self._reconstruction(x, z, v), prior.value, self._entropy(code, eps)], -1))
            priors.append(prior)
        return LatentBound(
            draws=torch.stack(terms),
            by="log_prob" if self.estimate is None else "bound",
            solver_error=torch.stack([prior.solver_error for prior in priors]).mean(0),
            truncation=torch.stack([prior.truncation for prior in priors]).mean(0),
            level=priors[0].level,
            dim=x[0].numel(),
            code_dim=code.mean[0].numel(),
            discrete=v is not None,
            stretch=self.stretch,
            nfe=sum(prior.nfe for prior in priors),
        )

    def _code(self, x: Tensor) -> Code:
        """The law of the codes of data, whose standard deviation is above 0."""
        code = self.sampler.law(x)
        if not bool((code.std > 0).all()):
            raise ValueError(
                f"{type(self.sampler.codec).__name__}.encode answered a standard deviation of 0, of a codec that is a "
                "plain function: it has no law of codes, and so no bound. Give one that answers mean and standard "
                "deviation"
            )
        return code._replace(std=code.std * self.stretch)

    def _exact(self, z: Tensor, seeds: list[int], cond: dict[str, Any]) -> _Weighed:
        """Codes weighed by their density."""
        found = self.sampler.sampler.log_prob(z, seed=seeds, method=self.method, density=self.density, cond=cond)
        value, solver_error, truncation = (_wide(v) for v in (found.value, found.solver_error, found.truncation))
        return _Weighed(value, solver_error, truncation, found.level, found.nfe + found.nfe_check)

    def _bounded(self, z: Tensor, seeds: list[int], cond: dict[str, Any]) -> _Weighed:
        """Codes weighed by the bound of the diffusion, which no solver has a part in."""
        problem, estimate = self.sampler.sampler.problem, self.estimate or Estimate()
        model = cast("Denoiser", problem.model)  # as `_check_estimate` has seen
        found = continuous_elbo(model, z, prior=problem.prior, estimate=estimate, seed=seeds, cond=cond)
        none = torch.zeros_like(found.total)
        return _Weighed(-found.total, none, none, math.nan, found.nfe)

    def _reconstruction(self, x: Tensor, z: Tensor, v: Tensor | None) -> Tensor:
        mean = _wide(self.sampler.decode(z))
        if v is not None and self.decoder.bins is not None:
            return rows(discretised_gaussian_log_prob(mean, self.std, v, self.decoder.bins)).sum(1)
        off = rows((_wide(x) - mean) / self.std)
        return -0.5 * off.square().sum(1) - off.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))

    def _entropy(self, code: Code, eps: Tensor) -> Tensor:
        square = 1.0 if self.entropy == "exact" else rows(_wide(eps)).square()
        return (rows(_wide(code.std)).log() + 0.5 * (square + math.log(2 * math.pi))).sum(1)


def _check_estimate(sampler: LatentSampler, estimate: object, density: Density) -> None:
    if not isinstance(estimate, Estimate):
        raise TypeError(f"estimate must be an Estimate, such as Estimate(levels=64), got {estimate!r}")
    if density != Density():
        raise TypeError("density= is for the exact density of codes: the bound by estimate= has none to choose")
    if not isinstance(sampler.sampler.model, Denoiser):
        raise TypeError(
            f"estimate= asks the bound of a Denoiser on a GaussianSDE, and {sampler.sampler.sde!r} is a general SDE: "
            "leave it out"
        )


def _std(sampler: LatentSampler, decoder: GaussianDecoder) -> float:
    """The standard deviation of the decoder: its own, else that of the codec."""
    noise = sampler.codec.noise
    if decoder.std is not None:
        return decoder.std
    if noise is None:
        raise ValueError(
            f"{type(sampler.codec).__name__} does not know the noise of its decoder, without which there is no density "
            "of data: give decoder=GaussianDecoder(std=...), such as the root of the mean square error of what it "
            "decodes, or codec.noise"
        )
    if isinstance(noise, Tensor) and noise.numel() != 1:
        raise ValueError(
            f"noise of {type(sampler.codec).__name__} has shape {tuple(noise.shape)}: wanted one number, the standard "
            "deviation of its decoder"
        )
    return check_positive(float(noise) if isinstance(noise, Tensor) else noise, "the noise of the codec")


def _wide(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
