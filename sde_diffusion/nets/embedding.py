"""The time as a network is told it, as Fourier features; and what all networks here share."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count

Config = dict[str, Any]
"""The arguments that a network was made with, by name: what JSON can hold."""

M = TypeVar("M", bound=nn.Module)

__all__ = ["Config", "FourierEmbedding", "fixed_normal", "same_dtype", "zero"]


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


def fixed_normal(*shape: int) -> Tensor:
    """The same standard normal draws every time, whatever the global random state and the default device."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(*shape, device=device)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def zero(layer: M) -> M:
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
