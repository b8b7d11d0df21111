r"""Denoising score matching, the objective that every denoiser can be trained by.

$$ L = \mathrm E_{x_0, t, \varepsilon}\big[\,w(t)\,|\hat x_0(x_t, t) - x_0|^2\,\big], \quad x_t = \alpha x_0 +
  \sigma\varepsilon $$

A weight is defined once, on this loss on $x_0$; a model that answers something else turns it into a weight on its own
regression by the factor $(\partial\,\mathrm{data}/\partial F)^2$. Without a weight the loss is the plain square error
of what the network answers, the natural loss of each parametrisation: the simple loss of DDPM for noise, EDM's for
`edm`, flow matching's for `velocity` on `FlowSDE`. The loss is a mean over the coordinates of a sample; it does not go
to zero, but to the variance of the data given $x_t$.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import (
    check_callable,
    check_count,
    check_flag,
    check_like,
    check_real,
)
from sde_diffusion._tensors import as_float64, rows
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.objectives.effective import as_lam, density
from sde_diffusion.denoiser.objectives.regressed import Regressed, check_call
from sde_diffusion.denoiser.objectives.terms import bound_of, controlled
from sde_diffusion.denoiser.objectives.time_samplers import ImportanceSampler, TimeSampler, stratified, uniform_time
from sde_diffusion.denoiser.objectives.weights import Weighting, name_of, on_answer
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar

LARGEST_STATE = 3.0
"""Size of a state, in standard deviations, up to which a network of order one learns from it as it is."""
LARGEST_GAIN = 400.0
"""Error of the data per relative error of the answer at `t_max` up to which noise and score can be learnt."""


@dataclass(frozen=True, repr=False)
class DenoisingScoreMatching:
    """Denoising score matching as an objective: how noise levels are drawn, and how they are weighed.

    Called as `loss(model, x0)` it gives the loss of a model on one batch: one network evaluation. The one that suits a
    model is `model.objective()`, and `model.loss(x0)` is that one, called.

    Args:
        times: A map from uniform draws to times: `uniform_time`, `LogNormalSigma()`, `uniform_log_snr`. The loss of an
            `ImportanceSampler` is weighed by its correction, at drawn times and at given ones.
        weight: The weight on the loss on $x_0$, such as `noise_weight`; None for the plain square error of the answer.
        low_discrepancy: Whether the times of a batch are spread evenly, by `stratified`, or drawn independently.
        control_variate: Whether what the noise adds to the variance at little noise is taken out, by `controlled`: the
            same loss on average, for a second network evaluation.
        variance_bound: $b$ for a network that answers a variance too, `predict.LearnedVariance`: the hybrid loss adds
            $b$ times the variational bound of the chain, in nats per coordinate, which trains the variance and leaves
            the mean alone. 0 trains the mean alone.

    Raises:
        TypeError: `times` or `weight` is no function, or a flag neither True nor False.
        ValueError: `variance_bound` is negative.

    References:
        Vincent, A Connection Between Score Matching and Denoising Autoencoders, 2011; Song et al., Score-Based
        Generative Modeling through SDEs, 2021 (equation 7); Nichol and Dhariwal, 2021 (equation 16: the hybrid loss).
    """

    times: TimeSampler = uniform_time
    weight: Weighting | None = None
    low_discrepancy: bool = True
    control_variate: bool = False
    variance_bound: float = 0.0

    def __post_init__(self) -> None:
        check_callable(self.times, "times", "a function (sde, u) -> t, such as losses.uniform_time")
        if self.weight is not None:
            check_callable(self.weight, "weight", "a function of a level, such as losses.noise_weight")
        check_flag(self.low_discrepancy, "low_discrepancy")
        check_flag(self.control_variate, "control_variate")
        if check_real(self.variance_bound, "variance_bound") < 0:
            raise ValueError(f"variance_bound must be 0 or more, got {self.variance_bound!r}: 1e-3 is usual, 0 is none")

    def __repr__(self) -> str:
        apart = "" if self.low_discrepancy else ", low_discrepancy=False"
        apart += ", control_variate=True" if self.control_variate else ""
        apart += f", variance_bound={self.variance_bound!r}" if self.variance_bound else ""
        weight = None if self.weight is None else name_of(self.weight)
        return f"{type(self).__name__}(times={name_of(self.times)}, weight={weight}{apart})"

    def __call__(
        self,
        model: Regressed,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        reduction: str = "mean",
        **cond: Any,
    ) -> Tensor:
        """The loss of a model on one batch; one network evaluation, two with the control variate.

        Args:
            model: A `Denoiser`: a `Network` has its loss on what it answers, a wrapped one on what the wrapped network
                answers, any other on its data prediction.
            x0: Data, shape `(B, *)`.
            generator: The source of the times and the noise, on the CPU; None for torch's global random state.
            t: Times, shape `(B,)`, instead of drawn ones.
            eps: Noise, of the shape of `x0`, instead of drawn noise.
            reduction: `"mean"` over the batch, or `"none"` for one value per sample, shape `(B,)`.
            **cond: Conditions, handed to the model by name. Those whose names are taken by an argument here go into a
                mapping: `cond={"t": ...}`.

        Returns:
            A scalar, or `(B,)`; differentiable in the parameters.

        Raises:
            TypeError: Integer or half-precision data, or a model that is not a `Denoiser`; with `variance_bound` one
                that learns no variance, or not on a chain.
            ValueError: Empty or non-finite data, a wrong shape or an unknown reduction; a time where alpha = 0 and the
                weight on the answer of this model grows without bound.
        """
        check_call(model, x0, generator, reduction)
        given = Conditions.of(model, cond, len(x0)).whole
        if t is None:
            t = self.times_for(model, len(x0), generator).to(x0.device)
        if eps is None:
            eps = _noise(x0.shape, x0.dtype, generator).to(x0.device)
        check_like(eps, "eps", x0, "x0")
        at = model.sde.level(t, x0)
        residual, mix = model.regress(at.alpha * x0 + at.sigma * eps, at, x0, eps, **given)
        error = rows(residual.square()).mean(1)
        if self.control_variate:
            error = error + controlled(model, at, x0, eps, given)
        w = self._on_answer(model, at)
        error = error * (w.reshape(-1).to(error) if isinstance(w, Tensor) else w)
        if self.variance_bound:
            error = error + self.variance_bound * bound_of(model, at, t, residual, mix)
        return error.mean() if reduction == "mean" else error

    def times_for(self, model: Regressed, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The times of a batch of `n`, shape `(n,)`, in float64 on the CPU.

        What a call draws first. A process that works on a share of the batch draws all of them and takes a slice.
        """
        u = stratified(n, generator) if self.low_discrepancy else _independent(n, generator)
        return self.times(model.sde, u)

    def draws(
        self,
        model: Regressed,
        shape: Iterable[int],
        n: int,
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """What a call draws for `n` data of an event shape: times `(n,)` and noise `(n, *shape)`, on the CPU.

        Args:
            model: The model that is to be trained, whose process the times belong to.
            shape: Event shape of the data.
            n: Size of the batch.
            generator: The source of both, on the CPU; None for torch's global random state.
            dtype: Of the noise: that of the data.
        """
        times = self.times_for(model, n, generator)
        return times, _noise((n, *shape), dtype, generator)

    def effective_weight(self, model: Regressed, lam: Tensor) -> Tensor:
        r"""$w(\lambda)$ with which the error of the noise counts in the end, see `effective`; shape `(n,)`, in float64.

        Args:
            model: The model that is to be trained: its process, and what it answers.
            lam: $\lambda = \log(\alpha/\sigma)$, shape `(n,)`.

        Raises:
            TypeError: `lam` is no float tensor.
            ValueError: A shape other than `(n,)`, or a time sampler that falls with its draws.
        """
        lam = as_lam(lam)
        p = density(self.times, model.sde, lam)
        inside = p > 0
        if not bool(inside.any()):
            return p
        times = model.sde.time_of(lam[inside]).clamp(model.sde.t_min, model.sde.t_max)
        at = model.sde.level(times, times[:, None])
        per_noise = self._on_answer(model, at) * (at.sigma / at.alpha / model.gain(at)) ** 2
        return p.masked_scatter(inside, p[inside] * as_float64(per_noise).expand(len(times), 1)[:, 0])

    def _on_answer(self, model: Regressed, at: Level) -> Scalar:
        """The weight on the square error of the answer, with the correction of the times."""
        times, weight = self.times, self.weight
        what = "the data" if model.kind is None else f"the answer of {model.kind!r}"
        if not isinstance(times, ImportanceSampler):
            return 1.0 if weight is None else on_answer(weight, at, model.gain, what)
        sde = model.sde
        if weight is None:
            name = f"that corrects for {name_of(times)}"
            return on_answer(lambda at: times.correction(sde, at), at, lambda at: 1.0, what, name)
        name = f"{name_of(weight)} with the correction of {name_of(times)}"
        return on_answer(lambda at: weight(at) * times.correction(sde, at), at, model.gain, what, name)


def _independent(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(check_count(n, "n"), dtype=torch.float64, generator=generator, device="cpu")


def _noise(shape: Iterable[int], dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    return torch.randn(tuple(shape), dtype=dtype, generator=generator, device="cpu")


def check_pair(kind: Parametrisation, sde: GaussianSDE) -> None:
    """Raises `ValueError` where a network of that kind does not learn the process over the whole of its range."""
    (last,) = sde.levels([sde.t_max])
    name = type(kind).__name__.lower()
    advice = ", or say which levels to train on, losses.DenoisingScoreMatching(times), if you know better"
    size = math.hypot(last.alpha, last.sigma) * float(kind.input_scale(last))
    if size > LARGEST_STATE:
        raise ValueError(
            f"a network that answers {name} would see states of size {size:.3g} as they are, on {sde!r}: take "
            f"predict.edm, which scales them, or VPSDE(), which keeps them small{advice}"
        )
    try:
        gain = abs(float(kind.coefficients(last).data_f)) * math.hypot(*map(float, kind.target(last)))
    except ValueError as error:  # where alpha = 0
        raise ValueError(f"{error}{advice}") from None
    if gain > LARGEST_GAIN:
        raise ValueError(
            f"a network that answers {name} hardly tells of the data at t_max = {sde.t_max:g} of {sde!r}: an error "
            f"there counts {gain:.3g} times. Take a smaller t_max (of a chain, leave out its last betas), or "
            f"predict.edm, velocity, v or data{advice}"
        )
