"""What a run has to remember, as tensors by name and JSON; and what of it must be the same to go on."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.objectives.weights import name_of
from sde_diffusion.nets.base import kept_names
from sde_diffusion.training.checkpoints.tensor_file import digest_of_tensors
from sde_diffusion.training.losses import Objective, said
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.run.feed import Inputs
from sde_diffusion.training.run.marks import mark_of
from sde_diffusion.training.trainable import Trainable
from sde_diffusion.training.validation import Validation


class Packed:
    """States of numbers, words, tensors, and lists and mappings of such, as JSON beside their tensors.

    Attributes:
        tensors: The tensors by name; one that two states share, as tied weights are, is here once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def add(self, value: Any, name: str) -> Any:
        """What JSON is to hold of a state.

        Args:
            value: The state, that of an optimiser for instance.
            name: What its tensors are called, before their place in it.

        Raises:
            TypeError: Something else in it.
        """
        if isinstance(value, Tensor):
            value = value.detach()
            place = (value.data_ptr() or name, value.dtype, value.shape, value.stride())
            found = self._names.setdefault(place, name)
            self.tensors[found] = value
            return {"tensor": found}
        if isinstance(value, Mapping):
            return {"map": [[key, self.add(part, f"{name}.{key}")] for key, part in value.items()]}
        if isinstance(value, list | tuple):
            parts = [self.add(part, f"{name}.{i}") for i, part in enumerate(value)]
            return parts if isinstance(value, list) else {"tuple": parts}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{name} holds {type(value).__name__}, which is not saved: wanted numbers, words, tensors")


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that `Packed.add` was given."""
    if isinstance(value, list):
        return [unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "float":
        return float(inside)
    if kind == "map":
        return {key: unpacked(part, tensors) for key, part in inside}
    return tuple(unpacked(part, tensors) for part in inside)


def configuration(
    model: Denoiser,
    objective: Objective,
    recipe: Recipe,
    inputs: Inputs,
    val: Validation | None,
    *,
    steps: int,
    seed: int,
) -> dict[str, str]:
    """What a run that goes on must have in common with the run that was begun, field by field."""
    of = getattr(model, "net", model)
    weights = " ".join(f"{name}{tuple(p.shape)}" for name, p in model.named_parameters())
    size = sum(p.numel() for p in model.parameters())
    built = ", ".join(f"{name}={value!r}" for name, value in sorted(model.built_with().items()))
    return {
        "model": f"{name_of(type(of))} of {size:,} parameters ({_short(weights.encode())}), {_said_of(model)}",
        "net": f"{name_of(type(of))}({built})",
        "loss": said(objective),
        **_base(model),
        **{f"loss.{name}": word for name, word in _held_by(objective).items()},
        **{f"recipe.{name}": word for name, word in recipe.words().items()},
        "steps": str(steps),
        "seed": str(seed),
        "data": mark_of(inputs),
        "val": "none" if val is None else f"{mark_of(Inputs(val.source, None))}, {val!r}",
    }


def _said_of(model: Denoiser | Trainable) -> str:
    """A model in words, beside its network."""
    if isinstance(model, Trainable):
        return model.words()
    kind = "" if model.kind is None else f", {model.kind!r}"
    return f"{model.sde!r}{kind}" + (f", a map that reaches {model.reach!r}" if isinstance(model, FlowMap) else "")


def _base(model: nn.Module) -> dict[str, str]:
    """A digest of the frozen weights that a model stands on, where it does: a run does not keep them."""
    kept = kept_names(model)
    tensors = {name: value for name, value in model.state_dict().items() if name in kept}
    return {"base": f"of digest {digest_of_tensors(tensors)[:16]}"} if tensors else {}


def check_same(before: Mapping[str, str], now: Mapping[str, str], where: object, model: object = None) -> None:
    """Raises `ValueError` unless a run that is to go on has the configuration that it was begun with."""
    anew = f"train(load_checkpoint({str(where)!r}).model, ..., out=another folder)"
    anew = model.anew(str(where)) if isinstance(model, Trainable) else anew
    for name in now:
        if before.get(name) != now[name]:
            raise ValueError(
                f"{name} is {now[name]}, but the run in {where} was begun with {before.get(name, 'none')}: go on with "
                f"the same {name.rpartition('.')[2]}, or begin anew from its weights, {anew}"
            )


def _held_by(objective: Any) -> dict[str, str]:
    """The models that an objective holds, such as a teacher, by name: their classes and weights."""
    if isinstance(objective, nn.Module) or not is_dataclass(objective) or isinstance(objective, type):
        return {}
    parts = {each.name: getattr(objective, each.name) for each in fields(objective)}
    return {name: _weights(part) for name, part in parts.items() if isinstance(part, nn.Module)}


def _weights(model: nn.Module) -> str:
    """A model by its class and a digest of its make and of its tensors."""
    seen = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())
    for name, value in model.state_dict().items():
        seen.update(name.encode())
        if isinstance(value, Tensor):
            seen.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"{type(model).__name__} {seen.hexdigest()[:8]}"


def _short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:8]
