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
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_diffusion._checks import check_callable, check_finite, check_flag, check_like, check_state
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.objectives.time_samplers import TimeSampler, stratified, uniform_time
from sde_diffusion.denoiser.objectives.weights import Weighting, name_of, on_answer
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar

LARGEST_STATE = 3.0
"""Size of a state, in standard deviations, up to which a network of order one learns from it as it is."""
LARGEST_GAIN = 400.0
"""Error of the data per relative error of the answer at `t_max` up to which noise and score can be learnt."""


@runtime_checkable
class Regressed(Protocol):
    """What the loss asks of a model; every `Denoiser` has it."""

    sde: GaussianSDE
    shape: tuple[int, ...] | None
    kind: Parametrisation | None

    def residual(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> Tensor:
        """How far the answer at the state `x` is from what it should be, shape `(B, *)`."""

    def gain(self, at: Level) -> Scalar:
        """How much the data prediction changes with the answer."""


@dataclass(frozen=True, repr=False)
class DenoisingScoreMatching:
    """Denoising score matching as an objective: how noise levels are drawn, and how they are weighed.

    Called as `loss(model, x0)` it gives the loss of a model on one batch: one network evaluation. The one that suits a
    model is `model.objective()`, and `model.loss(x0)` is that one, called.

    Args:
        times: A map from uniform draws to times: `uniform_time`, `LogNormalSigma()`, `uniform_log_snr`.
        weight: The weight on the loss on $x_0$, such as `noise_weight`; None for the plain square error of the answer.
        low_discrepancy: Whether the times of a batch are spread evenly, by `stratified`, or drawn independently.

    Raises:
        TypeError: `times` or `weight` is no function, or `low_discrepancy` neither True nor False.

    References:
        Vincent, A Connection Between Score Matching and Denoising Autoencoders, 2011; Song et al., Score-Based
        Generative Modeling through SDEs, 2021 (equation 7).
    """

    times: TimeSampler = uniform_time
    weight: Weighting | None = None
    low_discrepancy: bool = True

    def __post_init__(self) -> None:
        check_callable(self.times, "times", "a function (sde, u) -> t, such as losses.uniform_time")
        if self.weight is not None:
            check_callable(self.weight, "weight", "a function of a level, such as losses.noise_weight")
        check_flag(self.low_discrepancy, "low_discrepancy")

    def __repr__(self) -> str:
        apart = "" if self.low_discrepancy else ", low_discrepancy=False"
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
        """The loss of a model on one batch; one network evaluation.

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
            TypeError: Integer or half-precision data, or a model that is not a `Denoiser`.
            ValueError: Empty or non-finite data, a wrong shape or an unknown reduction; a time where alpha = 0 and the
                weight on the answer of this model grows without bound.
        """
        _check(model, x0, generator, reduction)
        given = Conditions.of(model, cond, len(x0)).whole
        if t is None:
            t = self.times(model.sde, self._uniform(len(x0), generator)).to(x0.device)
        if eps is None:
            eps = torch.randn(x0.shape, dtype=x0.dtype, generator=generator, device="cpu").to(x0.device)
        check_like(eps, "eps", x0, "x0")
        at = model.sde.level(t, x0)
        residual = model.residual(at.alpha * x0 + at.sigma * eps, at, x0, eps, **given)
        error = rows(residual.square()).mean(1)
        if self.weight is not None:
            what = "the data" if model.kind is None else f"the answer of {model.kind!r}"
            w = on_answer(self.weight, at, model.gain, what)
            error = error * (w.reshape(-1).to(error) if isinstance(w, Tensor) else w)
        return error.mean() if reduction == "mean" else error

    def _uniform(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.low_discrepancy:
            return stratified(n, generator)
        return torch.rand(n, dtype=torch.float64, generator=generator, device="cpu")


def _check(model: object, x0: Tensor, generator: object, reduction: object) -> None:
    if not isinstance(model, Regressed):
        raise TypeError(
            f"the loss needs a Denoiser: wrap the network, Network(net, sde, predict.noise), got {type(model).__name__}"
        )
    check_finite(check_state(x0, "x0", shape=model.shape), "x0")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: torch.Generator()")
    if str(reduction) not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")


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
