"""The input of a training: what is asked of it before the first step, and the batches that it comes in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite, check_state
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import modules_behind
from sde_diffusion.training.ema import Decay, horizon

Transform = Callable[[Tensor, torch.Generator], Tensor]

SHIFT = 1.0
"""Mean of a column, in standard deviations the model expects, beyond which `train` warns."""
SPREAD = 3.0
"""Factor between the standard deviation of a column and the one the model expects beyond which `train` warns."""


def warn(text: str, stacklevel: int) -> None:
    """A `UserWarning`, on a stderr that may be closed."""
    with suppress(ValueError):  # of a closed file; a warning that a filter made an error is no ValueError
        warnings.warn(text, UserWarning, stacklevel=stacklevel + 1)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters to be trained lie."""
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


def check_data(model: Denoiser, data: Tensor, labels: Tensor | None, transform: Transform | None, seed: int) -> None:
    """Everything that can be told of the data before the first step."""
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"train needs a Denoiser: wrap the network, Network(net, sde, predict.edm), got {type(model).__name__}"
        )
    if transform is None:
        check_finite(check_state(data, "data", shape=model.shape), "data")
    elif not isinstance(data, Tensor):
        raise TypeError(
            f"data must be a torch.Tensor of N samples, got {type(data).__name__}: torch.as_tensor makes one"
        )
    elif data.ndim == 0 or len(data) == 0:
        raise ValueError(f"data is empty: its shape is {tuple(data.shape)}, wanted at least one sample")
    if labels is not None:
        _check_labels(model, labels, len(data))
    # A copy: a transform may work in place, and these rows come again.
    seen = data if transform is None else transform(data[:4096].clone(), torch.Generator("cpu").manual_seed(seed))
    check_finite(check_state(seen, "data", shape=model.shape), "data")
    _check_scale(model, seen)


def _check_labels(model: Denoiser, labels: Tensor, n: int) -> None:
    """One integer per row, and of the classes the net says it was built with, in its `config`."""
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, wanted ({n},): one per row of data")
    config = model.built_with()
    if not isinstance(classes := config.get("classes"), int):
        return
    if not classes:
        raise ValueError(
            f"labels were given, but the net was built with classes=0: leave them out, or build it with "
            f"classes={int(labels.max()) + 1}"
        )
    if int(labels.max()) == classes and int(labels.min()) > 0:
        raise ValueError(
            f"labels run from {int(labels.min())} to {classes}, and {classes} is the null label of this net: number "
            f"its classes 0..{classes - 1}"
        )
    most = classes if config.get("label_drop", 1) else classes - 1  # the null label, where the net learns it
    bad = ((labels < 0) | (labels > most)).nonzero()
    if len(bad):
        i = int(bad[0, 0])
        raise ValueError(
            f"label must lie in 0..{classes - 1}, got labels[{i}] = {int(labels[i])}"
            + (f" and {len(bad) - 1} more like it" if len(bad) > 1 else "")
            + ": correct them, or build the net with more classes"
        )


def _check_scale(model: Denoiser, data: Tensor) -> None:
    """Warns of the first column of vectors, or channel of images, that is not as the model expects."""
    over = [i for i in range(data.ndim) if i != 1]
    variance, mean = torch.var_mean(data.detach(), dim=over, correction=0)
    means, stds = mean.reshape(-1).tolist(), variance.sqrt().reshape(-1).tolist()
    level = (data.amax(over) == data.amin(over)).reshape(-1).tolist()
    c, single = model.data_std, data.numel() == len(means)

    def sound(i: int) -> bool:
        if single:  # one number a column has no spread
            return abs(means[i]) <= SPREAD * c
        return not level[i] and c / SPREAD <= stds[i] <= SPREAD * c and abs(means[i]) <= SHIFT * c

    off = [i for i in range(len(means)) if not sound(i)]
    if not off:
        return
    i = off[0]
    more = f" (and {len(off) - 1} more)" if len(off) > 1 else ""
    where = f"{'channel' if data.ndim > 2 else 'column'} {i}{more} of the data"
    if level[i] and not single:
        text = f"{where} is constant, {means[i]:.4g}: there is nothing to learn in it, leave it out"
    else:
        scale, sign = "" if c == 1 else f"{c:g} * ", "-" if means[i] >= 0 else "+"
        text = (
            f"{where} has mean {means[i]:.4g} and standard deviation {stds[i]:.4g}, but the model expects about 0 and "
            f"{c:g}: standardise it, {scale}(x {sign} {abs(means[i]):.4g}) / {stds[i] or 1:.4g}"
        )
        typical = sorted(stds)[len(stds) // 2]
        alike = typical > 0 and all(
            typical / SPREAD <= s <= SPREAD * typical and abs(m) <= SHIFT * typical
            for m, s in zip(means, stds, strict=True)
        )
        if alike and model.kind is not None and (fitting := model.kind.at_scale(float(f"{typical:.3g}"))):
            text += f", or give predict.{fitting!r}"
    warn(text, 4)


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


def batches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers `(size,)` for each step, drawn without replacement until all `n` were used, and again."""
    order = torch.empty(0, dtype=torch.long, device="cpu")
    for _ in range(steps):
        if len(order) < size:  # as many rounds at once as are missing: one at a time would copy them all each time
            rounds = -((len(order) - size) // n)
            order = torch.cat([order, *(torch.randperm(n, generator=generator, device="cpu") for _ in range(rounds))])
        rows, order = order[:size], order[size:]
        yield rows
