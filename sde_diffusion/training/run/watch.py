"""The validations of a run: what each found, the weights of the best one, and whether the run may end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.training.ema import EMA, tensors_of
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.stopping import EarlyStopping
from sde_diffusion.training.validation import Validation


class Watch:
    """What is known of a model on data that are kept out.

    Args:
        val: The validation.
        model: The averaged model, of which the best is a copy.

    Attributes:
        best: The averaged model as it was at the best validation.
        found: Step and numbers of each validation.
    """

    def __init__(self, val: Validation, model: Denoiser) -> None:
        self.val, self.best = val, EMA(model).model
        self.stopping = EarlyStopping(val.patience)
        self.found: list[dict[str, float]] = []

    @property
    def step(self) -> int | None:
        """The step of the best validation; None before the first."""
        return self.stopping.step if self.found else None

    @property
    def over(self) -> str | None:
        """Why the run may end; None while it may not."""
        if not self.stopping.over:
            return None
        return f"{self.stopping.worse} validations in a row were worse than that after step {self.stopping.step}"

    def due(self, step: int, steps: int) -> bool:
        """Whether a validation is to be made after a step, and was not."""
        of_map = isinstance(self.best, FlowMap)
        return self.val.due(step, steps, of_map=of_map) and not (self.found and self.found[-1]["step"] == step)

    def measure(self, model: Denoiser, loss: Objective, recipe: Recipe, step: int) -> tuple[dict[str, float], bool]:
        """The numbers of a validation, and whether it is the best so far; of a map, the last is."""
        measured = self.val.measure(model, loss, transform=recipe.transform)
        self.found.append({"step": step, **measured.metrics()})
        choose = self.stopping.take if isinstance(model, FlowMap) else self.stopping.update
        return measured.metrics(), choose(step, measured)

    def keep(self, model: nn.Module) -> None:
        """Keeps the weights of a model as the best."""
        _copy(model, self.best)

    def news(self, step: int) -> dict[str, Any] | None:
        """What the other processes are to hear of a validation after a step; None if there was none."""
        if not self.found or self.found[-1]["step"] != step:
            return None
        return {"found": self.found[-1], "stopping": self.stopping.state()}

    def hear(self, news: Mapping[str, Any], model: nn.Module) -> None:
        """Takes note of a validation that another process made of the same model."""
        self.stopping.load_state(news["stopping"])
        if self.found and self.found[-1]["step"] == news["found"]["step"]:
            return
        self.found.append(news["found"])
        if self.stopping.step == news["found"]["step"]:
            self.keep(model)

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        return {
            "found": self._numbers(),
            "stopping": self.stopping.state(),
            "best": tensors_of(self.best),
        }

    def _numbers(self) -> dict[str, Tensor]:
        """What was found, a tensor for each name, `step` first: a description of many validations would be long."""
        names = self.found[0] if self.found else ()
        return {n: torch.tensor([each[n] for each in self.found], dtype=torch.float64, device="cpu") for n in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what another had found."""
        columns = {name: of.tolist() for name, of in state["found"].items()}
        rows = zip(*columns.values(), strict=True)
        self.found = [{**dict(zip(columns, row, strict=True)), "step": int(row[0])} for row in rows]
        self.stopping.load_state(state["stopping"])
        with torch.no_grad():
            for name, value in tensors_of(self.best).items():
                value.copy_(state["best"][name])


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    new = tensors_of(source)
    for name, kept in tensors_of(target).items():
        kept.copy_(new[name])
