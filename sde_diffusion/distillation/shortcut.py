r"""Shortcut models: one jump is to be what two of the same map are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective


@dataclass(frozen=True, repr=False)
class Shortcut(MapObjective):
    r"""Trains a map to jump as far as two jumps of its own lead, by way of a random place between.

    $$ (u - s)\,G(y, u, s) = (u - r)\,G(y, u, r) + (r - s)\,G(X(y, u, r), r, s), $$

    the right-hand side without gradients. On a share of the rows, where $s = u$, it learns the velocity of the
    teacher, or that of data and noise. Two evaluations without gradients for each row that is carried, one of the
    teacher for each of the others, and one with gradients for all. For maps of `reach="any"`.

    References:
        Frans et al., One Step Diffusion via Shortcut Models, 2025; Boffi et al., Flow Map Matching, 2025.
    """

    reaches: ClassVar = ("any",)

    def target(self, batch: Batch) -> Tensor:
        model, start, end, r = batch.model, batch.start, batch.end, batch.between()
        first = model.average(batch.x, start.at, r.at, **batch.cond)
        second = model.average(model.jump(batch.x, start.at, r.at, **batch.cond), r.at, end.at, **batch.cond)
        w = batch.column((start.u - r.u) / (start.u - end.u).clamp(min=1e-12))
        return w * first + (1 - w) * second
