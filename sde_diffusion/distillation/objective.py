"""What objectives of flow maps share: a look at what they are called with, and who may be a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.modules import Evaluation, modules_behind
from sde_diffusion.denoiser.objectives.regressed import check_call
from sde_diffusion.distillation.draws import Batch


@dataclass(frozen=True)
class MapObjective(ABC):
    """An objective of a flow map: a subclass writes `target`, what $G$ is to be on each row.

    Args:
        teacher: The model whose flow is learnt, a `Denoiser` of the same process; None to learn from the data alone.
        diagonal: Share of the rows on which the map learns to be a denoiser.
    """

    teacher: Denoiser | None = None
    diagonal: float = 0.25

    def __post_init__(self) -> None:
        if self.teacher is not None and not isinstance(self.teacher, Denoiser):
            raise TypeError(
                f"the teacher must be a Denoiser, got {type(self.teacher).__name__}: Network(net, sde, ...)"
            )
        if not 0 <= check_real(self.diagonal, "diagonal") < 1:
            raise ValueError(f"diagonal is a share of the rows, at least 0 and below 1, got {self.diagonal!r}")

    def __call__(self, model: FlowMap, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any) -> Tensor:
        """The loss of a map on one batch, a scalar.

        Args:
            model: The `FlowMap` that is trained.
            x0: Data, shape `(B, *)`.
            generator: The source of angles and noise, on the CPU.
            **cond: Conditions, handed to map and teacher by name.

        Raises:
            TypeError: A model that is no `FlowMap`; integer or half-precision data.
            ValueError: Empty or non-finite data, or of a wrong shape; a teacher of another process or scale of the
                data, or in training mode; no generator.
        """
        check_map(model, self.teacher)
        check_call(model, x0, generator, "mean")
        given = Conditions.of(model, cond, len(x0))
        batch = Batch(model, x0, given, generator, round(self.diagonal * len(x0)))
        with torch.no_grad(), Evaluation(model):
            moved = self.target(batch)
            target = torch.cat([batch.velocity(self.teacher), moved]) if batch.still else moved
        return batch.loss(target)

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """What $G$ is to be on `batch.rows`, shape `(n, *)`; called without gradients."""


def check_map(model: object, teacher: Denoiser | None) -> None:
    """Raises unless a flow map can learn of a teacher."""
    if not isinstance(model, FlowMap):
        raise TypeError(
            f"this objective trains a FlowMap, got {type(model).__name__}: FlowMap.from_teacher(model), or a fresh "
            "one, FlowMap(MLP(2, until=True), sde, predict.edm)"
        )
    if teacher is None:
        return
    if teacher.sde != model.sde:
        raise ValueError(
            f"the teacher is a model of {teacher.sde!r} and the map of {model.sde!r}: see the teacher through the "
            "process of the map, teacher.on(map.sde)"
        )
    if teacher.data_std != model.data_std:
        raise ValueError(
            f"the teacher takes the data to have standard deviation {teacher.data_std:g}, the map {model.data_std:g}: "
            "they must agree, in predict.EDM(data_std) for instance"
        )
    learnt = [root for root in modules_behind(teacher) if any(True for _ in root.parameters())]
    if any(module.training for root in learnt for module in root.modules()):
        raise ValueError("the teacher is in training mode, with its dropout on: teacher.eval()")
