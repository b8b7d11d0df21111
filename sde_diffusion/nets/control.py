r"""Control of a trained network by fields beside the state: edges, a mask, a low resolution.

The network stays as it is. Of its way down, the encoder, each control has a copy, which is trained; the copy sees the
field as a hint beside the state, and what it finds is added to what the frozen encoder hands to the frozen way back,
$$ f_i \leftarrow f_i + \sum_k s_k\,Z_{ki}\,f^{(k)}_i(x + Z_k\,h_k(c_k), t), $$
with the features $f_i$ of the base, those $f^{(k)}_i$ of the copies, and convolutions $Z$ of width 1 that start at
zero: before any training, and at strength $s_k = 0$, the base answers, bit for bit.

**Which networks.** `UNet` and `DiT`, and any that

* is called as `net(x, t, *, added=(), **cond)` and adds the tensors in `added`, where there are any, to the features
  that its encoder hands on, one to each; what it is built of has `copy.deepcopy`;
* has a method `encoder_copy()`, which answers an `Encoder`, or a module like it, with parameters that are copies of
  those of the network: called as `encoder(x, t, hint, **cond)`, with `hint` `(B, encoder.hint, *)` to be added behind
  its first layer, it answers those features, a list of tensors with their channels on axis 1, `encoder.widths`;
  `encoder.dims` is the number of axes of the field, and `encoder.stride` how many points of the state along each become
  one of the hint;
* names in an attribute `per_sample` those of its conditions that have a row for each sample, `()` where it has none;
* has a `config`, its constructor's arguments, if it is to be saved.

References:
    Zhang, Rao and Agrawala, Adding Conditional Control to Text-to-Image Diffusion Models, 2023; of transformers, Chen
    et al., PIXART-delta, 2024 (Section 4).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_finite, check_flag, is_real
from sde_diffusion.nets.base import OnBase, aliased, check_net
from sde_diffusion.nets.conditions import Numbers, numbers_of, rows_of
from sde_diffusion.nets.drops import dropped_alike
from sde_diffusion.nets.embedding import Config, zero
from sde_diffusion.nets.second_time import with_until

__all__ = ["Controlled", "joined"]

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TAKEN = ("x", "t", "until", "added", "hint", "strength", "cond")
"""Names that no control can have."""

Strength = float | Tensor | Sequence[float]


class Controlled(OnBase):
    r"""A trained network and controls of it, each a trainable copy of its encoder and a condition of its own name.

    Called as `net(x, t, control=field, strength=1.0, **cond)`, with the conditions of the base. Without a field, or
    with strength 0, a control takes no time, and without any the base answers, bit for bit. With one, a pass takes 1.6
    to 1.8 times as long; its copy has two thirds of the weights of the base, more where that has one halving alone.

    In `train` only the copies learn. The base shares the memory of `net`, which is left as it is and must not be
    trained meanwhile; it stays in evaluation mode, without dropout. The copies are told the conditions of the base.
    In training these are left out as often as the base left them out, of a sample in the base and all copies alike, so
    that `Guided` guides by the condition of the base, or by the control, `null={"control": None}`. The conditions of a
    network that is not of this package are left out as its parts do it.

    Args:
        net: The trained network: a `UNet`, a `DiT`, or one that follows the protocol of `nets.control`.
        control: Channels of the field; or of several, by their names, `{"edges": 1, "mask": 1}`.
        finer: How many points of the field, along each axis, come to one of the state: of an image above a code.
        frozen: Whether the base stays as it is. If not, it is a copy, and is trained and saved along.

    Shapes:
        x (B, C, *spatial), t (B,), each control (B, its channels, *spatial times `finer`), or one for all; strength a
        number, (B,), or a mapping of such by the names of controls, where 1 is what they were trained with -> as x

    Raises:
        TypeError: A network that does not follow the protocol, with what it lacks; a control that holds no numbers.
        ValueError: A name that is taken, a field of another shape, a strength that is not finite or not one per row.

    Example:
        >>> net = Controlled(model.net, control=1)
        >>> steered = Network(net, model.sde, model.kind, shape=model.shape)
        >>> training = train(steered, x0, control=edges, steps=2000)
        >>> x = SDESampler(steered.sde, training.model).sample(8, control=edges[:8], strength=0.8)
    """

    def __init__(
        self, net: nn.Module, control: int | Mapping[str, int] = 1, *, finer: int = 1, frozen: bool = True
    ) -> None:
        super().__init__()
        net = _checked(net)
        self.channels = _channels(control, net)
        self.finer, self.frozen = check_count(finer, "finer"), check_flag(frozen, "frozen")
        self.net = aliased(net) if frozen else copy.deepcopy(net).requires_grad_()
        self.controls = nn.ModuleDict({name: _Control(net, name, c, finer) for name, c in self.channels.items()})
        self._told = _conditions(net, self.channels)
        self.train(net.training)

    @property
    def per_sample(self) -> tuple[str, ...]:
        """The conditions that have a row for each sample."""
        return (*self.net.per_sample, *self.channels, "strength")  # type: ignore[misc]  # of the protocol

    @property
    def config(self) -> Config:
        """The constructor's arguments, the base as it is."""
        return {"net": self.net, "control": dict(self.channels), "finer": self.finer, "frozen": self.frozen}

    def own(self, name: str) -> bool:
        return name.startswith("controls.")

    def forward(
        self, x: Tensor, t: Tensor, *, strength: Strength | Mapping[str, Strength] | None = None, **told: Any
    ) -> Tensor:
        """Evaluates the base with what its controls add: x (B, *), t (B,) -> as x."""
        if self._told is not None and (strange := sorted(told.keys() - self._told)):
            raise TypeError(
                f"condition {strange[0]!r} is none of {type(self.net).__name__} and none of its controls, which are "
                f"{', '.join(self.channels)}, with strength"
            )
        fields = {name: told.pop(name, None) for name in self.channels}
        strengths = self._strengths(strength, x)
        with dropped_alike(self, x):
            total = self._added(x, t, fields, strengths, told)
            out: Tensor = self.net(x, t, **told, added=total) if total else self.net(x, t, **told)
        return out

    def with_until(self) -> Controlled:
        """A copy that is told a second time, for a flow map, all of which is trained: it stands on no base."""
        new = Controlled(with_until(self.net), self.channels, finer=self.finer, frozen=False)
        own = next(self.parameters())
        _, surplus = new.to(own.device, own.dtype).controls.load_state_dict(self.controls.state_dict(), strict=False)
        if surplus:
            raise TypeError(f"its encoder_copy() has no {', '.join(surplus)} once it is told a second time")
        return new.train(self.training)

    def _added(
        self,
        x: Tensor,
        t: Tensor,
        fields: Mapping[str, Numbers],
        strengths: Mapping[str, float | Tensor],
        told: Mapping[str, Any],
    ) -> list[Tensor]:
        """What the controls that are on add to each feature of the base, together."""
        total: list[Tensor] = []
        for name, control in self.controls.items():
            s = strengths[name]
            if fields[name] is None or (isinstance(s, float) and s == 0):
                continue
            found = [s * f if isinstance(s, float) else _each(s, f) * f for f in control(x, t, fields[name], told)]
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        return total

    def _strengths(self, strength: Any, x: Tensor) -> dict[str, float | Tensor]:
        """The strength of each control: a number, or a tensor (B,)."""
        given = dict.fromkeys(self.channels, strength)
        if isinstance(strength, Mapping):
            if unknown := [name for name in strength if name not in self.channels]:
                raise ValueError(f"strength names {unknown[0]!r}, and the controls are {', '.join(self.channels)}")
            given = {name: strength.get(name) for name in self.channels}
        return {name: 1.0 if s is None else _strength(s, x) for name, s in given.items()}


