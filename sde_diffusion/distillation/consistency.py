r"""Consistency models: jumps to the data from two places of one trajectory, close to each other, are to end alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.distillation.draws import Batch
from sde_diffusion.distillation.objective import MapObjective
from sde_diffusion.distillation.trajectory import through

ENOUGH = 0.5
"""Share of the run at which the gap has shrunk to what it stays."""


@dataclass(frozen=True, repr=False)
class Consistency(MapObjective):
    r"""Trains the jumps of a map to the data alone: from a place, and from one a little further on.

    $$ X(y, u, 0) = X(y_r, r, 0), \quad r = (1 - \delta)\,u, $$

    the right-hand side without gradients. Without a teacher $y_r$ has the same data and noise, $y_r = \tfrac{\cos
    r}{c}x_0 + \sin r\,\varepsilon$; with one it is a step of Heun on it. The gap $\delta$ shrinks from 1, where the map
    learns the data itself, and stops at `gap`: below an eighth short runs lose more by what the map hands on to itself
    than they gain. With a teacher it is `gap` from the first.

    For maps of `reach="data"`, which several calls use by noising again, `Jump(renoise=True)`.

    Args:
        gap: $\delta$ from the middle of a run on, and outside of `train`, in $(0, 1]$.

    References:
        Song et al., Consistency Models, 2023; Geng et al., Consistency Models Made Easy, 2025.
    """

    gap: float = 1 / 8
    reaches: ClassVar = ("data",)
    staged: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < check_real(self.gap, "gap") <= 1:
            raise ValueError(f"gap is a share of the way to the data, above 0 and at most 1, got {self.gap!r}")

    def target(self, batch: Batch) -> Tensor:
        if batch.teacher is not None:
            return through(batch, batch.at((1 - self.gap) * batch.start.u), 1)
        shrunk: float = self.gap ** min(1.0, batch.done / ENOUGH)
        r = batch.at((1 - shrunk) * batch.start.u)
        x = r.at.alpha * batch.x0[batch.moved] + r.at.sigma * batch.eps[batch.moved]
        model, u = batch.model, batch.column(batch.start.u.clamp(min=1e-12))
        end = model.jump(x, r.at, batch.end.at, **batch.cond) / model.data_std
        return (batch.x / model.radius(batch.start.at) - end) / u
