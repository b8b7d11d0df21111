"""What objectives of flow maps share: who may be map and teacher, what is left out, and the one pass with a graph."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sde_diffusion._checks import check_real
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.conditions import Conditions, merged
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.modules import Evaluation, home, modules_behind
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.objectives.regressed import check_call
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.distillation.draws import Batch, steepest
from sde_diffusion.guidance.classifier_free import SIZES, Guided
from sde_diffusion.guidance.extrapolation import Extrapolation

DROP = 0.1
"""How often a condition is left out that the network was trained to do without."""
STEEP = 10.0
"""How many times an error of an answer may count in a jump."""
SCALES = 1.1
"""Factor between the scales of the data of map and teacher from which they do not fit."""
_LOOKED_AT: WeakSet[FlowMap] = WeakSet()  # maps that were warned of, or need not be


@dataclass(frozen=True, repr=False)
class MapObjective(ABC):
    """An objective of a flow map: a subclass writes `target`, what $G$ is to be on each row that is carried.

    Map and teacher are in evaluation mode, without dropout, and without what a network drops of its conditions by
    itself: for the jump without a condition it would learn the mean of the jumps under all of them, which is another.
    Instead conditions are left out here, of whole batches, for map and teacher alike; of a teacher that is `Guided`,
    what is inside is the teacher then. Single entries of a context are left out where they are NaN in the data alone.

    A map learns best that answers `predict.edm`, or `v`. One of the noise has its errors amplified at the prior, 150
    times on `VPSDE`, and hardly learns to jump from there; one of the data has them amplified where there is little
    noise, and may diverge. Such a network starts a map that answers otherwise with the same weights,
    `FlowMap.from_teacher(model, kind=predict.edm)`.

    Angles, noise and what is left out are drawn for the rows of a call: a run on several processes, or with
    `accumulate`, draws others for each share of a batch than one process draws for the whole. Either repeats itself.

    Args:
        teacher: The model whose flow is learnt, a `Denoiser` of the same process; None to learn from the data alone. It
            is moved to the device of the data.
        diagonal: Share of the rows on which the map learns to be a denoiser.
        drop: Probability that a condition is left out; by default 0.1 for those that a network of ours was trained to
            do without, `label_drop` and its like, and 0 for those of any other.
    """

    teacher: Denoiser | None = None
    diagonal: float = 0.25
    drop: float | None = None
    reaches: ClassVar[tuple[str, ...]] = ("any", "data", "levels")
    marked: ClassVar[bool] = True  # `train` says which of the conditions have rows, of a network that does not

    def __post_init__(self) -> None:
        if self.teacher is not None and not isinstance(self.teacher, Denoiser):
            raise TypeError(
                f"the teacher must be a Denoiser, got {type(self.teacher).__name__}: Network(net, sde, ...)"
            )
        if not 0 <= check_real(self.diagonal, "diagonal") < 1:
            raise ValueError(f"diagonal is a share of the rows, at least 0 and below 1, got {self.diagonal!r}")
        if self.drop is not None and not 0 <= check_real(self.drop, "drop") < 1:
            raise ValueError(f"drop is a probability, at least 0 and below 1, got {self.drop!r}")

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.teacher is not None:
            given["teacher"] = type(self.teacher).__name__
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})"

    def __call__(
        self, model: FlowMap, x0: Tensor, *, generator: torch.Generator | None = None, done: float = 1.0, **cond: Any
    ) -> Tensor:
        """The loss of a map on one batch, a scalar.

        Args:
            model: The `FlowMap` that is trained.
            x0: Data, shape `(B, *)`.
            generator: The source of angles, noise and what is left out, on the CPU; None for torch's global random
                state.
            done: Share of the steps of the run that were taken, for an objective that changes with it.
            **cond: Conditions, handed to map and teacher by name.

        Raises:
            TypeError: A model that is no `FlowMap`; integer or half-precision data.
            ValueError: Empty or non-finite data, or of a wrong shape; a batch too small to share out; a teacher of
                another process or scale of the data, or in training mode; a map of another reach than is trained here.

        Warns:
            UserWarning: A map with an answer of which the errors are amplified more than ten times; once.
        """
        self.look_at(model)
        check_call(model, x0, generator, "mean")
        _warn_of_steep(model)
        cond = merged(cond)
        if self.drop and not cond:
            raise ValueError(f"drop={self.drop} leaves conditions out, and none came: give label=, or leave drop out")
        kept = {name: value for name, value in cond.items() if not _leaves_out(self._drop(model, name), generator)}
        teacher = self.teacher
        if teacher is not None:
            teacher = teacher if len(kept) == len(cond) else unguided(teacher)
            if home(teacher)[1] != x0.device:
                teacher.to(x0.device)
        given, still = Conditions.of(model, kept, len(x0)), round(self.diagonal * len(x0))
        if still == len(x0):
            raise ValueError(f"diagonal={self.diagonal} of {len(x0)} rows leaves none to be carried: a larger batch")
        with Evaluation(model):
            with torch.no_grad():
                batch = Batch(model, x0, given, generator, still, teacher, done)
                target = self.target(batch)
            return batch.loss(target)

    def look_at(self, model: FlowMap) -> None:
        """Looks at a map before a run, and writes into it what guides its teacher; `train` calls it.

        Raises:
            TypeError, ValueError: As a call, of the map and its teacher.
        """
        check_map(model, self)
        if self.teacher is not None:
            model.guidance = guidance_of(self.teacher)

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """What $G$ is to be from `batch.start` to `batch.end` at `batch.x`, shape `(n, *)`; without gradients.

        Args:
            batch: States and places of the `n` rows that are carried, the map, the teacher: see `draws.Batch`. An
                example is under "an objective of your own" on the page of flow maps.
        """

    def _drop(self, model: FlowMap, name: str) -> float:
        """How often a condition is left out."""
        if self.drop is not None:
            return self.drop
        built: Mapping[str, Any] = model.built_with()
        return DROP if name in SIZES and built.get(f"{name}_drop") else 0.0


def _leaves_out(probability: float, generator: torch.Generator | None) -> bool:
    return probability > 0 and float(torch.rand((), generator=generator, device="cpu")) < probability


def unguided(model: Denoiser) -> Denoiser:
    """A model without classifier-free guidance, which has nothing to guide by where a condition is left out."""
    if isinstance(model, Guided):
        return unguided(model.inner)
    return model._around(unguided) if isinstance(model, Wrapper) else model


def guidance_of(model: Denoiser) -> str:
    """What guides a model, in words; empty where nothing does."""
    while isinstance(model, Wrapper):
        if isinstance(model, Extrapolation) and model.acts():
            return f"{type(model).__name__}({model.extra_repr()})"
        model = model.inner
    return model.guidance if isinstance(model, FlowMap) else ""


def check_map(model: object, objective: MapObjective) -> None:
    """Raises unless a flow map can be trained by an objective."""
    name = type(objective).__name__
    if not isinstance(model, FlowMap):
        raise TypeError(
            f"{name} trains a FlowMap, got {type(model).__name__}: FlowMap.from_teacher(model), or a fresh one, "
            "FlowMap(MLP(2, until=True), sde, predict.edm)"
        )
    reach = model.reach if isinstance(model.reach, str) else "levels"
    if reach not in objective.reaches:
        wanted = " or ".join(
            "falling noise levels, reach=(80.0, 1.0, 0.0)" if word == "levels" else f"reach={word!r}"
            for word in objective.reaches
        )
        raise ValueError(
            f"{name} trains maps of {wanted}, and this one has reach={model.reach!r}: make it so, "
            "FlowMap.from_teacher(model, reach=...), or take another objective"
        )
    _check_prior(model, "the map")
    if objective.teacher is not None:
        check_teacher(objective.teacher, model)


def steadier(model: Network) -> Parametrisation | None:
    """`EDM`, where an error of what a network answers is amplified in its jumps; None where it is not."""
    if steepest(model.kind, model.sde, model.data_std) <= STEEP:
        return None
    made = predict.EDM(model.data_std)
    return made if model.kind.answers == 1 else predict.LearnedVariance(made)


def _warn_of_steep(model: FlowMap) -> None:
    if model in _LOOKED_AT:
        return
    _LOOKED_AT.add(model)
    if (kind := steadier(model)) is not None:
        most = steepest(model.kind, model.sde, model.data_std)
        warnings.warn(
            f"an error of what this map answers, {model.kind!r}, counts up to {most:.3g} times in a jump on "
            f"{model.sde!r}, and it learns those badly: let it answer otherwise, as distill does by itself, "
            f"FlowMap.from_teacher(model, kind=predict.{kind!r})",
            stacklevel=3,
        )


def check_teacher(teacher: Denoiser, model: FlowMap) -> None:
    """Raises unless a flow map can learn of a teacher."""
    if teacher.sde != model.sde:
        raise ValueError(
            f"the teacher is a model of {teacher.sde!r} and the map of {model.sde!r}: see the teacher through the "
            "process of the map, teacher.on(map.sde)"
        )
    _check_prior(teacher, "the teacher")
    low, high = sorted((teacher.data_std, model.data_std))
    if high > SCALES * low:
        raise ValueError(
            f"the teacher takes the data to have standard deviation {teacher.data_std:g}, the map {model.data_std:g}: "
            "they must agree, in predict.EDM(data_std) for instance"
        )
    if any(module.training and _has_mode(module) for root in modules_behind(teacher) for module in root.modules()):
        raise ValueError("the teacher is in training mode, with its dropout on: teacher.eval()")


def _has_mode(module: nn.Module) -> bool:
    """Whether the mode of a module may count: that of a wrapper, in training mode when it is made, does not."""
    return isinstance(module, _DropoutNd | _NormBase) or any(True for _ in module.parameters(recurse=False))


def _check_prior(model: Denoiser, name: str) -> None:
    """Raises `ValueError` for a model that says nothing of the data where its process ends in noise alone."""
    try:
        model.check_pure_noise()
    except ValueError as error:
        raise ValueError(
            f"a flow map jumps from where its process ends, and there {name} says nothing: {error}"
        ) from error
