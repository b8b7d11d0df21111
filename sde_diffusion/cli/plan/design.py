"""The model that a plan and the data call for: network, process, objective; of the library or of your own files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from sde_diffusion import nets
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.objectives import time_samplers, weights
from sde_diffusion.denoiser.objectives.uncertainty import Uncertainty
from sde_diffusion.nets.text import Captioned, TextEncoder
from sde_diffusion.sde import processes
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.training.checkpoints.own_code import load_class
from sde_diffusion.training.losses import Objective

NETS: dict[str, type[nn.Module]] = {cls.__name__.lower(): cls for cls in nets.CLASSES}
"""The networks of the library, by the names of `--net`."""
WEIGHTS: dict[str, Any] = {**weights.NAMES, "uncertainty": None}
"""The weights of `--weight`; `uncertainty` learns one beside that of the rule."""
TOKENS = 64
"""Entries of the tokens that captions are read to, if nothing is said: `--net-args 'tokens=...'`."""
TIMES = time_samplers.NAMES
"""The draws of noise levels of `--times`."""


@dataclass(frozen=True)
class Facts:
    """What data tell a network of themselves.

    Args:
        shape: Of one sample.
        classes: Of its labels; 0 without.
        context: Entries of its context; 0 without.
        image: Channels of its image; 0 without.
        others: The names of its other conditions, for a network of your own.
        answers: Numbers that it is to answer for each one of a sample.
        words: Those of its captions; none without.
        longest: Words of the longest caption.
    """

    shape: tuple[int, ...]
    classes: int = 0
    context: int = 0
    image: int = 0
    others: tuple[str, ...] = ()
    answers: int = 1
    words: tuple[str, ...] = ()
    longest: int = 0

    def offered(self, width: int | None) -> dict[str, Any]:
        """The arguments from which a constructor takes those that it names."""
        told = {"classes": self.classes, "context": self.context, "image": self.image, "answers": self.answers}
        sizes: dict[str, Any] = {"dim": self.shape[0] if len(self.shape) == 1 else None, "channels": self.shape[0]}
        sizes |= {"tokens": TOKENS if self.words else None}
        sizes |= {"dims": len(self.shape) - 1 or None, "shape": self.shape, "width": width, "hidden": width}
        return {name: value for name, value in (sizes | told).items() if value is not None}


def net_class(name: str | None, shape: tuple[int, ...]) -> type[nn.Module]:
    """The class of a network, by its name on the command line; by the shape of the data where there is none.

    Raises:
        ValueError: No such class, or none for samples of this shape.
        FileNotFoundError, TypeError, ImportError: As `load_class`.
    """
    if name is None:
        if len(shape) > 4:
            raise ValueError(
                f"--data holds samples of shape {shape}: wanted vectors (N, D) or fields (N, C, *lengths) of one, two "
                "or three dimensions; or give a network of your own, --net FILE.py:NAME"
            )
        return nets.MLP if len(shape) == 1 else nets.UNet
    if name in NETS:
        return NETS[name]
    found = _own(name, "--net", NETS)
    if not issubclass(found, nn.Module):
        raise ValueError(f"--net {name} is no torch.nn.Module")
    return found


def net_maker(
    cls: type[nn.Module], facts: Facts, width: int | None, given: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    """What makes the network: its class, called with what it names of the facts, and with the arguments given.

    Raises:
        ValueError: An argument that it has not; a condition of the data that a network of the library does not take.
    """
    named = inspect.signature(cls).parameters
    if unknown := [name for name in given if name not in named]:
        raise ValueError(f"--net-args: {cls.__name__} has no argument {unknown[0]!r}: it has {', '.join(named)}")
    if cls in nets.CLASSES:
        _check_taken(cls.__name__, facts, named)
    arguments = {name: value for name, value in facts.offered(width).items() if name in named}
    arguments |= given

    def make() -> nn.Module:
        try:
            net = cls(**arguments)
            if not facts.words or "tokens" not in named:
                return net
            return Captioned(net, TextEncoder(facts.words, length=facts.longest, size=arguments["tokens"]))
        except TypeError as error:
            missing = [p.name for p in named.values() if p.default is p.empty and p.name not in arguments]
            if not missing or any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in map(named.__getitem__, missing)):
                raise
            raise ValueError(
                f"{cls.__name__} needs the argument {missing[0]!r}, which follows from nothing: --net-args "
                f"'{missing[0]}=...'"
            ) from error

    return make


def _check_taken(name: str, facts: Facts, named: Mapping[str, Any]) -> None:
    """Refuses conditions of the data that a network of the library does not take."""
    if facts.others:
        raise ValueError(
            f"{name} takes the conditions label, context and image, and not {facts.others[0]!r}: name it so, --cond "
            f"context={facts.others[0]}, or give a network of your own"
        )
    if facts.words and "tokens" not in named:
        raise ValueError(f"{name} takes no captions, and the data come with some: unet and dit do, --net")
    for argument in ("classes", "context", "image"):
        if getattr(facts, argument) and argument not in named:
            raise ValueError(f"{name} takes no {argument}, and the data come with one: give another --net")


def made_with(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Makes a network with the initial weights of a seed; torch's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def process_of(name: str, given: Mapping[str, Any]) -> GaussianSDE:
    """The process of a name on the command line, with arguments of its constructor.

    Raises:
        ValueError: No such process, or arguments that do not fit.
        FileNotFoundError, TypeError, ImportError: As `load_class`.
    """
    known = processes.named()
    try:
        if name in known:
            if not given or not is_dataclass(known[name]):
                return type(known[name])(**given) if given else known[name]
            return replace(known[name], **given)  # type: ignore[type-var]  # it was looked at in the line above
        found = _own(name, "--sde", known)(**given)
    except TypeError as error:
        raise ValueError(f"--sde {name} cannot be made with {dict(given)}: {error}") from error
    if not isinstance(found, GaussianSDE):
        raise ValueError(f"--sde {name} is no GaussianSDE, which alone a network can be trained under")
    return found


def objective_of(model: Denoiser, weight: str | None, times: str | None) -> Objective:
    """The objective that suits a model, but for what is named: `model.objective()`."""
    drawn = None if times is None else TIMES[times]
    made = model.objective(times=drawn, weight=None if weight is None else WEIGHTS[weight])
    return Uncertainty(made) if weight == "uncertainty" else made


def own_classes(*names: str | None) -> list[type]:
    """The classes of your own files among names, to load a checkpoint of them."""
    return [load_class(name) for name in names if name is not None]


def _own(name: str, option: str, known: Mapping[str, Any]) -> type:
    if ":" not in name:
        raise ValueError(f"{option} must be one of {', '.join(known)}, or FILE.py:NAME, got {name[:40]!r}")
    return load_class(name)
