"""What a network is told beside the state: the time, as Fourier features, and the class.

A label is an integer `0 ... classes - 1`; the value `classes`, or no label at all, is the null (unconditional) label.
It is learnt from the labels that are dropped in training: with `label_drop=0` it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_labels

Config = dict[str, int | float]
Labels = Tensor | Sequence[int] | int | None

__all__ = ["Condition", "FourierEmbedding", "check_probability", "fixed_normal", "same_dtype", "zero"]


class FourierEmbedding(nn.Module):
    r"""Random Fourier features of a scalar time.

    $$ e(t) = \sqrt 2\,[\cos(2\pi f_1 t), \ldots, \cos(2\pi f_{d/2} t), \sin(2\pi f_1 t), \ldots],
    \quad f_i \sim N(0, \text{scale}^2) $$

    The frequencies are drawn once, from a generator of their own with a fixed seed: two embeddings built alike are
    equal, the global random state is left alone, and `state_dict` carries them. Each entry has mean square about one.

    Args:
        dim: Number of features d, even and positive.
        scale: Standard deviation of the frequencies, in periods per unit of `t`, `> 0`. With 1, inputs of order one are
            resolved to a few hundredths; integers 0 ... 1000 would alias, so divide those by 1000.

    Shapes:
        t (B,) -> (B, dim)

    Raises:
        TypeError, ValueError: `dim` is not an even positive integer, `scale` is not positive and finite, `t` is not
            a float of shape (B,).

    References:
        Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, 2020.
    """

    freqs: Tensor

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if check_count(dim, "dim") % 2:
            raise ValueError(f"dim must be even (a cosine and a sine per frequency), got {dim}. Use {dim + 1}.")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(
                f"scale must be positive and finite, got {scale!r}. The default, 1.0, suits log(sigma/alpha)/4."
            )
        self.register_buffer("freqs", scale * fixed_normal(dim // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times: (B,) -> (B, dim)."""
        if t.ndim != 1:
            raise ValueError(
                f"t must have shape (B,), one time per sample, got {tuple(t.shape)}. Use t.expand(len(x))."
            )
        if not t.is_floating_point():
            raise TypeError(f"t must be a float of order one, got {t.dtype}. Divide step i of N by N: t / N.")
        phase = 2 * math.pi * torch.outer(t.to(self.freqs.dtype), self.freqs)
        return math.sqrt(2) * torch.cat([phase.cos(), phase.sin()], dim=1)


class Condition(nn.Module):
    """Time and class to one vector per sample, and the one owner of what a label means.

    Args:
        frequencies: Features of the time embedding, even.
        dim: Length of the vector.
        classes: Number of classes K; 0 for none. The label K is the null label.
        label_drop: Probability that a label becomes the null label, in training mode only.

    Shapes:
        t (B,), label (B,) integer or a sequence of B, one integer for all or None, batch = B -> (B, dim)

    Raises:
        TypeError, ValueError: `t` or `label` is not one number per sample, or a label is out of range; the null label
            with `label_drop=0`.

    References:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022.
    """

    def __init__(self, frequencies: int, dim: int, classes: int, label_drop: float) -> None:
        super().__init__()
        check_count(classes or 1, "classes")
        check_probability("label_drop", label_drop)
        self.classes, self.label_drop = classes, label_drop
        self.embed = FourierEmbedding(frequencies)
        self.project = nn.Linear(frequencies, dim)
        self.mix = nn.Linear(dim, dim)
        self.label = nn.Embedding(classes + 1, dim) if classes else None

    def forward(self, t: Tensor, label: Labels, batch: int) -> Tensor:
        if t.shape != (batch,):
            raise ValueError(
                f"t must have shape ({batch},), one time per row of x, got {tuple(t.shape)}. "
                "Use t.expand(len(x)) for one shared time."
            )
        e = F.silu(self.project(self.embed(t)))
        ids = self._ids(label, batch, t.device)
        if self.label is not None:
            e = e + self.label(ids)
        return F.silu(self.mix(e))

    def _ids(self, label: Labels, batch: int, device: torch.device) -> Tensor:
        null = self.classes
        if label is None:
            self._check_null("no label was given to")
            return torch.full((batch,), null, device=device)
        if not null:
            raise ValueError(
                "label was given to a net built with classes=0. Leave label out, or build the net with classes=K."
            )
        label = check_labels(label, "label").to(device)
        if label.ndim == 0:  # one for all
            label = label.expand(batch)
        if label.shape != (batch,):
            raise ValueError(f"label must have shape ({batch},), one per row of x, got {tuple(label.shape)}.")
        low, high = (int(label.min()), int(label.max())) if batch else (0, 0)
        if low < 0 or high > null:
            raise ValueError(
                f"label must lie in 0..{null - 1}, or be {null} (the null label, unconditional), "
                f"got values from {low} to {high}."
            )
        if high == null:
            self._check_null(f"the null label, {null}, was given to")
        if self.training and self.label_drop:
            return torch.where(torch.rand(batch, device=label.device) < self.label_drop, null, label.long())
        return label.long()

    def _check_null(self, what: str) -> None:
        if self.classes and not self.label_drop:
            raise ValueError(
                f"{what} a net of {self.classes} classes that is never trained without one (label_drop=0): "
                "give label=, or train a net with label_drop=0.1"
            )


def fixed_normal(*shape: int) -> Tensor:
    """The same standard normal draws every time, whatever the global random state and the default device."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(*shape, device=device)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def check_probability(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability and must lie in [0, 1], got {value!r}.")


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Sets the parameters of a layer to zero, and returns it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def same_dtype(x: Tensor, weight: Tensor) -> None:
    """Raises `TypeError` unless the state has the dtype of a weight, or autocast takes care of it."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x is {x.dtype} but the net holds {weight.dtype}. Use x.to({weight.dtype}) or net.to({x.dtype})."
        )
