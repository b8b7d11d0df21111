"""The ways in which a flow map is trained, side by side: an objective, with the reach that suits it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import FlowMap
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.reach import Reach
from sde_diffusion.distillation import Consistency, MeanFlow, Progressive, Shortcut, Trajectory, recipe
from sde_diffusion.training import train

CALLS = (1, 2, 4)
HALVINGS = (8, 4, 2, 1)
"""The calls that progressive distillation comes down to, phase by phase, from 16."""


@dataclass(frozen=True)
class Lesson:
    """What a map is trained on, and how long.

    Args:
        teacher: The model whose flow is learnt.
        x0: Data.
        steps: Gradient steps.
        seed: Of batches, angles and noise.
        lr: The highest rate.
        transform: As of a recipe.
        cond: Conditions.
        batch: Rows of a step.
    """

    teacher: Denoiser
    x0: Any
    steps: int
    seed: int
    lr: float
    transform: Any = None
    cond: dict[str, Tensor] | None = None
    batch: int = 256

    def teach(self, fast: FlowMap, loss: Any, steps: int) -> FlowMap:
        """The average of the weights of a map, trained in place."""
        how = recipe(self.batch, self.lr, transform=self.transform)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "column")  # the data are of unit scale together only
            run = train(fast, self.x0, steps=steps, loss=loss, recipe=how, seed=self.seed, cond=self.cond or {})
        assert isinstance(run.model, FlowMap)
        return run.model


@dataclass(frozen=True)
class Way:
    """How a map is trained: by an objective, from a teacher.

    Args:
        name: What it is called in the tables.
        loss: Makes the objective.
        reach: Which jumps it trains.
    """

    name: str
    loss: Callable[[Denoiser], Any]
    reach: Reach = "any"

    def run(self, fast: FlowMap, lesson: Lesson) -> FlowMap:
        """The map, trained."""
        fast.reach = self.reach
        return lesson.teach(fast, self.loss(lesson.teacher), lesson.steps)

    @property
    def calls(self) -> tuple[int, ...]:
        """The calls that the map is tried with."""
        return CALLS


class Halving(Way):
    """Progressive distillation, in as many steps together as another way takes."""

    def run(self, fast: FlowMap, lesson: Lesson) -> FlowMap:
        angles = (1 - torch.linspace(0, 1, 17, dtype=torch.float64)) ** 1.5 * (torch.pi / 2)
        (top,) = fast.sde.levels([fast.sde.t_max])
        levels = [top.sigma / top.alpha, *(fast.data_std * torch.tan(angles[1:])).tolist()]
        for n in HALVINGS:
            before = fast.eval()
            fast = FlowMap.from_teacher(before, reach=tuple(levels[:: 16 // n]))
            fast = lesson.teach(fast, Progressive(before), lesson.steps // len(HALVINGS))
        return fast

    @property
    def calls(self) -> tuple[int, ...]:
        return (1,)


WAYS = {
    way.name: way
    for way in (
        Way("shortcut", Shortcut),
        Way("trajectory", Trajectory),
        Way("consistency", Consistency, "data"),
        Way("MeanFlow", MeanFlow),
        Halving("progressive", Progressive),
    )
}
