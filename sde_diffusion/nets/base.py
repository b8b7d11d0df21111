"""What a network stands on: a base whose weights stay as they are, and the half of a base that a control copies.

A network that stands on a base says which of its tensors are the base's. Those take memory once: averages share them,
and neither the state of a run nor a checkpoint keeps them.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

__all__ = ["Encoder", "OnBase", "aliased", "built_otherwise", "check_net", "copied_but", "kept_names", "plus"]


class OnBase(nn.Module, ABC):
    """A network that stands on another, `net`, whose weights stay as they are if it is `frozen`.

    It takes the conditions of its base by their names, and is told the time as that is.
    """

    net: nn.Module
    frozen: bool

    @property
    def clock(self) -> str | None:
        """What the base is told of the time."""
        found: str | None = getattr(self.net, "clock", None)
        return found

    @property
    def base(self) -> dict[str, Tensor]:
        """The tensors of the base, as they were before anything was put on it, by their names there."""
        return self.base_in(self.state_dict())

    def base_in(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the tensors of this network that are the base's, by their names there."""
        return {name[4:]: value.detach() for name, value in tensors.items() if name.startswith("net.")}

    @abstractmethod
    def own(self, name: str) -> bool:
        """Whether a tensor, by its name here, is not the base's."""

    def train(self, mode: bool = True) -> Any:
        """Sets the mode; a frozen base stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self


class Encoder(nn.Module):
    """The half of a network that a control copies, and what is to be known of it.

    Args:
        net: The half, whose `features(x, t, hint, **cond)` are what it hands on.
        dims: Axes of the field, without the channels: 1, 2 or 3.
        hint: Channels of the hint, which is added where the state has passed the first layer.
        widths: Channels of each feature.
        stride: How many points of the state, along each axis, become one of the hint.

    Shapes:
        x (B, C, *spatial), t (B,), hint (B, hint, *) -> a feature (B, width, *) for each of `widths`
    """

    def __init__(
        self, net: nn.Module, *, dims: int, hint: int, widths: Sequence[int], stride: Sequence[int] | int = 1
    ) -> None:
        super().__init__()
        self.net, self.dims, self.hint, self.widths = net, dims, hint, list(widths)
        self.stride = [stride] * dims if isinstance(stride, int) else list(stride)

    def forward(self, x: Tensor, t: Tensor, hint: Tensor, **told: Any) -> list[Tensor]:
        """The features of a state at a time."""
        found: list[Tensor] = self.net.features(x, t, hint, **told)  # type: ignore[operator]  # a method of the half
        return found


def plus(features: Sequence[Tensor], added: Sequence[Tensor]) -> list[Tensor]:
    """Features with what is added to them; as they are where nothing is.

    Raises:
        ValueError: Another number of them, or another shape.
    """
    if not added:
        return list(features)
    if [f.shape for f in features] != [a.shape for a in added]:
        raise ValueError(
            f"added must be tensors of the shapes of the features, {[tuple(f.shape) for f in features]}, got "
            f"{[tuple(a.shape) for a in added]}"
        )
    return [f + a for f, a in zip(features, added, strict=True)]


def check_net(net: object, where: str) -> nn.Module:
    """A network to stand on, of a compiled one the network.

    Raises:
        TypeError: No module, or a model around a network.
    """
    net = getattr(net, "_orig_mod", net)
    model = hasattr(net, "sde") and callable(getattr(net, "predict", None))  # a denoiser, which is a module too
    if model or not isinstance(net, nn.Module):
        raise TypeError(f"{where} takes a network, a torch.nn.Module, got {type(net).__name__}: of a Network, its .net")
    return net


def built_otherwise(there: object, here: object) -> str:
    """How one network was built otherwise than another, by the names of their classes and by `config`; else empty."""
    a, b = (getattr(net, "config", None) for net in (there, here))
    if type(there).__name__ != type(here).__name__ or not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return f"a {type(there).__name__} there, and a {type(here).__name__} here"
    for name in [*b, *a]:
        if name not in a or name not in b:
            return f"{type(here).__name__} is told {name!r} in one of them alone"
        one, other = a[name], b[name]
        if isinstance(one, nn.Module) or isinstance(other, nn.Module):
            if how := built_otherwise(one, other):
                return how
        elif _text(one) != _text(other):
            return f"{name}={one!r} of {type(here).__name__} there, and {other!r} here"
    return ""


def _text(value: object) -> str:
    return json.dumps(value, default=repr)  # in which a tuple is a list


def aliased(net: M) -> M:
    """A copy of a network, frozen, whose tensors lie in the memory of the original's.

    To convert or to move one of them leaves the other as it is; to train the original changes both.
    """
    return copied_but(net, [*net.parameters(), *net.buffers()])


def copied_but(net: M, shared: Iterable[Tensor], memo: Mapping[int, Any] | None = None) -> M:
    """A deep copy, but for tensors that are to lie in the same memory: these are frozen in the copy."""
    shared = list(shared)  # alive as long as their numbers are used
    views = {id(t): _view(t) for t in shared}
    return copy.deepcopy(net, {**(memo or {}), **views})


def _view(t: Tensor) -> Tensor:
    return nn.Parameter(t.detach(), requires_grad=False) if isinstance(t, nn.Parameter) else t.detach()


def kept_names(model: nn.Module) -> frozenset[str]:
    """The names of the parameters and buffers of a model that are those of a frozen base in it.

    Of adapters upon others or upon a control the outermost say what learns: all that they stand on is their base.
    """
    found: set[str] = set()
    around: list[str] = []
    for prefix, part in model.named_modules():
        if isinstance(part, OnBase) and part.frozen and not f"{prefix}.".startswith(tuple(around)):
            around.append(f"{prefix}." if prefix else "")
            named = (*part.named_parameters(remove_duplicate=False), *part.named_buffers(remove_duplicate=False))
            found |= {f"{prefix}.{name}".lstrip(".") for name, _ in named if not part.own(name)}
    return frozenset(found)
