"""What learns: model, objective and optimiser, one step at a time, and the averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import OPTIONS
from sde_diffusion.nets.base import kept_names
from sde_diffusion.training._input import check_loss, floating
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import RATE, Recipe
from sde_diffusion.training.run.engine import Engine
from sde_diffusion.training.run.feed import Part

TAKEN = OPTIONS | {"t", "eps", "generator", "cond"}
"""Names of conditions that are arguments of an objective, which gets them in a mapping `cond`."""


class Loss(nn.Module):
    """Model and objective as one module whose answer is the loss, so that gradients are shared between processes."""

    def __init__(self, model: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, draws: dict[str, Any], cond: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch."""
        if apart := {name: cond[name] for name in cond if name in TAKEN}:
            cond = {**{name: cond[name] for name in cond if name not in TAKEN}, "cond": apart}
        return check_loss(self.objective(self.model, x, **draws, **cond), self.model)


class Learner:
    """A model and what it is trained by.

    Args:
        model: The model, trained in place.
        objective: What is minimised; one that is a module is trained as well.
        recipe: How.
        engine: What it runs on.

    Attributes:
        averages: The average of each decay of the recipe.
        whole: Whether nothing is half changed, so that all of it can be saved.
    """

    def __init__(self, model: Denoiser, objective: Objective, recipe: Recipe, engine: Engine) -> None:
        self.model, self.objective, self.recipe, self.engine = model, objective, recipe, engine
        self._kept = kept_names(model)  # of a base, which a run does not keep
        if any(p.requires_grad for name, p in model.named_parameters() if name in self._kept):
            raise ValueError(
                "the base of a control, or of adapters, was set to be trained, and is shared with the network that it "
                "was made of: to train all of it, build Controlled(net, ..., frozen=False), or merge the adapters"
            )
        loss = Loss(model, objective)
        self._parameters = [p for p in loss.parameters() if p.requires_grad]
        if engine.ranks > 1:  # torch writes to stderr of a network that happens to use all of its parameters
            loss.idle = nn.Parameter(torch.zeros((), device=engine.device))
        self._optimiser = recipe.optimiser(self._parameters, recipe.lr or RATE)
        optimiser: object = self._optimiser
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise TypeError(
                f"optimiser answered {type(optimiser).__name__}, wanted a torch.optim.Optimizer: is a return missing?"
            )
        _check_groups(self._optimiser, self._parameters)
        self._rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._module, self._engaged = engine.prepare(loss, self._optimiser)  # the weights of the first process, now
        self.averages = [EMA(model, decay) for decay in recipe.decays]
        self.whole = True

    @property
    def rate(self) -> float:
        """The learning rate of the last step, of the first group of parameters."""
        return float(self._optimiser.param_groups[0]["lr"])

    def gradient(self, parts: list[Part]) -> tuple[float, float]:
        """The loss of this share of a batch, and the norm of the gradient of the whole batch; it is clipped."""
        total = 0.0
        for k, part in enumerate(parts, 1):
            with self.engine.accumulating(self._module, last=k == len(parts)):
                loss = self._module(part.x, part.draws, part.cond) * part.weight
                self.engine.backward(loss * math.nan if part.broken else loss)  # which all processes see
            total += math.nan if part.broken else float(loss.detach())
        return total, self.engine.clip(self._parameters, self.recipe.clip)

    def move(self, factor: float, finite: bool) -> None:
        """A step of the optimiser along the gradient, or none where that is not finite.

        Args:
            factor: On the learning rate.
            finite: Whether the gradient is.
        """
        self.whole = False
        if finite or self.engine.scaler is not None:  # which has to know
            for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
            # that of accelerate looks for packages on the disk in every step, and is of use to a scaler alone
            (self._optimiser if self.engine.scaler is None else self._engaged).step()
        self._optimiser.zero_grad()
        if finite:
            for average in self.averages:
                average.update(self.model)
        self.whole = True

    def unsound(self) -> str | None:
        """Which parameter, of the model or of an average, is not finite; None where all are.

        One pass over the weights, and one number that is read from the device.
        """
        models: list[nn.Module] = [self.model, *(average.model for average in self.averages)]
        named = [(name, p) for model in models for name, p in model.named_parameters() if floating(p)]
        if bool(torch.stack([n.float() for n in torch._foreach_norm([p.detach() for _, p in named])]).isfinite().all()):
            return None
        return next((name for name, p in named if not bool(p.isfinite().all())), None)  # none: a norm that overflows

    def forget(self) -> None:
        """Leaves no gradient behind."""
        self._optimiser.zero_grad()

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        scaler = self.engine.scaler
        return {
            "model": {name: value for name, value in self.model.state_dict().items() if name not in self._kept},
            "objective": self.objective.state_dict() if isinstance(self.objective, nn.Module) else None,
            "optimiser": self._optimiser.state_dict(),
            "rates": self._rates,
            "averages": [average.state() for average in self.averages],
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of another: what follows is the same."""
        base = {name: value for name, value in self.model.state_dict().items() if name in self._kept}
        self.model.load_state_dict({**base, **state["model"]})
        if isinstance(self.objective, nn.Module):
            self.objective.load_state_dict(state["objective"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rates = state["rates"]
        for average, before in zip(self.averages, state["averages"], strict=True):
            average.load_state(before)
        if self.engine.scaler is not None:
            self.engine.scaler.load_state_dict(state["scaler"])


def _check_groups(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Raises `ValueError` unless an optimiser holds the parameters it was made for, and no others."""
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    own = {id(p) for p in parameters}
    if strange := len(held - own):
        raise ValueError(
            f"the optimiser holds {strange} parameters of {len(held)} that are not those of the model, which would "
            "learn nothing: make it of the parameters that it is called with, optimiser(parameters, lr)"
        )
    if missing := len(own - held):
        raise ValueError(
            f"the optimiser holds {len(held)} of the {len(own)} parameters that it was called with, and {missing} "
            "would stay as they are: give it all; what is not to be trained has requires_grad=False"
        )
