"""Digests of models and conditions: whether a run that goes on is the run that was begun."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.denoiser.base import Wrapper
from sde_diffusion.denoiser.modules import modules_behind

CHUNK = 2**22
"""Numbers of a tensor that are taken at once."""


def digest(thing: Any, name: str, *, loose: bool = False) -> str:
    """The SHA-256 of tensors, arrays, numbers, strings, None, and lists, mappings and dataclasses of them.

    Args:
        thing: What is taken.
        name: What an error calls it.
        loose: Takes of all else its class alone.

    Raises:
        TypeError: Something else, which cannot be told from another of its kind.
    """
    found = hashlib.sha256()
    _add(found, thing, name, loose)
    return found.hexdigest()


def model_digest(model: object) -> str:
    """That of all parameters and buffers behind a model, and of its class; a bare function has its name alone."""
    found = hashlib.sha256()
    kind = model if hasattr(model, "__qualname__") else type(model)
    found.update(f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}".encode())
    for module in modules_behind(model):
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            _add(found, tensor, name)
    return found.hexdigest()


def wrappers_of(model: object) -> str:
    """What the wrappers around a model say of themselves, such as their scale, the outermost first; empty without.

    Places in memory are left out, so that it is the same in another process.
    """
    said = []
    for part in chain.from_iterable(module.modules() for module in modules_behind(model)):
        if isinstance(part, Wrapper):
            own = type(part).__repr__ is not nn.Module.__repr__  # which would write out the whole network
            said.append(repr(part) if own else f"{type(part).__name__}({part.extra_repr()})")
    return re.sub(r" at 0x[0-9a-fA-F]+", "", ", ".join(said))


def _add(found: Any, thing: Any, name: str, loose: bool = False) -> None:
    """Adds a thing, and what it is called, to a digest; entries are marked off so that none passes for another."""
    thing = thing.tolist() if isinstance(thing, np.ndarray) and thing.dtype.kind == "U" else thing
    found.update(f"\0{name}\0{type(thing).__name__}\0".encode())
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "biufc":
        thing = torch.from_numpy(np.ascontiguousarray(thing))
    if isinstance(thing, Tensor):
        _add_tensor(found, thing)
    elif thing is None or isinstance(thing, bool | int | float | str | bytes | range | np.generic):
        found.update(repr(thing).encode())
    elif isinstance(thing, list | tuple):
        for i, part in enumerate(thing):
            _add(found, part, f"{name}.{i}", loose)
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=repr):
            _add(found, thing[key], f"{name}.{key!r}", loose)
    elif is_dataclass(thing):
        for field in fields(thing):
            _add(found, getattr(thing, field.name), f"{name}.{field.name}", loose)
    elif not loose:
        raise TypeError(
            f"{name} holds a {type(thing).__name__}, which cannot be told from another when the run goes on: give "
            "tensors, arrays, numbers, strings, or lists and mappings of them"
        )


def _add_tensor(found: Any, x: Tensor) -> None:
    found.update(f"{x.dtype}{tuple(x.shape)}".encode())
    rows = x.detach().reshape(1) if x.ndim == 0 else x.detach()
    for part in rows.split(max(1, CHUNK // max(1, rows[:1].numel()))) if rows.numel() else ():
        found.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # views of one row stay small
