"""What a training is asked for: a model with parameters, a loss that can be minimised, an average that fits the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import WIDE
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import modules_behind
from sde_diffusion.training.ema import Decay, horizon

Transform = Callable[[Tensor, torch.Generator], Tensor]


def warn(text: str, stacklevel: int) -> None:
    """A `UserWarning`, on a stderr that may be closed."""
    with suppress(ValueError):  # of a closed file; a warning that a filter made an error is no ValueError
        warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters to be trained lie.

    Raises:
        TypeError: The model is no `Denoiser`.
        ValueError: It has no parameters.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"train needs a Denoiser: wrap the network, Network(net, sde, predict.edm), got {type(model).__name__}"
        )
    for p in model.parameters():
        if p.requires_grad:
            return p.device
    fix = "wrap your network, Network(net, sde, predict.edm)"
    for name in [type(module).__name__ for module in modules_behind(model) if module is not model]:
        fix = (
            f"it is a function around a {name}, which a copy of it would not own. Hand over the {name} itself; it may "
            "answer a tuple, or what has the tensor as .sample"
        )
    raise ValueError(f"the model has no parameters to train: {fix}")


def dtype_of(model: nn.Module) -> torch.dtype:
    """In which numbers a model is to see its data: those of its parameters, but for half precision."""
    found = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return found if found in WIDE else torch.float32


def placed(value: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """Tensors, alone or in a mapping, on a device, and real numbers in a dtype; all else as it is."""
    if isinstance(value, Mapping):
        return {name: placed(part, device, dtype) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


def check_loss(loss: object) -> Tensor:
    """What an objective answered, if it is a scalar that can be minimised."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss answered {type(loss).__name__}, wanted a tensor with one number: is a return missing?"
        )
    if loss.ndim != 0:
        raise ValueError(f"the loss answered shape {tuple(loss.shape)}, wanted one number, of shape (): .mean() it")
    if not loss.requires_grad:
        raise TypeError(
            "the loss has no graph back to the model: it runs under torch.no_grad, detaches, or leaves torch; or it "
            "asks another model than the one it is called with"
        )
    return loss


def check_horizon(decay: Decay, steps: int) -> None:
    """Warns of an average that is longer than a fifth of the run."""
    back = horizon(decay, steps)
    if back > max(steps / 5, 10):  # ten steps blur nothing, in a run however short
        warn(
            f"{decay!r} averages over about the last {back:.0f} of {steps} steps, more than a fifth of the run: early "
            "weights blur the result. Train longer, or take PowerDecay(0.1)",
            3,
        )
