"""What a training is asked for: a model with parameters, a loss that can be minimised, an average that fits the run."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import WIDE, check_real
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import PerSample, Shared
from sde_diffusion.denoiser.modules import modules_behind
from sde_diffusion.nets.control import Controlled
from sde_diffusion.training.ema import Decay, horizon
from sde_diffusion.training.trainable import Trainable

Transform = Callable[[Tensor, torch.Generator], Tensor]


def warn(text: str, stacklevel: int) -> None:
    """A `UserWarning`, on a stderr that may be closed."""
    with suppress(ValueError):  # of a closed file; a warning that a filter made an error is no ValueError
        warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters to be trained lie.

    Raises:
        TypeError: The model is no `Denoiser`, and no other `Trainable`.
        ValueError: It has no parameters, or such as are not finite.
    """
    if not isinstance(model, Denoiser | Trainable):
        raise TypeError(
            f"train needs a Denoiser: wrap the network, Network(net, sde, predict.edm), got {type(model).__name__}; or "
            "another Trainable, as latent.NetCodec(net) makes of a net that encodes and decodes"
        )
    for p in model.parameters():
        if p.requires_grad:
            _check_weights(model)
            return p.device
    fix = "wrap your network, Network(net, sde, predict.edm)"
    for name in [type(module).__name__ for module in modules_behind(model) if module is not model]:
        fix = (
            f"it is a function around a {name}, which a copy of it would not own. Hand over the {name} itself; it may "
            "answer a tuple, or what has the tensor as .sample"
        )
    raise ValueError(f"the model has no parameters to train: {fix}")


def floating(p: Tensor) -> bool:
    """Whether a tensor holds floats that can be asked whether they are finite: no integers, none of 8 bits."""
    return p.is_floating_point() and p.element_size() > 1


def _check_weights(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if floating(p) and not bool(p.isfinite().all()):
            raise ValueError(
                f"the weights of the model are not finite before the first step, {name} for one: build it anew, or "
                "load a checkpoint of before they were lost"
            )


def dtype_of(model: nn.Module) -> torch.dtype:
    """In which numbers a model is to see its data: those of its parameters, but for half precision."""
    found = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return found if found in WIDE else torch.float32


def placed(value: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """Tensors, alone, marked or in a mapping, on a device, and real numbers in a dtype; all else as it is."""
    if isinstance(value, Mapping):
        return {name: placed(part, device, dtype) for name, part in value.items()}
    if isinstance(value, PerSample | Shared):
        return type(value)(placed(value.value, device, dtype))
    if not isinstance(value, Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


def transformed(transform: Transform, rows: Tensor, generator: torch.Generator) -> Tensor:
    """What a transform makes of rows: as many as it was given, for their conditions stay as they are.

    Raises:
        TypeError: It does not take rows and a generator, or answers no tensor.
        ValueError: It answers another number of rows.
    """
    try:
        found: object = transform(rows, generator)
    except TypeError as error:
        if not _takes_two(transform):
            raise TypeError(f"transform is called as transform(rows, generator), and takes not both: {error}") from (
                error
            )
        raise
    if not isinstance(found, Tensor):
        fix = "is a return missing?" if found is None else "torch.as_tensor makes one"
        raise TypeError(f"transform answered {type(found).__name__}, wanted a tensor: {fix}")
    if found.ndim == 0 or len(found) != len(rows):
        raise ValueError(
            f"transform answered {len(found) if found.ndim else 'no'} rows for {len(rows)}: it changes rows, one for "
            "one, since each keeps its condition; leave rows out of the data, or give more of them there"
        )
    return found


def _takes_two(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # none is known, of a builtin
        return True
    return True


def check_factor(factor: object, i: int, steps: int) -> float:
    """What a schedule answered before step `i`, if the learning rate can be multiplied by it."""
    where = f"schedule({i}, {steps})"
    if factor is None:
        raise TypeError(f"{where} answered None, wanted a factor on the learning rate: is a return missing?")
    found = check_real(factor.item() if isinstance(factor, Tensor) and factor.ndim == 0 else factor, where)
    if not 0 <= found < math.inf:
        raise ValueError(
            f"{where} answered {found:g} as the factor of step {i + 1}, wanted a finite one, >= 0: the weights would "
            "be lost"
        )
    return found


def check_callbacks(callbacks: object) -> tuple[Callable[..., Any], ...]:
    """The callbacks of a run, before the first of them is called."""
    wanted = "callbacks must be a list of functions callback(event)"
    if isinstance(callbacks, str | bytes | Mapping) or not isinstance(callbacks, Iterable):
        fix = ": put it into a list, [callback]" if callable(callbacks) else ""
        raise TypeError(f"{wanted}, got {type(callbacks).__name__}{fix}")
    found = tuple(callbacks)
    for i, callback in enumerate(found):
        if isinstance(callback, type) or not callable(callback):
            raise TypeError(f"{wanted}, got {callback!r} at place {i}")
    return cast("tuple[Callable[..., Any], ...]", found)


def check_loss(loss: object, model: nn.Module) -> Tensor:
    """What an objective answered of a model, if it is a scalar that can be minimised."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss answered {type(loss).__name__}, wanted a tensor with one number: is a return missing?"
        )
    if loss.ndim != 0:
        raise ValueError(f"the loss answered shape {tuple(loss.shape)}, wanted one number, of shape (): .mean() it")
    if not loss.requires_grad:
        steered = next((part for part in model.modules() if isinstance(part, Controlled)), None)
        if steered is not None and torch.is_grad_enabled():
            names = [*steered.channels]
            raise TypeError(
                f"none of the controls, {', '.join(names)}, was told, or with strength 0 alone, so that the frozen "
                f"base answers and nothing learns: train(model, x, {names[0]}=fields)"
            )
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
