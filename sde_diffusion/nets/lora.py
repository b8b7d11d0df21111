r"""Low-rank adapters: a trained network is changed by matrices of little rank beside those of its layers.

$$ y = W x + s\,B A x, \qquad A \in R^{r \times n}, \quad B \in R^{m \times r}, $$

with $W$ as it is, $A$ drawn and $B = 0$ at first: before any training, the base answers, bit for bit. Of a convolution
of $k$ points, $A$ is one of $k$ points to $r$ channels, and $B$ one of a single point.

References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion.nets.base import OnBase, aliased, check_net, kept_names
from sde_diffusion.nets.drops import dropped_alike
from sde_diffusion.nets.embedding import Config, zero
from sde_diffusion.nets.second_time import with_until

__all__ = ["LoRA", "merge", "unmerge"]

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers that can have an adapter; convolutions of one group."""


class LoRA(OnBase):
    r"""A trained network with low-rank adapters on its layers, which alone are trained.

    A layer of $m \times n$ weights gets $r (m + n)$ more. The base shares the memory of `net`, which is left as it is
    and must not be trained meanwhile; it stays in evaluation mode, without dropout. But conditions are left out in
    training as often as the base left them out, so that the adapters learn both of what `Guided` goes by. A pass takes
    1.4 to 1.6 times as long as that of the base, until `merge` answers a network of the base's own class, which costs
    no more.

    Args:
        net: The trained network, of any kind, also one that reads the `weight` of its layers, as a
            `nn.TransformerEncoderLayer` does, or one with adapters or controls already, all of which are then its base.
        rank: The rank $r$ of the adapters.
        where: Names of layers, `*` for any characters, such as `("*qkv", "*project")`; by default all layers that are
            linear maps or convolutions of one group.
        scale: The factor $s$, $\alpha/r$ of the paper.

    Raises:
        TypeError, ValueError: No network, a rank or a scale that is not positive, or a name that no such layer has.

    Example:
        >>> net = LoRA(model.net, rank=4)
        >>> training = train(Network(net, model.sde, model.kind, shape=model.shape), x0, steps=500)
        >>> save_checkpoint("adapted", Network(merge(training.model.net), model.sde, model.kind, shape=model.shape))
    """

    frozen = True

    def __init__(self, net: nn.Module, rank: int = 4, *, where: Sequence[str] = (), scale: float = 1.0) -> None:
        super().__init__()
        net = check_net(net, "LoRA")
        self.rank, self.scale = check_count(rank, "rank"), check_positive(scale, "scale")
        self.where = _patterns(where)
        self.names = _found(net, self.where)
        _check_rank(self.rank, net, self.names)
        self.net = aliased(net)
        made: dict[int, _Adapted] = {}  # a layer that stands at two places has one adapter
        for name in self.names:
            layer = self.net.get_submodule(name)
            made[id(layer)] = made.get(id(layer)) or _Adapted(layer, self.rank, self.scale)
            _put(self.net, name, made[id(layer)])
        self.train(net.training)

    @property
    def per_sample(self) -> tuple[str, ...] | None:
        """The conditions of the base that have a row for each sample."""
        found: tuple[str, ...] | None = getattr(self.net, "per_sample", None)
        return found

    @property
    def config(self) -> Config:
        """The constructor's arguments, the base as it is."""
        return {"net": self.net, "rank": self.rank, "where": list(self.where), "scale": self.scale}

    def base_in(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inside = {f"{name}.layer.": f"{name}." for name in self.names}
        found = {}
        for name, value in super().base_in(tensors).items():
            head = next((head for head in inside if name.startswith(head)), None)
            plain = name if head is None else inside[head] + name.removeprefix(head)
            if not self.own(f"net.{name}"):
                found[plain] = value
        return found

    def own(self, name: str) -> bool:
        return name.startswith(tuple(f"net.{each}.{part}." for each in self.names for part in ("down", "up")))

    def forward(self, x: Tensor, t: Tensor, *args: Any, **told: Any) -> Any:
        """Evaluates the adapted network, called as the base is."""
        with dropped_alike(self, x):
            return self.net(x, t, *args, **told)

    def with_until(self) -> Any:
        """The merged network, told a second time, for a flow map; all of it is trained."""
        return with_until(merge(self))


def merge(lora: LoRA) -> nn.Module:
    """The network of the base's class whose weights are those of the base and of the adapters together, to rounding.

    Of adapters upon others, the network below them all. Of adapters upon a control, a `Controlled`: where they changed
    its base, which no checkpoint holds, one of `frozen=False`, which is trained and kept whole.

    Args:
        lora: A network with adapters, left as it is.

    Returns:
        A network with a memory of its own, all of which can be trained but for a base as it was; in the mode of `lora`,
        so that one in training mode has the dropout of its base on.

    Raises:
        TypeError: Something else.
        ValueError: A layer whose weight is that of another layer, too.
    """
    lora = _lora(lora)
    new = copy.deepcopy(lora.net)
    _check_apart(new, lora.names)
    merged: dict[int, nn.Module] = {}
    for name in lora.names:
        layer = new.get_submodule(name)
        if isinstance(layer, _Adapted):
            merged[id(layer)] = merged.get(id(layer)) or layer.merged()
            _put(new, name, merged[id(layer)])
    names = list(lora.names)
    if isinstance(new, LoRA):
        new, names = merge(new), [name.removeprefix("net.") for name in names]
    for prefix, part in new.named_modules(remove_duplicate=False):
        if isinstance(part, OnBase) and not all(part.own(f"{name}.") for name in _inside(names, prefix)):
            part.frozen = False
    kept = kept_names(new)
    for name, p in new.named_parameters():
        p.requires_grad_(name not in kept)
    return new.train(lora.training)


@torch.no_grad()
def unmerge(net: nn.Module, lora: LoRA) -> nn.Module:
    """A copy of a network without what adapters had added to it: of `merge(lora)` the base, to rounding.

    Args:
        net: A network of the base's class, `merge(lora)`, or one that was trained on from there.
        lora: The adapters.

    Raises:
        TypeError: No `LoRA`.
        ValueError: A network without one of the layers that have an adapter, or with one of another shape.
    """
    lora, new, done = _lora(lora), copy.deepcopy(getattr(net, "_orig_mod", net)), set()
    held = dict(new.named_modules(remove_duplicate=False))
    for name in lora.names:
        layer, adapted = held.get(name), lora.net.get_submodule(name)
        added = adapted.added() if isinstance(adapted, _Adapted) else None
        weight = getattr(layer, "weight", None)
        if added is None or not isinstance(weight, Tensor) or weight.shape != added.shape:
            raise ValueError(
                f"{type(net).__name__} has no layer {name!r} with the weights of the base of the adapters: it is "
                "another network"
            )
        if id(weight) not in done:
            weight -= added.to(weight)
            done.add(id(weight))
    return new


class _Adapted(nn.Module):
    """A layer with an adapter: what the layer answers, and a map of little rank beside it."""

    def __init__(self, layer: Any, rank: int, scale: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, scale
        like = layer.weight
        if isinstance(layer, nn.Linear):
            down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
        else:
            shape = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            down = type(layer)(layer.in_channels, rank, layer.kernel_size, bias=False, **shape)
            up = type(layer)(rank, layer.out_channels, 1, bias=False)
        nn.init.normal_(down.weight, std=1 / math.sqrt(down.weight[0].numel()))
        self.down, self.up = (part.to(like.device, like.dtype) for part in (down, zero(up)))

    @property
    def weight(self) -> Tensor:
        """The weight with the adapter in it, for a network that reads it instead of calling the layer."""
        found: Tensor = self.layer.weight + self.added()
        return found

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        found: Tensor | None = self.layer.bias
        return found

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.add(self.layer(x), self.up(self.down(x)), alpha=self.factor)
        return out

    def added(self) -> Tensor:
        """What the adapter comes to as a part of the weight."""
        a, b = self.down.weight, self.up.weight
        return self.factor * (b.flatten(1) @ a.flatten(1)).reshape(self.layer.weight.shape)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The layer, with the adapter in its weight."""
        self.layer.weight += self.added()
        found: nn.Module = self.layer
        return found


def _lora(given: object) -> LoRA:
    given = getattr(given, "_orig_mod", given)  # of a compiled network, the network
    if not isinstance(given, LoRA):
        raise TypeError(f"wanted a network with adapters, LoRA(net), got {type(given).__name__}")
    return given


def _patterns(where: object) -> tuple[str, ...]:
    if isinstance(where, str) or not (isinstance(where, Sequence) and all(isinstance(name, str) for name in where)):
        raise TypeError(f"where is a sequence of names of layers, such as ('*qkv', '*project'), got {where!r}")
    return tuple(where)


def _found(net: nn.Module, where: tuple[str, ...]) -> list[str]:
    """The names of the layers that get an adapter.

    Raises:
        ValueError: A pattern that fits none.
    """
    named = {name: part for name, part in net.named_modules(remove_duplicate=False) if name}
    adapted = {name for name, part in named.items() if isinstance(part, _Adapted)}
    able: dict[str, str] = {}  # the name of a layer, and of its place: of one with an adapter, that of the two
    for name, part in named.items():
        place, _, last = name.rpartition(".")
        if type(part) in LAYERS and getattr(part, "groups", 1) == 1 and (place not in adapted or last == "layer"):
            able[name] = place if place in adapted else name
    for pattern in where:
        if not any(fnmatchcase(name, pattern) for name in able.values()):
            other = next((named[name] for name in named if fnmatchcase(name, pattern)), None)
            what = "no layer" if other is None else f"a {type(other).__name__}"
            raise ValueError(
                f"where names {pattern!r}, which is {what} of {type(net).__name__}: adapters go to linear layers and "
                f"convolutions of one group, such as {', '.join([*able.values()][:3]) or 'none in this network'}"
            )
    found = [name for name in able if not where or any(fnmatchcase(able[name], pattern) for pattern in where)]
    if not found:
        raise ValueError(f"{type(net).__name__} has no linear layer and no convolution of one group inside it")
    return found


def _check_rank(rank: int, net: nn.Module, names: Sequence[str]) -> None:
    """Raises `ValueError` for a rank that none of the layers can have."""
    weights: list[Any] = [net.get_submodule(name).weight for name in names]
    most = max(min(len(w), w[0].numel()) for w in weights)
    if rank > most:
        raise ValueError(
            f"rank={rank} is more than any of the {len(names)} layers has, whose highest is {most}: adapters are of "
            "less, such as 4"
        )


def _check_apart(net: nn.Module, names: Sequence[str]) -> None:
    """Raises `ValueError` for a layer with an adapter whose weight another module has as well."""
    holders = Counter(id(p) for part in net.modules() for p in part.parameters(recurse=False))
    for name in names:
        if holders[id(net.get_submodule(f"{name}.layer").get_parameter("weight"))] > 1:
            raise ValueError(
                f"the weight of {name} is that of another layer, too, which a merge would change along with it: keep "
                "the adapters as they are, or put them on other layers, where="
            )


def _inside(names: Sequence[str], prefix: str) -> list[str]:
    """Of the names of layers those inside a module, as they are called there."""
    head = f"{prefix}." if prefix else ""
    return [name.removeprefix(head) for name in names if name.startswith(head)]


def _put(net: nn.Module, name: str, part: nn.Module) -> None:
    """Puts a module in the place of that of a name."""
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, part)
