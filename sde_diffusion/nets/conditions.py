r"""What a network is told beside the state and the time, and what each of it means. `Condition` is the one owner.

* `label`, `(B,)`, integers: a class `0 ... classes - 1`.
* `context`, `(B, d)`, numbers: a vector, such as an observation. An entry that is NaN is not known: the network sees a
  zero there, and in a mask that it is none.
* `image`, `(B, C, *spatial)`, numbers: an image as large as the state, or a sequence, or a field.

Each may be one for all, a single row or an expanded view of one: it is then embedded once, not once for each sample.

No condition at all, None, is the null condition, unconditional; of labels, the value `classes` is too. It is learnt
from the conditions that are dropped in training, with a probability of its own for each: with 0, it is refused. So is
an entry that is not known where the network never learnt to do without it, from NaN in its data or from `entry_drop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_finite, check_flag, check_labels
from sde_diffusion.nets.drops import Drop
from sde_diffusion.nets.embedding import FourierEmbedding, zero

Labels = Tensor | Sequence[int] | int | None
Numbers = Tensor | np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None

__all__ = ["Condition", "ImageCondition", "check_probability", "check_size", "numbers_of", "rows_of", "unexpected"]


class Condition(nn.Module):
    """Time, class and vector to one vector per sample.

    Args:
        frequencies: Features of the time embedding, even.
        dim: Length of the vector.
        classes: Number of classes K; 0 for none. The label K is the null label.
        label_drop: Probability that a label becomes the null label, in training mode only.
        context: Entries d of the context; 0 for none.
        context_drop: Probability that a context becomes the null context, in training mode only.
        entry_drop: Probability that an entry of the context becomes unknown, in training mode only.
        until: Whether there is a second time, `until`, to which a flow map carries. It counts nothing at first.

    Shapes:
        t (B,), batch = B, label (B,) integer or a sequence of B, one integer for all or None, told as `told` gives it,
        until (B,) -> (B, dim)

    Raises:
        TypeError, ValueError: `t`, `label` or `context` is not one per sample, or out of range; a null condition, or
            an unknown entry, that was never learnt.

    References:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022; Gloeckler et al., All-in-One Simulation-Based
        Inference, 2024 (masks for any subset).
    """

    def __init__(
        self,
        frequencies: int,
        dim: int,
        *,
        classes: int = 0,
        label_drop: float = 0.1,
        context: int = 0,
        context_drop: float = 0.1,
        entry_drop: float = 0.0,
        until: bool = False,
    ) -> None:
        super().__init__()
        check_size(classes, "classes")
        check_probability("label_drop", label_drop)
        check_size(context, "context")
        self.classes, self.label_drop = classes, label_drop
        self.drop = Drop("label_drop", label_drop if classes else 0.0)
        self.embed = FourierEmbedding(frequencies)
        self.project = nn.Linear(frequencies, dim)
        self.mix = nn.Linear(dim, dim)
        self.label = nn.Embedding(classes + 1, dim) if classes else None
        check_probability("context_drop", context_drop)
        check_probability("entry_drop", entry_drop)
        self.context = _Vector(context, dim, context_drop, entry_drop) if context else None
        self.until = _Until(frequencies, dim) if check_flag(until, "until") else None

    def told(self, context: Numbers, batch: int) -> Tensor | None:
        """The context as a vector (B, dim), or (1, dim) for all; None if the net takes none.

        Shapes:
            context (B, d), or one for all, (1, d) or (d,), or None -> (B, dim) or (1, dim)
        """
        if self.context is not None:
            found: Tensor = self.context(context, batch)
            return found
        if context is not None:
            raise unexpected("context", "context=d, its number of entries")
        return None

    def forward(
        self, t: Tensor, batch: int, label: Labels = None, told: Tensor | None = None, until: Tensor | None = None
    ) -> Tensor:
        if t.shape != (batch,):
            raise ValueError(
                f"t must have shape ({batch},), one time per row of x, got {tuple(t.shape)}. "
                "Use t.expand(len(x)) for one shared time."
            )
        e = F.silu(self.project(self.embed(t)))
        ids = self._ids(label, batch, t.device)
        if self.label is not None:
            e = e + self.label(ids)
        if told is not None:
            e = e + told
        if self.until is not None:
            e = e + self.until(until, batch)
        elif until is not None:
            raise unexpected("until", "until=True")
        return F.silu(self.mix(e))

    def _ids(self, label: Labels, batch: int, device: torch.device) -> Tensor:
        """Class numbers, (B,) or (1,) for all."""
        if label is None:
            self._check_null("no label was given to")
            return torch.full((1,), self.classes, device=device)
        if not self.classes:
            raise unexpected("label", "classes=K")
        label = check_labels(label, "label").to(device)
        if label.ndim == 0:  # one for all
            label = label.expand(batch)
        if label.shape != (batch,):
            raise ValueError(f"label must have shape ({batch},), one per row of x, got {tuple(label.shape)}.")
        label = rows_of(label)
        if not torch.compiler.is_compiling():  # in a graph, the table refuses them in its own words
            self._check_range(label)
        dropped = self.drop(batch, label.device)
        return label.long() if dropped is None else torch.where(dropped, self.classes, label.long())

    def _check_range(self, label: Tensor) -> None:
        null = self.classes
        low, high = (int(label.min()), int(label.max())) if len(label) else (0, 0)
        if low < 0 or high > null:
            raise ValueError(
                f"label must lie in 0..{null - 1}, or be {null} (the null label, unconditional), "
                f"got values from {low} to {high}."
            )
        if high == null:
            self._check_null(f"the null label, {null}, was given to")

    def _check_null(self, what: str) -> None:
        if self.classes and not self.label_drop:
            raise ValueError(
                f"{what} a net of {self.classes} classes that is never trained without one (label_drop=0): "
                "give label=, or train a net with label_drop=0.1"
            )


class _Until(nn.Module):
    """A second time to one vector per sample, (B,) -> (B, dim); zero at first."""

    def __init__(self, frequencies: int, dim: int) -> None:
        super().__init__()
        self.embed = FourierEmbedding(frequencies)
        self.project = nn.Linear(frequencies, dim)
        self.leave = zero(nn.Linear(dim, dim))

    def forward(self, until: Tensor | None, batch: int) -> Tensor:
        if until is None or until.shape != (batch,):
            raise ValueError(
                f"this net is told a second time, until, of shape ({batch},), got "
                f"{'none' if until is None else tuple(until.shape)}: it is that of a FlowMap, which gives it"
            )
        out: Tensor = self.leave(F.silu(self.project(self.embed(until))))
        return out


class _Null(nn.Module):
    """The learnt vector that stands for a condition that is not given, and for those dropped in training."""

    def __init__(self, name: str, dim: int, drop: float) -> None:
        super().__init__()
        check_probability(f"{name}_drop", drop)
        self.name, self.drop = name, Drop(f"{name}_drop", drop)
        self.vector = nn.Parameter(torch.zeros(dim, device=torch.get_default_device()))

    def forward(self, encoded: Tensor | None, batch: int, axes: int = 0) -> Tensor:
        """What was encoded, (B, dim, *) or one row for all, with the null in place of what is not there."""
        null = self.vector.reshape(1, -1, *[1] * axes)
        if encoded is None:
            if not self.drop.rate:
                raise ValueError(
                    f"no {self.name} was given to a net that is never trained without one ({self.name}_drop=0): give "
                    f"{self.name}=, or train a net with {self.name}_drop=0.1"
                )
            return null
        dropped = self.drop(batch, encoded.device)
        if dropped is None:
            return encoded
        return torch.where(dropped.reshape(-1, *[1] * (encoded.ndim - 1)), null, encoded)


class _Vector(nn.Module):
    """A vector, with entries that may be unknown, to one vector per sample: (B, d) -> (B, dim), or (1, dim) for all.

    A perceptron and a linear map beside it, through which the numbers pass as they are: without, a network could not
    tell a parameter from an observation close to it.
    """

    missed: Tensor

    def __init__(self, size: int, dim: int, drop: float, entry_drop: float) -> None:
        super().__init__()
        self.size, self.unknown = size, Drop("entry_drop", entry_drop, size)
        self.encode = nn.Sequential(nn.Linear(2 * size, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.straight = nn.Linear(2 * size, dim, bias=False)
        self.null = _Null("context", dim, drop)
        self.register_buffer(
            "missed", torch.zeros(size, dtype=torch.bool, device=torch.get_default_device())
        )  # the entries that were ever unknown

    def forward(self, context: Numbers, batch: int) -> Tensor:
        if context is None:
            return self.null(None, batch)
        c = self._numbers(context, batch)
        missing = c.isnan()
        if not torch.compiler.is_compiling() and not math.isfinite(c.sum().item()):
            check_finite(torch.where(missing, 0, c), "context")
            self._check_learnt(missing)
        unknown = self.unknown(batch, c.device)
        if unknown is not None:
            missing = missing | unknown
        if self.training:
            self.missed.logical_or_(missing.any(0))
        known = torch.where(missing, 0, c)
        both = torch.cat([known, missing.to(known)], dim=1)
        return self.null(self.encode(both) + self.straight(both), batch)

    def _numbers(self, context: Numbers, batch: int) -> Tensor:
        """The context, (B, d), or (1, d) for all, in the dtype and on the device of the net."""
        c = given = numbers_of(context, "context", self.null.vector)
        if c.ndim == 1 and self.size == 1 and len(c) == batch:
            c = c[:, None]
        elif c.ndim == 1:
            c = c[None]
        if c.ndim != 2 or c.shape[1] != self.size or len(c) not in (1, batch):
            raise ValueError(
                f"context must have shape ({batch}, {self.size}), one row per row of x, or ({self.size},), one for "
                f"all, got {tuple(given.shape)}."
            )
        return rows_of(c)

    def _check_learnt(self, missing: Tensor) -> None:
        new = missing.any(0) & ~self.missed
        if not self.training and bool(new.any()):
            raise ValueError(
                f"entries {new.nonzero()[:, 0].tolist()} of context are NaN, not known, which this net has never been "
                "trained without: give them, or train with entry_drop=0.2, or on data where they are NaN at times"
            )


class ImageCondition(nn.Module):
    """An image beside the state, to what is added to the state once that has passed the first layer of a network.

    The first layer of both together would be the same sum; apart, one image for all samples is encoded once.

    Args:
        channels: Channels C of the image.
        first: The layer that encodes it, (B, C, *) -> (B, dim, *).
        dim: Channels that `first` gives.
        drop: Probability that an image becomes the null image, in training mode only.

    Shapes:
        x (B, *, *spatial), image (B, C, *spatial), or one for all, (1, C, *spatial) or (C, *spatial), or None ->
        (B, dim, *), or (1, dim, *) for all

    Raises:
        TypeError, ValueError: `image` has another shape, or is not finite; none was given, and the net never learnt to
            do without.
    """

    def __init__(self, channels: int, first: nn.Module, dim: int, drop: float) -> None:
        super().__init__()
        self.channels, self.first = channels, first
        self.null = _Null("image", dim, drop)

    def forward(self, image: Numbers, x: Tensor) -> Tensor:
        if image is None:
            return self.null(None, len(x), x.ndim - 2)
        y = given = numbers_of(image, "image", self.null.vector)
        y = y[None] if y.ndim == x.ndim - 1 else y
        wanted = (self.channels, *x.shape[2:])
        if y.ndim != x.ndim or y.shape[1:] != wanted or len(y) not in (1, len(x)):
            raise ValueError(
                f"image must have shape {(len(x), *wanted)}, one per row of x, or {wanted}, one for all, got "
                f"{tuple(given.shape)}. Another size: torch.nn.functional.interpolate(image, size={wanted[1:]})."
            )
        return self.null(self.first(check_finite(rows_of(y), "image")), len(x), x.ndim - 2)


def no_image(image: Numbers) -> None:
    """Raises `ValueError` if an image was given to a net that takes none."""
    if image is not None:
        raise unexpected("image", "image=C, its number of channels")


def check_size(n: int, name: str) -> int:
    """Returns `n` if it is a positive integer or 0, for none."""
    return 0 if n == 0 else check_count(n, name)


def check_probability(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability and must lie in [0, 1], got {value!r}.")


def unexpected(name: str, argument: str) -> ValueError:
    """The error for a condition that a net was not built for, and the argument that builds one."""
    built = f"{argument.partition('=')[0]}={False if argument.endswith('True') else 0}"
    return ValueError(
        f"{name} was given to a net built with {built}. Leave {name} out, or build the net with {argument}."
    )


def _tensor(value: object) -> Tensor:
    """An array or a list as a tensor; of an array that is one row for all, the view of one row that it is."""
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        spread = value.ndim > 0 and len(value) > 0 and value.strides[0] == 0
        found = torch.as_tensor(np.array(value[:1] if spread else value), device="cpu")
        return found.expand(value.shape) if spread else found
    return torch.as_tensor(value, device="cpu")


def numbers_of(value: Numbers, name: str, weight: Tensor | None) -> Tensor:
    """Numbers as a tensor in the dtype and on the device of a weight, or as they came."""
    if not isinstance(value, Tensor):
        try:
            value = _tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must hold numbers, in a tensor or an array, got {type(value).__name__}") from None
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    return value if weight is None else rows_of(value).to(weight).expand(value.shape)


def rows_of(value: Tensor) -> Tensor:
    """A tensor (B, *), or its one row (1, *) where it is an expanded view of one."""
    return value[:1] if value.ndim and len(value) and value.stride(0) == 0 else value
