"""One call from a model to its flow map: the map, the objective by its name, the recipe, and the training."""

from __future__ import annotations

from typing import Any

import torch

from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.reach import Reach
from sde_diffusion.distillation.consistency import Consistency
from sde_diffusion.distillation.mean_flow import MeanFlow
from sde_diffusion.distillation.objective import MapObjective, check_map, steadier
from sde_diffusion.distillation.progressive import Progressive
from sde_diffusion.distillation.shortcut import Shortcut
from sde_diffusion.distillation.trajectory import Trajectory
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.training import Recipe, Training, train

__all__ = ["LOSSES", "distill", "recipe"]

LOSSES: dict[str, type[MapObjective]] = {
    "shortcut": Shortcut,
    "trajectory": Trajectory,
    "consistency": Consistency,
    "meanflow": MeanFlow,
    "progressive": Progressive,
}
"""The objectives of a flow map by name, each of which takes a teacher first."""


def recipe(batch_size: int = 256, lr: float = 1e-3, **others: Any) -> Recipe:
    """The `Recipe` that suits a map which starts from its teacher; a fresh one takes `lr=2e-3`.

    Args:
        batch_size: As in `Recipe`.
        lr: As in `Recipe`.
        **others: Its other arguments.
    """
    return Recipe(batch_size, lr, **others)


def distill(
    teacher: Denoiser,
    data: Any,
    *,
    steps: int,
    loss: str | MapObjective = "shortcut",
    reach: Reach | None = None,
    kind: Parametrisation | None = None,
    recipe: Recipe | None = None,
    seed: int | None = None,
    **options: Any,
) -> Training:
    """Trains a flow map of a model, which draws in one to four evaluations; the model stays as it is.

    The map starts as a copy of the network and needs data as the model was trained on. It follows the flow of the
    teacher, guided where that is `Guided`. Of a network whose errors are amplified in jumps, as those of noise, score
    or data are, it takes the weights alone, and learns to answer as `predict.EDM` does.

    Args:
        teacher: A `Network`, or a wrapper around one, in evaluation mode.
        data: As in `train`.
        steps: Gradient steps: about a thousand from a teacher, and the more the better.
        loss: `"shortcut"`, `"trajectory"`, `"consistency"`, `"meanflow"`, `"progressive"`, or an objective.
        reach: Which jumps are trained, see `FlowMap`: `"data"` for `"consistency"`, else `"any"` by default;
            `"progressive"` wants noise levels.
        kind: What the map answers: by default what the network does, or `predict.EDM(data_std)` where an error of that
            counts more than ten times in a jump.
        recipe: By default `recipe()`: batches of 256 at a rate of 1e-3.
        seed: As in `train`, and of the weights for the second time, which the model has not.
        **options: Whatever else `train` takes, `val`, `out`, `resume`, `callbacks`, `progress`; conditions by name.

    Returns:
        The record of the training; `training.model` is the averaged map, in evaluation mode.

    Raises:
        TypeError: No network inside the teacher, or one that cannot be told a second time, with how to; no objective.
        ValueError: An unknown name; a teacher in training mode, or on another process than its network; an objective of
            another reach. And as `train`.

    Example:
        >>> fast = distill(model, x0, steps=2000, seed=0).model
        >>> x = SDESampler(sde, fast, nfe=1).sample(64, seed=0)
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(*seed_list(seed, 1))
        objective = _objective(loss, teacher)
        if reach is None:
            reach = "any" if "any" in objective.reaches else "data"
        fast = map_of(_network_in(teacher), reach, kind)
    check_map(fast, objective)
    return train(fast, data, steps=steps, loss=objective, recipe=recipe or _suited(), seed=seed, **options)


_suited = recipe


def map_of(model: Network, reach: Reach, kind: Parametrisation | None = None) -> FlowMap:
    """The flow map of a network before it is trained, of a kind that learns to jump."""
    if kind is None and not isinstance(model, FlowMap):
        kind = steadier(model)
    return FlowMap.from_teacher(model, kind=kind, reach=reach)


def _objective(loss: object, teacher: Denoiser) -> MapObjective:
    if isinstance(loss, MapObjective):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(
            f"loss is one of {', '.join(map(repr, LOSSES))}, or an objective such as Shortcut(model), got {loss!r}"
        )
    if loss == "progressive" and not isinstance(teacher, FlowMap):
        teacher = FlowMap.from_teacher(_network_in(teacher))
    return LOSSES[loss](teacher)


def _network_in(teacher: object) -> Network:
    """The network of a model, inside whatever wraps it."""
    model = teacher
    while isinstance(model, Wrapper):
        model = model.inner
    if not isinstance(model, Network):
        raise TypeError(
            f"distill starts from the Network inside its teacher, and {type(teacher).__name__} holds none: make a map "
            "of your own, FlowMap(MLP(2, until=True), sde, predict.edm), and train it, "
            "train(map, x0, steps=2000, loss=Shortcut(teacher))"
        )
    return model
