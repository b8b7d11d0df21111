r"""Consistency trajectory models: a step of the teacher's solver, and from there a jump of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.distillation.draws import Batch, Place
from sde_diffusion.distillation.objective import MapObjective


@dataclass(frozen=True)
class Trajectory(MapObjective):
    r"""Trains a map to jump where the flow of the teacher leads for a part of the way, and the map itself from there.

    $$ X(y, u, s) = X(\Phi(y, u, r), r, s), $$

    with $\Phi$ some steps of Heun in the angle on the teacher; the right-hand side is without gradients. Best with a
    teacher that is exact, or cheap beside the map.

    Args:
        steps: Steps of Heun from $u$ to $r$, of two evaluations of the teacher each.

    References:
        Kim et al., Consistency Trajectory Models, 2024.
    """

    steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps")
        if self.teacher is None:
            raise TypeError(
                "Trajectory follows the flow of a teacher: Trajectory(model), or take Shortcut() without one"
            )

    def target(self, batch: Batch) -> Tensor:
        teacher = cast(Denoiser, self.teacher)
        model, rows, x = batch.model, batch.rows, batch.x[batch.rows]
        start, end, between = batch.start.rows(rows), batch.end.rows(rows), batch.between()
        whole = (start.u - end.u).clamp(min=1e-12).to(x).reshape(-1, *[1] * (x.ndim - 1))
        y, mean, before = x / model.radius(start.at), torch.zeros_like(x), start
        for i in range(self.steps):
            after = Place.of(model, start.u + (between.u - start.u) * ((i + 1) / self.steps), x)
            h = (before.u - after.u).to(x).reshape(whole.shape)
            slope = batch.of_teacher(teacher, y * model.radius(before.at), before, rows)
            there = batch.of_teacher(teacher, (y - h * slope) * model.radius(after.at), after, rows)
            y, mean, before = y - h * (slope + there) / 2, mean + h * (slope + there) / 2, after
        rest = (before.u - end.u).to(x).reshape(whole.shape)
        own = model.average(y * model.radius(before.at), before.at, end.at, **batch.given.part(rows))
        return (mean + rest * own) / whole
