r"""MeanFlow: the average velocity by its own rate of change along the flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective

STEP = 0.05
"""The step of the difference as a share of the angle. Far smaller ones, or the derivative itself, amplify what a net
makes of its clock, the logarithm of the noise, which is steep at both ends: with 0.001 runs diverged."""


@dataclass(frozen=True, repr=False)
class MeanFlow(MapObjective):
    r"""Trains a map by the equation that the average velocity obeys.

    $$ G(y, u, s) = v - (u - s)\,\frac{d}{du}G(y + (u' - u)v,\,u',\,s)\Big|_{u' = u}, $$

    the right-hand side without gradients, with $v$ the velocity of the teacher, or that of data and noise. The
    derivative is a central difference over a tenth of the angle, of two evaluations as a product with the Jacobian
    costs, and one-sided at the prior. So it trains maps whose clock is the logarithm of the noise, of which the
    derivative is too steep; it asks for no forward derivatives, which attention kernels and processes whose rates are
    found by autograd have not; and the one pass with gradients is an ordinary one, which several processes share as any
    other. The price is a small bias: the exact map of Gaussian data misses the equation by .01 at the prior.

    Weaker than `Shortcut` in short runs, with a teacher and without. For maps of `reach="any"`, or `"data"`.

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
