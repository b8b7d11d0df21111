"""A second time for a network, the one that a flow map carries to: how a network comes by it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["check_until", "with_until"]

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
        old = dict(net.named_parameters())
        frozen = not any(p.requires_grad for p in old.values())  # as teachers often are: the copy is to be trained
        for name, p in new.named_parameters():
            p.requires_grad_(frozen or name not in old or old[name].requires_grad)
    return new


def check_until(net: Any) -> None:
    """Raises `TypeError` for a network that is told one time alone, with how to give it another.

    Args:
        net: A module or function; one of which nothing can be known is let pass.
    """
    net = getattr(net, "_orig_mod", net)
    config = getattr(net, "config", None)
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
    if callable(make):
        return make()
    config = getattr(net, "config", None)
    if isinstance(net, nn.Module) and isinstance(config, Mapping) and "until" in config:
        return _rebuilt(net, config)
    if "until" in inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters:
        return copy.deepcopy(net)
    raise TypeError(f"{type(net).__name__} is not told a second time, which a flow map needs: {HOW}")


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
