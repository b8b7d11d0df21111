r"""Progressive distillation: one jump between noise levels is to be what two of a teacher are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion._tensors import as_float64
from sde_diffusion.denoiser.reach import Reach
from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective
from sde_diffusion.solvers.jump import Carries


@dataclass(frozen=True, repr=False)
class Progressive(MapObjective):
    r"""Trains one jump between two noise levels to lead where two jumps of a teacher lead, by a level between.

    $$ X(y, u, s) = X'(X'(y, u, r), r, s) $$

    The teacher $X'$ is a flow map itself: of a network, `FlowMap.from_teacher(model)`, which before it is trained
    carries as Euler in the angle does. The levels of the map are its reach, and $r$ the level of the teacher between
    them, or the middle of the angles where the teacher jumps anywhere. One phase halves the calls:

    >>> fast = FlowMap.from_teacher(model)
    >>> for n in (16, 8, 4, 2, 1):
    ...     teacher, reach = fast, levels[:: 16 // n]  # 17 levels, the last one 0
    ...     fast = FlowMap.from_teacher(teacher, reach=reach)
    ...     fast = train(fast, x0, steps=500, loss=Progressive(teacher), recipe=recipe()).model

    It is here for comparison: every phase trains one set of end points, and what one leaves out the next cannot mend.

    References:
        Salimans and Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022.
    """

    reaches: ClassVar = ("levels",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.teacher, Carries):
            raise TypeError(
                f"the teacher of Progressive is a flow map, got {type(self.teacher).__name__}: "
                "Progressive(FlowMap.from_teacher(model).eval())"
            )

    def target(self, batch: Batch) -> Tensor:
        teacher: Any = batch.teacher
        start, end, model = batch.start, batch.end, batch.model
        r = batch.at(middles(start.u, end.u, teacher.reach, model.data_std))
        teacher.check_jump(start.at, r.at)
        teacher.check_jump(r.at, end.at)
        x = teacher.jump(teacher.jump(batch.x, start.at, r.at, **batch.cond), r.at, end.at, **batch.cond)
        y, to = batch.x / model.radius(start.at), x / model.radius(end.at)
        return (y - to) / batch.column((start.u - end.u).clamp(min=1e-12))


def middles(u: Tensor, s: Tensor, reach: Reach, c: float) -> Tensor:
    """The angle between each two at which a map of a reach may be asked, shape `(n,)`."""
    if isinstance(reach, str):
        return (u + s) / 2
    levels = torch.atan(as_float64(reach) / c)
    between = (levels < u[:, None] * (1 - 1e-6)) & (levels > s[:, None] * (1 + 1e-6) + 1e-9)
    found = torch.where(between, levels, 0.0)
    return found.amax(1)