def joined(first: Controlled, *others: Controlled) -> Controlled:
    """The controls of several networks of one base in one network, whose fields add up, each with its strength.

    Args:
        first: A network with its controls, which keeps its base.
        *others: Others, of the same base.

    Raises:
        TypeError: Something else than `Controlled`.
        ValueError: Other bases, or two controls of one name.
    """
    channels: dict[str, int] = {}
    first, *rest = (getattr(one, "_orig_mod", one) for one in (first, *others))  # of compiled ones, the networks
    for one in (first, *rest):
        given: object = one
        if not isinstance(given, Controlled):
            raise TypeError(f"joined takes networks with controls, Controlled, got {type(given).__name__}")
        if not _same(first.base, one.base) or one.finer != first.finer:
            raise ValueError(
                "joined takes controls of one base, and these were trained on bases of other weights, or finer fields"
            )
        if twice := sorted(channels.keys() & one.channels.keys()):
            raise ValueError(
                f"two controls are called {twice[0]!r}: build them with names, Controlled(net, control={{'edges': 1}})"
            )
        channels |= one.channels
    new = Controlled(first.net, channels, finer=first.finer, frozen=first.frozen)
    for one in (first, *rest):
        for name, control in one.controls.items():
            new.controls[name] = copy.deepcopy(control)
    return new.train(first.training)


