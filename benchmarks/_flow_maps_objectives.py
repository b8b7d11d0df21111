"""The ways in which a flow map is trained, side by side: an objective, with the reach and the rate that suit it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_diffusion import FlowMap
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.distillation import Shortcut, Trajectory
from sde_diffusion.training import Recipe, train

CALLS = (1, 2, 4)


@dataclass(frozen=True)
class Way:
    """How a map is trained.

    Args:
        name: What it is called in the tables.
        loss: The objective, from a teacher.
        reach: Which jumps it trains.
    """

    name: str
    loss: Callable[[Denoiser], Any]
    reach: Any = "any"

    def run(
        self,
        teacher: Denoiser,
        fast: FlowMap,
        x0: Any,
        steps: int,
        seed: int,
        cond: dict[str, Tensor],
        *,
        lr: float = 2e-3,
        transform: Any = None,
    ) -> FlowMap:
        """The map, trained in place; returns the average of its weights."""
        fast.reach = self.reach
        recipe = Recipe(256, lr, transform=transform)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "column")  # the data are of unit scale together only
            found = train(fast, x0, steps=steps, loss=self.loss(teacher), recipe=recipe, seed=seed, cond=cond).model
        assert isinstance(found, FlowMap)
        return found


WAYS = {way.name: way for way in (Way("shortcut", Shortcut), Way("trajectory", Trajectory))}
