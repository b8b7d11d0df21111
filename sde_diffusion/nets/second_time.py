"""A second time for a network, the one that a flow map carries to: how a network comes by it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["check_copy", "check_until", "ignores_until", "with_until"]

HOW = (
    "give it a method with_until() that answers a copy which takes until=, a tensor (B,), and ignores it as long as it "
    "is untrained: embed it as the first time is, and add it through a linear layer that starts at zero"
)


def with_until(net: Any) -> Any:
    """A copy of a network that is told a second time, `until`, and answers as the original does until it is trained.

    A network of this package is built again with `until=True`, and the weights are copied. Any other has a method
    `with_until()`, which answers such a copy, or takes `until=` already.

    Args:
        net: A module, called as `net(x, t, **cond)`.

    Raises:
        TypeError: A network that cannot be told a second time, with how to change that.
    """
    net = getattr(net, "_orig_mod", net)  # of a compiled network, the network
    new = _told(net)
    if isinstance(net, nn.Module) and isinstance(new, nn.Module):
        new = copy.deepcopy(new) if _shared(net, new) else new  # or training it would change the original
        old = dict(net.named_parameters())
        frozen = not any(p.requires_grad for p in old.values())  # as teachers often are: the copy is to be trained
        for name, p in new.named_parameters():
            p.requires_grad_(frozen or name not in old or old[name].requires_grad or not _stays(new))
    return new


def ignores_until(net: Any) -> bool | None:
    """Whether a network of this package was never trained with its second time, by weights that are zero at first.

    Args:
        net: A module or function; None is answered for one of another's.
    """
    named = net.named_parameters() if isinstance(net, nn.Module) else ()
    leaving = [p for name, p in named if ".until.leave." in name]
    return not any(bool(p.any()) for p in leaving) if leaving else None


def check_copy(net: Any, own: Tensor, told: Sequence[Tensor]) -> None:
    """Raises `ValueError` unless a copy that is told a second time answers as the original does.

    Args:
        net: The original.
        own: What it answers.
        told: What the copy answers in the same state, told one second time and another.
    """
    size = float(own.abs().max())
    off = max(float((one - own).abs().max()) for one in told)
    if not off <= 0.01 * size + 1e-6:
        name = type(net).__name__
        fault = "is no copy of it" if torch.equal(*told) else "is changed by the second time before any training"
        raise ValueError(
            f"the network that is made of {name} to be told a second time {fault}: off by {off:.2g} in answers of up "
            f"to {size:.2g}. Either {HOW}; or begin with a network of your own, FlowMap(net, sde, kind)"
        )


def check_until(net: Any) -> None:
    """Raises `TypeError` for a network that is told one time alone, with how to give it another.

    Args:
        net: A module or function; one of which nothing can be known is let pass.
    """
    net = getattr(net, "_orig_mod", net)
    config = getattr(net, "config", None)
    while isinstance(config, Mapping) and isinstance(inner := config.get("net"), nn.Module):  # that it stands on
        net, config = inner, getattr(inner, "config", None)
    name = type(net).__name__
    if isinstance(net, nn.Module) and isinstance(config, Mapping) and config.get("until") is False:
        raise TypeError(
            f"{name} was built with until=False, and a flow map tells its network a second time: build it with "
            f"until=True, or begin as a model that is trained, FlowMap.from_teacher(model)"
        )
    try:
        taken = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
    except (TypeError, ValueError):  # of a function that is not written in Python
        return
    if "until" not in taken and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise TypeError(
            f"{name} is not told a second time, which a flow map needs: it is called as net(x, time, until=until), "
            "both of shape (B,). Embed it as the first is, and add it through a linear layer that starts at zero"
        )


def _told(net: Any) -> Any:
    make = getattr(net, "with_until", None)
    name = type(net).__name__
    if callable(make):
        try:
            new = make()
        except Exception as error:
            raise TypeError(
                f"{name}.with_until() raised {type(error).__name__}: {error}. It is the method of the network that "
                "makes a flow map of it: it answers a copy which takes until="
            ) from error
        if not callable(new):
            raise TypeError(f"{name}.with_until() answered {type(new).__name__}, wanted a copy that takes until=")
        return new
    config = getattr(net, "config", None)
    if isinstance(net, nn.Module) and isinstance(config, Mapping) and "until" in config:
        return _rebuilt(net, config)
    if "until" in inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters:
        return copy.deepcopy(net)
    raise TypeError(f"{name} is not told a second time, which a flow map needs: {HOW}")


def _stays(net: Any) -> bool:
    """Whether what is frozen in a network stays so; not where a control no longer stands on a base."""
    return getattr(net, "frozen", True) is not False


def _shared(net: nn.Module, new: nn.Module) -> bool:
    """Whether two networks have a weight or a buffer in common."""
    own = {id(t) for t in (*net.parameters(), *net.buffers())}
    return any(id(t) in own for t in (*new.parameters(), *new.buffers()))


def _rebuilt(net: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A network of this package with a second time, and the weights of the one that it is built after."""
    if config["until"]:
        return copy.deepcopy(net)
    new, own = type(net)(**{**config, "until": True}), next(iter(net.parameters()))
    missing, surplus = new.to(own.device, own.dtype).load_state_dict(net.state_dict(), strict=False)
    if surplus or any(".until." not in name for name in missing):
        raise TypeError(
            f"{type(net).__name__} was changed since it was built, and cannot be built again with a second time: it "
            f"has {surplus or 'no ' + ', '.join(missing)}. Either take that out, or {HOW}"
        )
    return new.train(net.training)
