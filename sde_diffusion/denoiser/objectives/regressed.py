"""What an objective asks of a model, and refuses of its other arguments."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_state
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar


@runtime_checkable
class Regressed(Protocol):
    """What the loss asks of a model; every `Denoiser` has it."""

    sde: GaussianSDE
    shape: tuple[int, ...] | None
    data_std: float

    @property
    def kind(self) -> Parametrisation | None:
        """What its network answers; None for what is no network."""

    def residual(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> Tensor:
        """How far the answer at the state `x` is from what it should be, shape `(B, *)`."""

    def regress(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> tuple[Tensor, Tensor | None]:
        """The same, and the mix of variances in the answer, if there is one."""

    def gain(self, at: Level) -> Scalar:
        """How much the data prediction changes with the answer."""


def check_call(model: object, x0: Tensor, generator: object, reduction: object) -> None:
    """Raises unless an objective is called with a model, data, a generator and a reduction that are such."""
    if not isinstance(model, Regressed):
        raise TypeError(
            f"the loss needs a Denoiser: wrap the network, Network(net, sde, predict.noise), got {type(model).__name__}"
        )
    check_finite(check_state(x0, "x0", shape=model.shape), "x0")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}: torch.Generator()")
    if str(reduction) not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