class _Control(nn.Module):
    """A copy of an encoder, what shows it the field, and what carries its features to the base."""

    def __init__(self, net: nn.Module, name: str, channels: int, finer: int) -> None:
        super().__init__()
        self.name, self.channels, self.finer = name, channels, finer
        self.copy = _encoder(net)
        self.copy.requires_grad_()
        like = next(self.copy.parameters())
        conv, wide, size = CONV[self.copy.dims], self.copy.hint, [finer * s for s in self.copy.stride]
        self.size = size
        width = 8 * math.ceil(wide / 8)
        self.see = nn.Sequential(
            conv(channels, width, 3, padding=1) if max(size) == 1 else conv(channels, width, size, stride=size),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
            nn.SiLU(),
            zero(conv(width, wide, 1)),
        )
        self.join = nn.ModuleList(_Mix(w) for w in self.copy.widths)
        for part in (self.see, self.join):
            part.to(like.device, like.dtype)

    def forward(self, x: Tensor, t: Tensor, field: Numbers, cond: Mapping[str, Any]) -> list[Tensor]:
        """What is added to each feature of the base: x (B, *), field (B, C, *) or one for all."""
        hint = self.see(self._told(field, x))
        return [mix(f) for mix, f in zip(self.join, self.copy(x, t, hint, **cond), strict=True)]

    def _told(self, field: Numbers, x: Tensor) -> Tensor:
        """The field, (B, C, *) or (1, C, *), in the dtype of the copy."""
        if isinstance(field, Tensor) and field.dtype == torch.bool:
            raise TypeError(f"{self.name} must hold real numbers, got torch.bool: {self.name}.float() is 1 where true")
        y = given = numbers_of(field, self.name, next(self.join.parameters()))
        y = y[None] if y.ndim == x.ndim - 1 else y
        wanted = (self.channels, *(self.finer * n for n in x.shape[2:]))
        if y.ndim != x.ndim or y.shape[1:] != wanted or len(y) not in (1, len(x)):
            raise ValueError(
                f"{self.name} must have shape {(len(x), *wanted)}, one per row of x, or {wanted}, one for all, got "
                f"{tuple(given.shape)}. Another size: torch.nn.functional.interpolate({self.name}, size={wanted[1:]})."
            )
        return check_finite(rows_of(y), self.name)


class _Mix(nn.Module):
    """A convolution of width 1 on a field of any number of axes, (B, C, *) -> same; zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        device = torch.get_default_device()
        self.weight = nn.Parameter(torch.zeros(channels, channels, device=device))
        self.bias = nn.Parameter(torch.zeros(channels, device=device))

    def forward(self, f: Tensor) -> Tensor:
        return F.conv1d(f.flatten(2), self.weight[:, :, None], self.bias).reshape(f.shape)


def _each(s: Tensor, f: Tensor) -> Tensor:
    """A number for each row, to be multiplied by."""
    return s.to(f).reshape(-1, *[1] * (f.ndim - 1))


def _strength(s: Any, x: Tensor) -> float | Tensor:
    if is_real(s):
        if not math.isfinite(s):
            raise ValueError(f"strength must be finite, got {s!r}: 0 is the base alone, 1 what was trained")
        return float(s)
    try:
        found = s if isinstance(s, Tensor) else torch.as_tensor(s, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"strength must be a number, or one for each sample, got {type(s).__name__}") from None
    if found.ndim > 1 or (found.ndim and len(found) not in (1, len(x))):
        raise ValueError(f"strength must be a number or have shape ({len(x)},), got {tuple(found.shape)}")
    return check_finite(found, "strength")


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and bool((a[n] == b[n]).all()) for n in a)


def _checked(net: Any) -> nn.Module:
    """The network, after a look that it follows the protocol."""
    net = check_net(net, "Controlled")
    name = type(net).__name__
    if not callable(getattr(net, "encoder_copy", None)):
        raise TypeError(
            f"{name} has no encoder_copy(), which a control is made of: UNet and DiT have it, and "
            "sde_diffusion.nets.control says what it is; a network of vectors is told by context= instead"
        )
    names = getattr(net, "per_sample", None)
    if not (isinstance(names, tuple | list) and all(isinstance(each, str) for each in names)):
        raise TypeError(
            f"{name} does not say which of its conditions have a row for each sample: give it an attribute per_sample, "
            "such as ('label',), or () where it has none"
        )
    return net


def _channels(control: Any, net: Any) -> dict[str, int]:
    """The channels of each control by its name."""
    given = control if isinstance(control, Mapping) else {"control": control}
    if not given:
        raise ValueError("control names no control: give its channels, control=1, or several, {'edges': 1, 'mask': 1}")
    for name, channels in given.items():
        if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ValueError(f"a control is called by a name such as 'edges', got {name!r}")
        if name in TAKEN or name in net.per_sample:
            raise ValueError(f"a control cannot be called {name!r}, which is taken: give it a name, {{'edges': 1}}")
        check_count(channels, f"the channels of {name}")
    return dict(given)


def _conditions(net: nn.Module, channels: Mapping[str, int]) -> frozenset[str] | None:
    """What a network with controls is told by name; None where the base takes any."""
    taken = inspect.signature(net.forward).parameters
    if any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        return None
    return frozenset([*taken, *channels]) - {"added"}


def _encoder(net: Any) -> Any:
    """The copy of an encoder, after a look that it says what a control has to know."""
    found, name = net.encoder_copy(), type(net).__name__
    for what in ("dims", "hint", "widths", "stride"):
        if not isinstance(found, nn.Module) or not hasattr(found, what):
            raise TypeError(
                f"{name}.encoder_copy() answered {type(found).__name__} without {what}, wanted a module with dims, "
                "hint, widths and stride: sde_diffusion.nets.control says what they are"
            )
    own = {id(p) for p in net.parameters()}
    if any(id(p) in own for p in found.parameters()):
        raise ValueError(
            f"{name}.encoder_copy() shares parameters with the network: copy.deepcopy them, or it is trained"
        )
    return found
