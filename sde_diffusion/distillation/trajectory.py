r"""Consistency trajectory models: a step of the teacher's solver, and from there a jump of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion.distillation.draws import Batch, Place
from sde_diffusion.distillation.objective import MapObjective


@dataclass(frozen=True, repr=False)
class Trajectory(MapObjective):
    r"""Trains a map to jump where the flow of the teacher leads for a part of the way, and the map itself from there.

    $$ X(y, u, s) = X(\Phi(y, u, r), r, s), $$

    with $\Phi$ some steps of Heun in the angle on the teacher; the right-hand side is without gradients. Best with a
    teacher that is exact, or cheap beside the map. For each row that is carried, two evaluations of the teacher a step
    and one of the map, without gradients. For maps of `reach="any"`, or `"data"`.

    Args:
        steps: Steps of Heun from $u$ to $r$.

    References:
        Kim et al., Consistency Trajectory Models, 2024.
    """

    steps: int = 2
    reaches: ClassVar = ("any", "data")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        if self.teacher is None:
            raise TypeError(
                "Trajectory follows the flow of a teacher: Trajectory(model), or take Shortcut() without one"
            )

    def target(self, batch: Batch) -> Tensor:
        return through(batch, batch.between(), self.steps)


def through(batch: Batch, r: Place, steps: int) -> Tensor:
    r"""$G$ on the way by $\Phi(y, u, r)$, the flow of the teacher by some steps of Heun, and by the map from there."""
    model, start, end = batch.model, batch.start, batch.end
    y, moved, before = batch.x / model.radius(start.at), torch.zeros_like(batch.x), start
    for i in range(steps):
        after = batch.at(start.u + (r.u - start.u) * ((i + 1) / steps))
        h = batch.column(before.u - after.u)
        first = batch.slope(y, before)
        change = h / 2 * (first + batch.slope(y - h * first, after))
        y, moved, before = y - change, moved + change, after
    rest = model.average(y * model.radius(before.at), before.at, end.at, **batch.cond)
    way = batch.column((start.u - end.u).clamp(min=1e-12))
    return (moved + batch.column(before.u - end.u) * rest) / way
