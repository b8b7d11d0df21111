r"""Shortcut models: one jump is to be what two of the same map are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective


@dataclass(frozen=True)
class Shortcut(MapObjective):
    r"""Trains a map to jump as far as two jumps of its own lead, by way of a random place between.

    $$ (u - s)\,G(y, u, s) = (u - r)\,G(y, u, r) + (r - s)\,G(X(y, u, r), r, s), $$

    the right-hand side without gradients. On a share of the rows, where $s = u$, it learns the velocity of the
    teacher, or that of data and noise. Three evaluations without gradients for each row, and one with.

    References:
        Frans et al., One Step Diffusion via Shortcut Models, 2025; Boffi et al., Flow Map Matching, 2025.
    """

    def target(self, batch: Batch) -> Tensor:
        model, rows, given = batch.model, batch.rows, batch.given.part(batch.rows)
        start, end, between, x = batch.start.rows(rows), batch.end.rows(rows), batch.between(), batch.x[rows]
        first = model.average(x, start.at, between.at, **given)
        second = model.average(model.jump(x, start.at, between.at, **given), between.at, end.at, **given)
        w = ((start.u - between.u) / (start.u - end.u).clamp(min=1e-12)).to(x).reshape(-1, *[1] * (x.ndim - 1))
        return w * first + (1 - w) * second
