r"""MeanFlow: the average velocity by its own rate of change along the flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective

STEP = 0.001
"""The step of the difference as a share of the angle: its own error and that of rounding in float32 are about alike."""


@dataclass(frozen=True, repr=False)
class MeanFlow(MapObjective):
    r"""Trains a map by the equation that the average velocity obeys.

    $$ G(y, u, s) = v - (u - s)\,\frac{d}{du}G(y + (u' - u)v,\,u',\,s)\Big|_{u' = u}, $$

    the right-hand side without gradients, with $v$ the velocity of the teacher, or that of data and noise. The
    derivative is a central difference, of two evaluations as a product with the Jacobian costs: so it asks for no
    forward derivatives, which attention kernels and processes whose rates are found by autograd have not, and the
    one pass with gradients is an ordinary one, which several processes share as any other. In float32 the difference
    is exact to about $10^{-4}$; mixed precision would spoil it, and is off for it.

    Weak in short runs. Its worth is that it needs nothing but data. For maps of any reach but levels.

    References:
        Geng et al., Mean Flows for One-step Generative Modeling, 2025; Wang et al., Transition Models, 2025 (the
        difference).
    """

    diagonal: float = 0.5
    reaches: ClassVar = ("any", "data")

    def target(self, batch: Batch) -> Tensor:
        model, start, end = batch.model, batch.start, batch.end
        v, y = batch.velocity(batch.moved), batch.x / model.radius(start.at)

        def ahead(h: float) -> tuple[Tensor, Tensor]:
            to = batch.at((1 + h) * start.u)
            x = (y + batch.column(to.u - start.u) * v) * model.radius(to.at)
            with torch.autocast(x.device.type, enabled=False):
                return to.u, model.average(x, to.at, end.at, **batch.cond)

        (a, before), (b, after) = ahead(-STEP), ahead(STEP)
        return v - batch.column(start.u - end.u) * (after - before) / batch.column(b - a)
