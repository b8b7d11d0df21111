"""Guidance by a reward: towards data that a function of one's own scores high."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_callable
from sde_diffusion._tensors import broken, rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.extrapolation import check_scale
from sde_diffusion.guidance.limits import Limits
from sde_diffusion.guidance.posterior.view import covariant
from sde_diffusion.guidance.probes import check_alone, check_slope, draws, graphless, with_graph
from sde_diffusion.guidance.twisted import Look, Twisted, graph_of
from sde_diffusion.sde.level import Level


class Reward(Twisted):
    r"""A model of $p(x_0)\,e^{s\,r(x_0)}$ for a reward $r$, by the twist $s\,r(\mathrm E[x_0 \mid x_t])$.

    $$ \Delta = \frac{\sigma^2}{\alpha}\,s\,\Big(\frac{\partial\,\mathrm{data}}{\partial x}\Big)^{\!\top}
       \nabla r(\mathrm{data}) $$

    The twist is the reward of the mean in place of a mean over rewards: exact up to a constant for a linear reward of
    Gaussian data, and an approximation else. A call takes one product with the Jacobian of the network besides its
    pass. A scale of 0 is off.

    Args:
        model: The model of $p$.
        reward: $r$, called as `reward(data)` with the data prediction, shape `(B, *)`; answers `(B,)`, each of its row
            alone, differentiably. A module is kept and moved with the model.
        scale: $s \geq 0$, in nats per unit of reward.
        low: Smallest noise level $\sigma/\alpha$ where it acts.
        high: Largest noise level where it acts.

    Raises:
        TypeError: `model` is no `Denoiser`; a reward that is no function, or answers something else than a floating
            tensor that can be differentiated.
        ValueError: A scale below 0; when first called, a reward that answers another shape or not finite numbers,
            differs when asked twice, mixes rows, or has a derivative that is zero everywhere.

    Example:
        >>> SDESampler(sde, Reward(model, lambda x0: -(x0 - 1).square().flatten(1).sum(1))).sample(64)

    References:
        Bansal et al., Universal Guidance for Diffusion Models, 2023; Song et al., Loss-Guided Diffusion Models, 2023.
    """

    of_data = True

    def __init__(
        self,
        model: Denoiser,
        reward: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(model)
        check_callable(reward, "reward", "a function of data (B, *) that answers (B,)")
        self.reward, self.scale = reward, check_scale(scale, "scale")
        self.limits = Limits(low, high)
        self.silent, self._looked = not self.scale, False
        if self.silent:
            self.kind = model.kind  # whose answers they are
            return
        self.vjps = model.vjps + model.cost
        self.even = model.even and self.limits.none

    def acts(self, at: Level) -> bool:
        return not self.silent and self.limits.any(at)

    def spent(self, at: Level) -> tuple[int, int]:
        passes, vjps = self.inner.spent(at)
        return passes, vjps + passes * self.acts(at)

    def weigh(self, x: Tensor, at: Level, **cond: Any) -> Look:
        z, prior = graph_of(self.inner, x, at, cond)
        with torch.inference_mode(mode=False), torch.enable_grad():
            value = with_graph(self.reward, prior.data, "the reward")
            log_twist = self.scale * valued(value, prior.data, "reward", "data")
            if (mask := self.limits.mask(at)) is not None:
                log_twist = torch.where(mask.reshape(-1), log_twist, 0.0)
        pull = slope_of(log_twist, prior.data)
        shift, log_twist = shift_of(log_twist, z, at, "reward")
        if not self._looked:
            self._look(prior.data)
        return Look(prior, covariant(rows(shift), rows(pull), at, self.data_std).reshape(x.shape), log_twist)

    def log_likelihood(self, x0: Tensor, **cond: Any) -> Tensor:
        return self.scale * valued(self.reward(x0), x0, "reward", "data")

    def _look(self, data: Tensor) -> None:
        """Whether the reward answers each row alone, and has a derivative, once."""

        def answer(x0: Tensor) -> Tensor:
            return numbered(self.reward(x0), x0, "reward", "data")

        x = draws(3, data[:1])
        check_alone(answer, x, "the reward")
        check_slope(answer, x, "the reward")
        self._looked = True

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}{self.limits.spelt()}"


def numbered(value: object, x: Tensor, who: str, of: str) -> Tensor:
    """Returns what a reward or a classifier answered, if it is one number for each row of `x`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the {who} must answer a tensor, one number for each row, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"the {who} must answer floating numbers, which can be differentiated, got {value.dtype}")
    if value.shape != (len(x),):
        raise ValueError(
            f"the {who} must answer one number for each row of its {of}, shape ({len(x)},), got {tuple(value.shape)}: "
            "sum over all but the batch, value.flatten(1).sum(1)"
        )
    return value


def valued(value: object, x: Tensor, who: str, of: str) -> Tensor:
    """`numbered`, of numbers that are finite."""
    found = numbered(value, x, who, of)
    if bool((~torch.isfinite(found.detach()) & ~broken(x)).any()):  # a row that is lost already has no say
        raise ValueError(f"the {who} answered numbers that are not finite for {of} that are: bound it, log(r + 1e-6)")
    return found


def slope_of(log_twist: Tensor, data: Tensor) -> Tensor:
    """The gradient of the twist in the data prediction; zero where there is none, which `shift_of` tells of."""
    if not log_twist.requires_grad:
        return torch.zeros_like(data)
    keep, ones = torch.is_grad_enabled(), torch.ones_like(log_twist)
    found: Any = torch.autograd.grad(log_twist, data, ones, retain_graph=True, create_graph=keep, allow_unused=True)[0]
    slope: Tensor = torch.zeros_like(data) if found is None else found
    return slope


def shift_of(log_twist: Tensor, z: Tensor, at: Level, who: str) -> tuple[Tensor, Tensor]:
    r"""$\Delta = (\sigma^2/\alpha)\,\nabla_z\log\psi$ and the twist, as parts of a graph where gradients are on.

    Raises:
        TypeError: No graph leads from the twist to the state.
    """
    keep = torch.is_grad_enabled()
    found = None
    if log_twist.requires_grad:
        ones = torch.ones_like(log_twist)
        (found,) = torch.autograd.grad(log_twist, z, ones, create_graph=keep, allow_unused=True)
    if found is None:
        raise graphless(f"the {who}")
    return at.sigma**2 / at.alpha * found, log_twist if keep else log_twist.detach()
