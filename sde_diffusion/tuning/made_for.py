"""What a table was made for: the process, the model and what it computes in; and what is said of a difference."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import is_real
from sde_diffusion.denoiser.base import KEPT, Denoiser, Wrapper
from sde_diffusion.denoiser.modules import home, modules_behind
from sde_diffusion.sde.base import GaussianSDE

VALUES = 64
"""How many values of each tensor of a model go into its fingerprint."""
NOT_OWN = frozenset((*KEPT, "careful", "trained_inside", "training", "dump_patches", "call_super_init", "sde", "inner"))


class TableWarning(UserWarning):
    """A table is used with another model than the one that it was made for, and may serve it less well."""


@dataclass(frozen=True)
class MadeFor:
    r"""What a table was made for. An empty entry is not compared, and conditions given on sampling are none of it.

    Args:
        sde: The process, as its `repr`.
        noise_range: Smallest and largest $\sigma/\alpha$ of the process.
        model: What the model is made of, `Guided(w=4.0) of Network`: classes, with their own numbers and words.
        fingerprint: Digest of the names, the shapes and some values of the model's tensors.
        dtype: Of the states, `float32` or `float64`.
        shape: Event shape, if it is known.
    """

    sde: str
    noise_range: tuple[float, float]
    model: str = ""
    fingerprint: str = ""
    dtype: str = ""
    shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, model: Denoiser, *, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> MadeFor:
        """What a model is; by default with the dtype that it computes in and the shape that it knows."""
        name = str(dtype or home(model)[0]).removeprefix("torch.")
        start = cls.of_process(model.sde)
        return cls(start.sde, start.noise_range, described(model), fingerprint(model), name, shape or model.shape)

    @classmethod
    def of_process(cls, sde: GaussianSDE) -> MadeFor:
        """A process alone, whatever the model."""
        low, high = sde.levels([sde.t_min, sde.t_max])
        return cls(repr(sde), (float(low.ratio), float(high.ratio)))

    def check_model(self, model: Denoiser, *, shaped: bool = False) -> None:
        """Refuses a model of another process, and tells of another model.

        Args:
            model: The model that is to be sampled.
            shaped: Whether the event shape matters, as where a table has components.

        Raises:
            ValueError: Another process, noise range or event shape.

        Warns:
            TableWarning: Another model: the difference is named.
        """
        process = MadeFor.of_process(model.sde)
        if self.sde and process.sde != self.sde:
            raise ValueError(
                f"the table was made for {_short(self.sde)}, and the model is of {_short(process.sde)}: take a table "
                "of this process, SolverTable.of(solver, sde, grid), or tune again"
            )
        if not all(_same(a, b) for a, b in zip(self.noise_range, process.noise_range, strict=True)):
            raise ValueError(
                f"the table was made for sigma/alpha from {_range(self.noise_range)}, and the process of the model "
                f"goes from {_range(process.noise_range)}: tune again"
            )
        if shaped and self.shape is not None and model.shape is not None and model.shape != self.shape:
            raise ValueError(
                f"the table was made for samples of shape {self.shape}, and the model works on {model.shape}: its "
                "components do not fit; tune again"
            )
        told = self._difference(model)
        if told:
            warnings.warn(told, TableWarning, stacklevel=2)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raises `ValueError` for states of another dtype."""
        name = str(dtype).removeprefix("torch.")
        if self.dtype and name != self.dtype:
            raise ValueError(
                f"the table was made for states in {self.dtype}, and these are in {name}: sample in {self.dtype}, "
                "or tune again on such states"
            )

    def check(self, model: Denoiser, dtype: torch.dtype, *, shaped: bool = False) -> None:
        """Both `check_model` and `check_dtype`."""
        self.check_dtype(dtype)
        self.check_model(model, shaped=shaped)

    def _difference(self, model: Denoiser) -> str | None:
        """What is other about a model, in words; None if nothing is."""
        if self.model and (now := described(model)) != self.model:
            return in_words(now, self.model)
        if self.fingerprint and fingerprint(model) != self.fingerprint:
            return (
                "the tensors of the model are not those that the table was made for: trained on since, another "
                "average, or another dtype. It may serve less well; tune again"
            )
        return None


def described(model: Denoiser) -> str:
    """What a model is made of, outermost first: `Guided(w=4.0) of Network`."""
    return " of ".join(
        type(part).__name__ + (f"({', '.join(f'{k}={v}' for k, v in own.items())})" if (own := _own(part)) else "")
        for part in _chain(model)
    )


def fingerprint(model: Denoiser) -> str:
    """The sha256 of names, shapes and up to 64 evenly spaced values of each tensor of a model, in hexadecimal."""
    digest = hashlib.sha256()
    for name, t in _tensors(model):
        digest.update(f"{name} {tuple(t.shape)} ".encode())
        values = t.detach().reshape(-1)
        if len(values):
            at = torch.linspace(0, len(values) - 1, min(VALUES, len(values)), dtype=torch.float64, device="cpu").long()
            few = values[at.to(values.device)]
            few = torch.view_as_real(few) if few.is_complex() else few
            digest.update(few.to("cpu").to(torch.float64).numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def in_words(now: str, then: str) -> str:
    """What differs between two descriptions, and what it means."""
    links, old = now.split(" of "), then.split(" of ")
    if [_class(link) for link in links] != [_class(link) for link in old]:
        return (
            f"the model is {now}, and the table was made for {then}: it may serve less well, or not at all; tune again"
        )
    entries = [(_entries(link), _entries(before)) for link, before in zip(links, old, strict=True)]
    said = [
        f"{name} = {a.get(name, 'not set')}, and the table was made at {name} = {b.get(name, 'not set')}"
        for a, b in entries
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]
    return f"{'; '.join(said)}: within a factor of 2 it serves, beyond it does not; tune again"


def _chain(model: Denoiser) -> Iterator[Denoiser]:
    while True:
        yield model
        if not isinstance(model, Wrapper):
            return
        model = model.inner


def _own(part: Denoiser) -> dict[str, str]:
    """The numbers, truth values and words that a denoiser holds itself, or its class below `Denoiser` does."""
    held: dict[str, Any] = {}
    for cls in reversed(type(part).__mro__):
        if cls.__module__.startswith("torch") or cls in (Denoiser, Wrapper, object):
            continue
        held |= vars(cls)
    held |= vars(part)
    return {
        name: _value(value)
        for name, value in sorted(held.items())
        if not name.startswith("_") and name not in NOT_OWN and (isinstance(value, (bool, str)) or is_real(value))
    }


def _value(value: object) -> str:
    if isinstance(value, str):
        return re.sub(r"[(),=]| of ", "_", value[:40])
    return str(value) if isinstance(value, bool) else format(float(value), ".10g")  # type: ignore[arg-type]


def _class(link: str) -> str:
    return link.partition("(")[0]


def _entries(link: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=([^,()]*)", link))


def _tensors(model: Denoiser) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a model; for parts that have none, the tensors that they hold as attributes."""
    found = [
        (f"{i}.{name}", t)
        for i, module in enumerate(modules_behind(model))
        for name, t in (*module.named_parameters(), *module.named_buffers())
    ]
    yield from sorted(found, key=lambda item: item[0])
    if not found:
        for i, part in enumerate(_chain(model)):
            for name, value in sorted(vars(part).items()):
                if isinstance(value, Tensor):
                    yield f"{i}.{name}", value


def _same(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=1e-9)


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.6g} to {ends[1]:.6g}"


def _short(text: str) -> str:
    return text if len(text) < 120 else f"{text[:80]}...{text[-20:]}"
