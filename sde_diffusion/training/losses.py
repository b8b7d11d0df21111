"""Objectives: what `train` minimises, and what a loop of one's own may.

An objective is called as `loss(model, x0, generator=..., **cond)` and answers a scalar. The one here is denoising score
matching, a value that holds a draw of noise levels and a weight; any function of that form is another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import (
    ImportanceSampler,
    LikelihoodImportance,
    LogitNormal,
    LogNormalSigma,
    TimeSampler,
    stratified,
    uniform_index,
    uniform_log_snr,
    uniform_time,
)
from sde_diffusion.denoiser.objectives.uncertainty import Uncertainty
from sde_diffusion.denoiser.objectives.weights import (
    P2,
    EDMWeight,
    MinSNR,
    Weighting,
    data_weight,
    likelihood_weight,
    name_of,
    noise_weight,
)

__all__ = [
    "P2",
    "DenoisingScoreMatching",
    "EDMWeight",
    "ImportanceSampler",
    "LikelihoodImportance",
    "LogNormalSigma",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "Tells",
    "TimeSampler",
    "Uncertainty",
    "Weighting",
    "data_weight",
    "denoising_score_matching",
    "likelihood_weight",
    "noise_weight",
    "stratified",
    "uniform_index",
    "uniform_log_snr",
    "uniform_time",
]


Objective = Callable[..., Tensor]
"""What is minimised: called as `loss(model, x0, generator=generator, **cond)`, it answers a scalar with a graph to the
parameters of the model. `x0` are data `(B, *)` on the device of the model, `generator` is the source of all it draws,
on the CPU, so that a run can be repeated, and `cond` holds the conditions by name: `label=`, where labels are given.
One with an attribute `staged` is called with `done=` as well, the share of the steps of the run that were taken; one
with an attribute `marked` gets its conditions as `PerSample` or `Shared`, since it takes batches apart; one with a
method `look_at(model)` is shown the model before the run, and may refuse it; and one that `Tells` makes conditions of
the data itself."""


@runtime_checkable
class Tells(Protocol):
    """An objective that makes conditions of the data, such as their low resolution, so that none come with them."""

    @property
    def tells(self) -> tuple[str, ...]:
        """The names of these conditions."""

    def shown(
        self, x0: Tensor, cond: Mapping[str, Any], generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """What a model is to answer of data `(B, *)`, and what it is told, those conditions among it."""

    def offset(self, dim: int) -> float:
        r"""Nats of data over those of what is answered: $D\log c$ of $D$ numbers $(x_0 - z)/c$, 0 of the data."""


def denoising_score_matching(
    model: Denoiser,
    x0: Tensor,
    *,
    weight: Weighting | None = None,
    times: TimeSampler = uniform_time,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    reduction: str = "mean",
    **cond: Any,
) -> Tensor:
    """The denoising score matching loss of a model on one batch, with levels and weight of one's choice.

    The same as `DenoisingScoreMatching(times, weight)(model, x0, ...)`, where the other arguments, the errors and the
    sources are described. `model.loss(x0)` has the levels and the weight that suit the model.

    Args:
        model: A `Network` (loss on what it answers), or any `Denoiser`.
        x0: Data, shape `(B, *)`.
        weight: The weight on the loss on $x_0$; by default the plain square error of the answer.
        times: A map from uniform draws to times.
        generator: The source of the times and the noise, on the CPU; None for torch's global random state.
        t: Times, shape `(B,)`, instead of drawn ones.
        eps: Noise, of the shape of `x0`, instead of drawn noise.
        reduction: `"mean"` over the batch, or `"none"` for one value per sample, shape `(B,)`.
        **cond: Conditions, handed to the model by name, or in a mapping `cond={...}`.

    Returns:
        A scalar, or `(B,)`; differentiable in the parameters. One network evaluation.
    """
    loss = DenoisingScoreMatching(times, weight)
    return loss(model, x0, generator=generator, t=t, eps=eps, reduction=reduction, **cond)


def said(objective: object) -> str:
    """An objective in a word: its name or repr, in which a network stands by its class alone."""
    if isinstance(objective, nn.Module):
        return type(objective).__name__
    made: Any = getattr(objective, "__dataclass_params__", None)
    if made is None or not made.repr or isinstance(objective, type):
        return name_of(objective)
    parts = {each.name: getattr(objective, each.name) for each in fields(cast(Any, objective)) if each.repr}
    if not any(isinstance(part, nn.Module) for part in parts.values()):
        return name_of(objective)
    words = {name: type(part).__name__ if isinstance(part, nn.Module) else repr(part) for name, part in parts.items()}
    return f"{type(objective).__name__}({', '.join(f'{name}={word}' for name, word in words.items())})"
